// Space: what is stored, what deduplication and compression save, which dataset holds how much.

import * as api from './api.js';
import { h, icon, replace } from './dom.js';
import { bar, legend } from './charts.js';
import { bytes, plural, timeElement } from './format.js';
import { trouble } from './failure.js';
import { visible } from './paths.js';
import { link } from './router.js';
import { poolOf } from './shell.js';

export async function view(given, signal) {
  const pool = poolOf(given);
  const measured = h(
    'p',
    { class: 'soft' },
    'Reads a row of every dataset for each of its packs; kept for ten minutes.',
  );
  const body = h('div', { class: 'stack wide' });
  const again = h('button', { onclick: () => load(true, false) }, 'Measure again');
  const exactly = h(
    'button',
    { onclick: () => load(true, true), title: 'Reads every extent: slow for large datasets' },
    'Measure exactly',
  );
  const load = async (refresh, exact) => {
    again.disabled = exactly.disabled = true;
    replace(
      body,
      h('div', { class: 'empty card', role: 'status' }, icon('clock'), h('p', null, 'Measuring…')),
    );
    try {
      const space = await measure(pool, { refresh, exact }, signal);
      replace(
        measured,
        'Measured ',
        timeElement(space.measuredAt),
        space.accuracy === 'estimate' && ' · some figures are estimates',
      );
      replace(body, totals(space), space.datasets.length === 0 ? nothing() : datasets(pool, space));
    } catch (error) {
      if (error.name !== 'AbortError')
        replace(
          body,
          trouble(error, () => load(refresh, exact)),
        );
    }
    again.disabled = exactly.disabled = false;
  };
  load(false, false);
  return {
    title: 'Space',
    node: [
      h(
        'div',
        { class: 'row apart wrap' },
        h('div', { class: 'stack' }, h('h1', null, 'Space'), measured),
        h('div', { class: 'row wrap' }, again, exactly),
      ),
      body,
    ],
  };
}

/** The server answers 503 while a long measurement goes on. */
async function measure(pool, { refresh, exact }, signal) {
  for (;;) {
    try {
      return await api.space(pool, { refresh, exact }, signal);
    } catch (error) {
      if (error.status !== 503 || error.type !== 'urn:zerofs-csi:too-slow') throw error;
      refresh = false;
    }
  }
}

function nothing() {
  return h(
    'div',
    { class: 'empty card' },
    icon('dataset'),
    h('h2', null, 'Nothing is stored yet'),
    h('p', null, 'Once datasets hold files, this shows what each of them takes.'),
  );
}

const ratio = (value) => (Number.isFinite(value) && value > 0 ? `${value.toFixed(2)} ×` : '–');

function totals(space) {
  const tile = (title, value, about) =>
    h(
      'div',
      { class: 'tile' },
      h('dt', null, title),
      h('dd', null, value),
      h('dd', { class: 'soft small' }, about),
    );
  const whole = Math.max(space.logicalBytes, space.storedBytes);
  const line = (title, value, tone) =>
    h(
      'div',
      { class: 'scale-row' },
      h('span', { class: 'small strong' }, title),
      bar([{ value, tone, title: bytes(value) }], whole, `${title}: ${bytes(value)}`),
      h('span', { class: 'small number' }, bytes(value)),
    );
  return h(
    'section',
    { class: 'card' },
    h(
      'dl',
      { class: 'tiles' },
      tile('Stored', bytes(space.storedBytes), 'in the object store, with databases'),
      tile(
        'Deduplication',
        ratio(space.dedupRatio),
        space.dedupRatio ? 'equal data stored once' : 'not known without an exact measurement',
      ),
      tile(
        'Compression',
        ratio(space.compressionRatio),
        space.compressionRatio ? 'of what is stored' : 'not known without an exact measurement',
      ),
    ),
    h(
      'div',
      { class: 'stack' },
      line('Files', space.logicalBytes, 'soft'),
      line('Stored', space.storedBytes, 'accent'),
    ),
  );
}

/** A dataset and its snapshots by name: what the head refers to, what only it has, what only snapshots have. */
function grouped(list) {
  const groups = new Map();
  for (const one of list) {
    const [dataset, snapshot] = one.name.split('@');
    const group = groups.get(dataset) ?? {
      dataset,
      referenced: 0,
      unique: 0,
      past: 0,
      snapshots: 0,
    };
    if (snapshot === undefined)
      Object.assign(group, { referenced: one.referencedBytes, unique: one.uniqueBytes });
    else {
      group.past += one.uniqueBytes;
      group.snapshots += 1;
    }
    groups.set(dataset, group);
  }
  return [...groups.values()].sort((a, b) => b.referenced + b.past - a.referenced - a.past);
}

function datasets(pool, space) {
  const groups = grouped(space.datasets);
  const largest = Math.max(...groups.map((one) => one.referenced + one.past), 1);
  const rows = groups.map((one) => {
    const shared = Math.max(0, one.referenced - one.unique);
    const parts = [
      ['accent', one.unique, 'only here'],
      ['soft', shared, 'shared'],
      ['past', one.past, 'only in a snapshot'],
    ];
    const text =
      parts
        .filter(([, value]) => value > 0)
        .map(([, value, about]) => `${bytes(value)} ${about}`)
        .join(', ') || 'empty';
    return h(
      'div',
      { class: 'space-row' },
      h(
        'a',
        { class: 'clip', href: link('dataset', { pool, dataset: one.dataset }) },
        h('bdi', null, visible(one.dataset)),
      ),
      bar(
        parts.map(([tone, value, about]) => ({ value, tone, title: `${bytes(value)} ${about}` })),
        largest,
        `${one.dataset}: ${text}`,
      ),
      h(
        'span',
        { class: 'small' },
        h('strong', null, bytes(one.referenced)),
        h(
          'span',
          { class: 'soft' },
          one.snapshots > 0 ? ` · ${plural(one.snapshots, 'snapshot')} ${bytes(one.past)}` : '',
        ),
      ),
    );
  });
  return h(
    'section',
    null,
    h(
      'div',
      { class: 'row apart wrap' },
      h('h2', null, 'By dataset'),
      legend([
        ['accent', 'only here: deleting it frees this'],
        ['soft', 'shared'],
        ['past', 'only in one snapshot'],
      ]),
    ),
    h('div', { class: 'card space-rows' }, rows),
  );
}
