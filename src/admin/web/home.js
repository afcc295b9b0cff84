// The first view: problems, then what runs, then the datasets.

import * as api from './api.js';
import { dialog, h, icon, replace, toast } from './dom.js';
import { ago, bytes, percent, plural, timeElement } from './format.js';
import { trouble } from './failure.js';
import { visible } from './paths.js';
import { go, link } from './router.js';
import { may, poolOf } from './shell.js';
import { redraw, taskList } from './tasks.js';

export async function view(at, signal) {
  const pool = poolOf(at);
  if (!pool) return { title: 'Datasets', node: noPool() };
  const running = h('section', { hidden: true, 'aria-label': 'Running now' });
  const problems = h('section', { 'aria-label': 'Problems' });
  const here = (await api.pools()).find((one) => one.name === pool);
  const datasets = here?.waiting ? [] : await api.datasets(pool);
  api.problems(signal).then(
    (found) => replace(problems, problemList(found)),
    (error) => {
      if (error.name !== 'AbortError') replace(problems, trouble(error));
    },
  );
  const showTasks = ({ detail }) => {
    const active = detail.filter((task) => !task.ended);
    running.hidden = active.length === 0;
    redraw(running, h('h2', null, 'Running now'), taskList(active));
  };
  document.addEventListener('tasks', showTasks, { signal });
  const body = here?.waiting
    ? notOpen(here)
    : datasets.length === 0
      ? empty(pool)
      : table(pool, datasets, here);
  const heading = h(
    'div',
    { class: 'row apart wrap' },
    h(
      'div',
      { class: 'stack' },
      h('h1', null, 'Datasets'),
      h(
        'p',
        { class: 'soft break' },
        visible(here?.url ?? pool),
        here?.encrypted && h('span', null, ' · encrypted'),
      ),
    ),
    datasets.length > 0 &&
      may('admin') &&
      h('button', { onclick: () => createDialog(pool) }, 'New dataset'),
  );
  return { title: 'Datasets', node: [problems, running, heading, body] };
}

const TONES = { error: 'bad', critical: 'bad', warning: 'warn', info: '' };

function problemList(found) {
  if (found.length === 0) return null;
  return [
    h('h2', null, plural(found.length, 'problem')),
    found.map((problem) => {
      const tone = TONES[problem.severity] ?? 'warn';
      return h(
        'div',
        { class: ['notice', tone] },
        icon(tone === 'bad' ? 'error' : tone === 'warn' ? 'warning' : 'info', problem.severity),
        h(
          'div',
          { class: 'stack' },
          h('strong', { class: 'break' }, visible(problem.subject)),
          h('span', { class: 'break' }, visible(problem.message)),
          problem.nextStep && h('span', { class: 'soft break' }, visible(problem.nextStep)),
        ),
      );
    }),
  ];
}

function noPool() {
  return h(
    'div',
    { class: 'empty' },
    icon('dataset'),
    h('h1', null, 'No pool'),
    h(
      'p',
      null,
      'This server has no pool, or your token is for none. Create one, then name it to the server:',
    ),
    h('pre', null, 'zerofs-csi pool create --pool s3://BUCKET/PREFIX'),
  );
}

function notOpen(pool) {
  return h(
    'div',
    { class: 'empty card' },
    icon('clock'),
    h('h2', null, 'The pool is not open yet'),
    h('p', { class: 'break' }, visible(pool.waiting)),
    h(
      'p',
      null,
      'The server tries again by itself. Check the store, its address and the credentials.',
    ),
  );
}

function empty(pool) {
  return h(
    'div',
    { class: 'empty card' },
    icon('dataset'),
    h('h2', null, 'No datasets yet'),
    h(
      'p',
      null,
      'A dataset is a file system in this pool. Claims of Kubernetes make them; so does this page, and the command:',
    ),
    h('pre', null, `zerofs-csi dataset create documents --size 20Gi`),
    may('admin') &&
      h('button', { class: 'primary', onclick: () => createDialog(pool) }, 'Create a dataset'),
  );
}

