// Search by name: in one moment, or in every snapshot, where deleted files still are.

import * as api from './api.js';
import { announce, h, icon, replace } from './dom.js';
import { bytes, count, plural, timeElement, when } from './format.js';
import { trouble } from './failure.js';
import { frame } from './frame.js';
import { isFolder, kindIcon } from './kinds.js';
import { base, parent, pathOf, shown, visible } from './paths.js';
import { picker } from './picker.js';
import { go, link } from './router.js';
import { poolOf } from './shell.js';
import { shortName } from './snapshots.js';

/** Hits that one search shows. */
const HITS_MAX = 1000;

export async function view(given, signal) {
  const at = { pool: poolOf(given), dataset: given.dataset };
  const everywhere = given.everywhere === 'yes';
  const snapshots = await api.snapshots(at);
  const input = h('input', {
    type: 'search',
    'data-search': true,
    value: given.pattern ?? '',
    placeholder: 'Part of a name, or *.pdf',
    'aria-label': 'Name',
    autocomplete: 'off',
    spellcheck: 'false',
  });
  const ask = (values) =>
    go(
      link('search', {
        ...at,
        pattern: input.value.trim(),
        snapshot: given.snapshot,
        everywhere: everywhere ? 'yes' : null,
        ...values,
      }),
    );
  const scope = (value, title) =>
    h(
      'label',
      { class: 'choice' },
      h('input', {
        type: 'radio',
        name: 'scope',
        checked: everywhere === value,
        onchange: () => ask({ everywhere: value ? 'yes' : null }),
      }),
      h('span', null, title),
    );
  const result = h('section', { 'aria-label': 'Found' });
  const node = [
    frame(at, 'search'),
    h(
      'form',
      {
        class: 'stack wide',
        role: 'search',
        onsubmit: (event) => {
          event.preventDefault();
          ask({});
        },
      },
      h(
        'div',
        { class: 'row' },
        h('div', { class: 'searchbox' }, icon('search'), input),
        h('button', { class: 'primary' }, 'Search'),
      ),
      h(
        'fieldset',
        { class: 'row wrap' },
        h('legend', { class: 'unseen' }, 'Where'),
        scope(true, `Now and in all snapshots (${count(snapshots.length)})`),
        scope(false, 'In one moment:'),
        !everywhere &&
          picker({
            snapshots,
            current: given.snapshot,
            label: 'Search in',
            choose: (snapshot) => ask({ snapshot }),
          }),
      ),
    ),
    result,
  ];
  if (given.pattern) search(at, given, snapshots, everywhere, result, signal);
  else
    replace(
      result,
      h(
        'div',
        { class: 'empty' },
        icon('search'),
        h('h2', null, 'Find a file by its name'),
        h('p', null, 'Part of a name is enough. * stands for any letters: *.pdf, report-*-final.'),
      ),
    );
  return {
    title: given.pattern ? `${given.pattern} · search` : 'Search',
    node,
    ready: () => {
      if (!given.pattern) input.focus();
    },
  };
}

async function search(at, given, snapshots, everywhere, result, signal) {
  replace(result, h('p', { class: 'soft row', role: 'status' }, 'Searching…'));
  try {
    const values = {
      pattern: given.pattern,
      limit: HITS_MAX,
      snapshot: everywhere ? null : given.snapshot,
      allSnapshots: everywhere ? 'true' : null,
    };
    const found = await api.find(at, values, signal);
    show(at, given, snapshots, everywhere, result, found);
  } catch (error) {
    if (error.name !== 'AbortError')
      replace(
        result,
        trouble(error, () => search(at, given, snapshots, everywhere, result, signal)),
      );
  }
}

/** Hits of one path in many snapshots are one row. */
function grouped(hits, dataset, order) {
  const groups = new Map();
  for (const hit of hits) {
    const path = pathOf(hit);
    const snapshot = shortName(hit.snapshot, dataset);
    const group = groups.get(path) ?? {
      path,
      kind: hit.kind,
      live: false,
      seen: [],
      newest: hit,
      rank: -1,
    };
    const rank = snapshot === null ? Infinity : (order.get(snapshot) ?? 0);
    if (snapshot === null) group.live = true;
    else group.seen.push(snapshot);
    if (rank > group.rank) Object.assign(group, { newest: hit, rank, snapshot });
    groups.set(path, group);
  }
  return [...groups.values()];
}

function show(at, given, snapshots, everywhere, result, found) {
  const hits = found.items;
  const order = new Map(snapshots.map((one, index) => [one.name, index]));
  const groups = grouped(hits, at.dataset, order);
  announce(plural(groups.length, 'result'));
  const partial = found.truncated;
  if (groups.length === 0) {
    return replace(
      result,
      h(
        'div',
        { class: 'empty card' },
        icon('search'),
        h('h2', null, 'Nothing has this name'),
        h(
          'p',
          null,
          everywhere
            ? 'Neither the dataset nor a snapshot has it. Try a shorter part of the name, or *.'
            : 'It may have been deleted, or have come later: search in all snapshots.',
        ),
        !everywhere &&
          snapshots.length > 0 &&
          h(
            'a',
            {
              class: 'button primary',
              href: link('search', { ...at, pattern: given.pattern, everywhere: 'yes' }),
            },
            'Search in all snapshots',
          ),
      ),
    );
  }
  const moment = (group) => {
    if (!everywhere) return timeElement(group.newest.modified);
    const newest = snapshots[order.get(group.snapshot)];
    return group.live
      ? [
          h('span', { class: 'tag good' }, 'there now'),
          group.seen.length > 0 &&
            h('span', { class: 'soft small' }, plural(group.seen.length, 'snapshot')),
        ]
      : [
          h('span', { class: 'tag bad' }, 'deleted'),
          h(
            'span',
            { class: 'soft small' },
            newest
              ? ['last seen ', timeElement(newest.created, when)]
              : `in ${plural(group.seen.length, 'snapshot')}`,
          ),
        ];
  };
  replace(
    result,
    h(
      'p',
      { class: 'soft', role: 'status' },
      partial
        ? `The first ${plural(groups.length, 'result')}. A longer name finds fewer.`
        : plural(groups.length, 'result'),
    ),
    h(
      'ul',
      { class: 'card flush results' },
      groups.map((group) =>
        h(
          'li',
          null,
          h(
            'a',
            { class: 'result', href: target(at, group) },
            kindIcon(group.kind),
            h(
              'span',
              { class: 'stack grow' },
              h('bdi', { class: 'strong break two-lines' }, shown(base(group.path))),
              h('bdi', { class: 'soft small break two-lines' }, shown(parent(group.path))),
            ),
            h(
              'span',
              { class: 'soft small wide-only' },
              isFolder(group.kind) ? visible(group.kind) : bytes(group.newest.size),
            ),
            h('span', { class: 'stack end' }, moment(group)),
          ),
        ),
      ),
    ),
  );
}

function target(at, group) {
  const there = { ...at, path: group.path, snapshot: group.snapshot ?? null };
  return isFolder(group.kind)
    ? link('files', there)
    : link('file', { ...there, snapshot: group.snapshot ?? '@live' });
}
