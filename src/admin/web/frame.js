// The heading of a dataset's views: its name, and the ways to look at it.

import { h, icon } from './dom.js';
import { visible } from './paths.js';
import { link } from './router.js';

const TABS = [
  ['dataset', 'Timeline'],
  ['files', 'Files'],
  ['search', 'Search'],
  ['changes', 'Changes'],
  ['policy', 'Policy'],
];

export function frame(at, current, ...actions) {
  const here = { pool: at.pool, dataset: at.dataset };
  return h(
    'header',
    { class: 'frame' },
    h(
      'div',
      { class: 'row apart wrap' },
      h('h1', { class: 'row' }, icon('dataset'), h('bdi', { class: 'break' }, visible(at.dataset))),
      h('div', { class: 'row frame-actions' }, actions),
    ),
    h(
      'nav',
      { class: 'tabs', 'aria-label': 'Dataset' },
      TABS.map(([page, title]) =>
        h('a', { href: link(page, here), 'aria-current': page === current ? 'page' : null }, title),
      ),
    ),
  );
}