function table(pool, datasets, here) {
  const rows = datasets.map((dataset) => {
    const at = { pool, dataset: dataset.name };
    return h(
      'a',
      { class: 'dataset-row', href: link('dataset', at) },
      h('span', { class: 'dataset-icon' }, icon('dataset')),
      h(
        'span',
        { class: 'stack dataset-name' },
        h(
          'span',
          { class: 'row' },
          h('bdi', { class: 'strong clip' }, visible(dataset.name)),
          tags(dataset, here),
        ),
        h('span', { class: 'soft small clip' }, about(dataset)),
      ),
      usage(dataset),
      newest(dataset),
      icon('right'),
    );
  });
  return h('nav', { class: 'card flush dataset-list', 'aria-label': 'Datasets' }, rows);
}

export function tags(dataset, pool) {
  return [
    dataset.name === pool?.defaultDataset && h('span', { class: 'tag accent' }, 'default'),
    dataset.readOnly && h('span', { class: 'tag' }, 'read-only'),
    dataset.state && dataset.state !== 'ready' && h('span', { class: 'tag warn' }, dataset.state),
  ];
}

function about(dataset) {
  const said = [];
  if (dataset.origin) said.push(`clone of ${visible(dataset.origin)}`);
  said.push(dataset.owner ? `in use on ${visible(dataset.owner)}` : 'not in use');
  return said.join(' · ');
}

export function usage(dataset) {
  const part = percent(dataset.usedBytes ?? 0, dataset.sizeBytes);
  const tone = part > 95 ? 'bad' : part > 85 ? 'warn' : '';
  const quota = dataset.sizeBytes === null ? 'no quota' : `${bytes(dataset.sizeBytes)} quota`;
  // Only a dataset that this server has open says how much of it is used.
  if (dataset.usedBytes === null)
    return h('span', { class: 'usage' }, h('span', { class: 'small soft' }, quota));
  const text =
    dataset.sizeBytes === null
      ? `${bytes(dataset.usedBytes)}, no quota`
      : `${bytes(dataset.usedBytes)} of ${bytes(dataset.sizeBytes)}`;
  return h(
    'span',
    { class: 'usage' },
    h('span', { class: 'small' }, text),
    h(
      'span',
      { class: ['meter', tone], 'aria-hidden': 'true' },
      h('i', { style: { width: `${part}%` } }),
    ),
  );
}

function newest(dataset) {
  const time = dataset.newestSnapshot;
  return h(
    'span',
    { class: 'dataset-snapshots small' },
    h(
      'span',
      null,
      dataset.snapshotCount > 0
        ? plural(dataset.snapshotCount, 'snapshot')
        : h('span', { class: 'soft' }, 'no snapshots'),
    ),
    time && h('span', { class: 'soft' }, 'newest ', timeElement(time, ago)),
  );
}

const SIZE = /^\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)i?B?\s*$/i;

/** Bytes of "20Gi"; null if it is no size. */
export function parseSize(text) {
  const found = SIZE.exec(text);
  if (!found) return null;
  return Math.round(Number(found[1]) * 1024 ** ' KMGTP'.indexOf(found[2].toUpperCase() || ' '));
}

function createDialog(pool) {
  const said = h('div');
  const name = h('input', {
    type: 'text',
    id: 'new-name',
    required: true,
    autocomplete: 'off',
    spellcheck: 'false',
  });
  const size = h('input', { type: 'text', id: 'new-size', required: true, value: '20Gi' });
  const submit = async (event) => {
    event.preventDefault();
    const sizeBytes = parseSize(size.value);
    if (sizeBytes === null)
      return replace(
        said,
        trouble({ message: `${size.value} is no size: write 500Mi, 20Gi or 1.5Ti`, status: 400 }),
      );
    try {
      await api.createDataset(pool, { name: name.value, sizeBytes });
      shown.close();
      toast(`Created ${name.value}`);
      await go(link('dataset', { pool, dataset: name.value }));
    } catch (error) {
      replace(said, trouble(error));
    }
  };
  const shown = dialog(
    'New dataset',
    h(
      'form',
      { class: 'body', onsubmit: submit },
      said,
      h('div', { class: 'field' }, h('label', { for: 'new-name' }, 'Name'), name),
      h(
        'div',
        { class: 'field' },
        h('label', { for: 'new-size' }, 'Size, at most'),
        size,
        h('span', { class: 'soft small' }, 'It takes no room until files are written.'),
      ),
      h(
        'div',
        { class: 'actions' },
        h('button', { type: 'button', onclick: () => shown.close() }, 'Cancel'),
        h('button', { class: 'primary' }, 'Create'),
      ),
    ),
  );
  name.focus();
}
