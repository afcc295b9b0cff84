// A dataset at a glance: find a file, its facts, its snapshots in time.

import * as api from './api.js';
import { h, icon } from './dom.js';
import { bytes, count, plural, timeElement, when } from './format.js';
import { frame } from './frame.js';
import { tags, usage } from './home.js';
import { fromText, visible } from './paths.js';
import { changeDialog, renameDialog } from './properties.js';
import { go, link } from './router.js';
import { may, poolOf } from './shell.js';
import { snapshotDialog } from './snapshots.js';
import { timeline } from './timeline.js';

export async function view(given, signal) {
  const at = { pool: poolOf(given), dataset: given.dataset };
  const [dataset, snapshots, pools] = await Promise.all([
    api.dataset(at, signal),
    api.snapshots(at),
    api.pools(),
  ]);
  const pool = pools.find((one) => one.name === at.pool);
  const node = [
    frame(
      at,
      'dataset',
      may('restorer') &&
        h('button', { onclick: () => snapshotDialog(at) }, icon('camera'), 'Take a snapshot'),
      h('a', { class: 'button primary', href: link('files', at) }, icon('folder'), 'Browse files'),
    ),
    finder(at),
    h(
      'section',
      null,
      h('h2', null, snapshots.length > 0 ? plural(snapshots.length, 'snapshot') : 'Snapshots'),
      snapshots.length > 0 ? timeline(at, snapshots) : noSnapshots(at),
    ),
    h('section', null, propertiesHeading(at, dataset, pool), facts(dataset, pool)),
  ];
  return { title: at.dataset, node };
}

/** File first: a path leads to its versions, a name to a search. */
function finder(at) {
  const input = h('input', {
    type: 'search',
    id: 'finder',
    'data-search': true,
    placeholder: 'A name, or a path like /reports/2026.xlsx',
    autocomplete: 'off',
    spellcheck: 'false',
  });
  const submit = (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (text.startsWith('/')) go(link('file', { ...at, path: fromText(text) }));
    else if (text) go(link('search', { ...at, pattern: text, everywhere: 'yes' }));
  };
  return h(
    'form',
    { class: 'card finder', role: 'search', onsubmit: submit },
    h('label', { for: 'finder', class: 'strong' }, 'Looking for a file?'),
    h(
      'div',
      { class: 'row' },
      h('div', { class: 'searchbox' }, icon('search'), input),
      h('button', { class: 'primary' }, 'Find'),
    ),
    h(
      'p',
      { class: 'soft small' },
      'Deleted and overwritten files are found too: in every snapshot that still has them.',
    ),
  );
}

function propertiesHeading(at, dataset, pool) {
  const isDefault = dataset.name === pool?.defaultDataset;
  return h(
    'div',
    { class: 'row apart wrap' },
    h('h2', null, 'Properties'),
    may('admin') &&
      h(
        'div',
        { class: 'row' },
        h('button', { onclick: () => changeDialog(at, dataset, isDefault) }, 'Change properties'),
        h('button', { onclick: () => renameDialog(at) }, 'Rename'),
      ),
  );
}

function facts(dataset, pool) {
  const items = [
    ['Used', usage(dataset)],
    ['Created', timeElement(dataset.created, when)],
    ['Origin', dataset.origin && h('bdi', { class: 'break' }, visible(dataset.origin))],
    ['Open on', dataset.owner ? visible(dataset.owner) : 'no node'],
    ['Record size', bytes(dataset.recordBytes)],
    ['Compression', dataset.compression],
    ['Sync', dataset.sync ?? 'by access modes'],
    ['Folder .snapshots', dataset.snapdir],
    ['Inode quota', dataset.quotaInodes && count(dataset.quotaInodes)],
    ['Reads', dataset.maxReadBandwidth && `at most ${bytes(dataset.maxReadBandwidth)}/s`],
    ['Writes', dataset.maxWriteBandwidth && `at most ${bytes(dataset.maxWriteBandwidth)}/s`],
    ['Reads and writes', dataset.maxIops && `at most ${count(dataset.maxIops)}/s`],
  ];
  const marks = tags(dataset, pool).filter(Boolean);
  return h(
    'dl',
    { class: 'facts card' },
    marks.length > 0 && h('div', null, h('dt', null, 'State'), h('dd', { class: 'row' }, marks)),
    items
      .filter(([, value]) => value)
      .map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value))),
  );
}

function noSnapshots(at) {
  return h(
    'div',
    { class: 'empty card' },
    icon('camera'),
    h('h2', null, 'No snapshots yet'),
    h(
      'p',
      null,
      'A snapshot takes a moment and no extra room. From then on every file can be brought back as it was.',
    ),
    may('restorer')
      ? h(
          'button',
          { class: 'primary', onclick: () => snapshotDialog(at) },
          'Take the first snapshot',
        )
      : h('pre', null, `zerofs-csi dataset snapshot ${at.dataset} NAME --readonly`),
  );
}
