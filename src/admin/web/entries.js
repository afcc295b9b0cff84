// Entries of a folder as rows of a list: their columns and their order.

import { h } from './dom.js';
import { bytes, plural, timeElement, when } from './format.js';
import { isFolder, isLink, kindIcon } from './kinds.js';
import { naturalKey } from './list.js';
import { nameOf, visible } from './paths.js';

/** The order that was chosen last, for all folders. */
const sorting = { by: 'name', down: false };

/** Chooses a column, or turns its order round. */
export function sortBy(by) {
  sorting.down = sorting.by === by ? !sorting.down : by !== 'name';
  sorting.by = by;
  return sorting.down ? 'descending' : 'ascending';
}

export function rowOf(entry) {
  const text = visible(entry.name);
  return { entry, key: nameOf(entry), text, order: naturalKey(text), first: isFolder(entry.kind) };
}

/** The rows whose names have `wanted` in them, folders first, in the chosen order. */
export function arranged(rows, wanted) {
  const text = wanted.toLowerCase();
  const seen = text ? rows.filter((row) => row.text.toLowerCase().includes(text)) : [...rows];
  const sign = sorting.down ? -1 : 1;
  const byName = (a, b) => (a.order < b.order ? -1 : a.order > b.order ? 1 : 0);
  const value = {
    size: (row) => (row.first ? -1 : row.entry.size),
    time: (row) => row.entry.modified,
  };
  const of = value[sorting.by];
  const compare = (a, b) => {
    if (a.first !== b.first) return a.first ? -1 : 1;
    if (!of) return sign * byName(a, b);
    const [x, y] = [of(a), of(b)];
    return x === y ? byName(a, b) : x < y ? -sign : sign;
  };
  return seen.sort(compare);
}

/** The heading; its buttons call `choose` with the name of a column. */
export function heading(choose) {
  const column = (by, title) => {
    const order = sorting.by !== by ? 'none' : sorting.down ? 'descending' : 'ascending';
    const arrow = { none: '', descending: '↓', ascending: '↑' }[order];
    const mark = h('span', { class: 'sort-mark', 'aria-hidden': 'true' }, arrow);
    const button = h('button', { class: 'quiet', onclick: () => choose(by) }, title, mark);
    return h('span', { role: 'columnheader', class: `cell-${by}`, 'aria-sort': order }, button);
  };
  const ticked = h('span', { class: 'unseen' }, 'Ticked');
  const row = h(
    'div',
    { role: 'row', class: 'list-row-head', 'aria-rowindex': 1 },
    h('span', { role: 'columnheader', class: 'cell-tick' }, ticked),
    column('name', 'Name'),
    column('size', 'Size'),
    column('time', 'Modified'),
  );
  return h('div', { class: 'list-head', role: 'rowgroup' }, row);
}

export function cells({ entry, text }) {
  const target = isLink(entry.kind) && entry.target && ` → ${visible(entry.target)}`;
  const size = isFolder(entry.kind) ? plural(entry.size, 'item') : bytes(entry.size);
  const name = h('bdi', { class: 'clip', title: text }, text);
  return [
    h(
      'span',
      { role: 'gridcell', class: 'cell-name' },
      kindIcon(entry.kind),
      name,
      target && h('span', { class: 'soft clip link-target' }, target),
    ),
    h('span', { role: 'gridcell', class: 'cell-size' }, size),
    h('span', { role: 'gridcell', class: 'cell-time' }, timeElement(entry.modified, when)),
  ];
}
