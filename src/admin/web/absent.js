// The text of a list without files, and where to look instead.

import { h, icon } from './dom.js';
import { parent, shown } from './paths.js';
import { link } from './router.js';

/** A path that leads to nothing here may have led to something in another snapshot. */
export function absent(at) {
  const everywhere = { pool: at.pool, dataset: at.dataset };
  return h(
    'div',
    { class: 'empty card', role: 'alert' },
    icon('search'),
    h('h2', null, at.snapshot ? 'Not in this snapshot' : 'Not there now'),
    h(
      'p',
      { class: 'break' },
      h('bdi', null, shown(at.path)),
      ' leads to nothing here. Another snapshot may have it.',
    ),
    h(
      'div',
      { class: 'row' },
      h(
        'a',
        { class: 'button primary', href: link('file', { ...everywhere, path: at.path }) },
        'Look in all snapshots',
      ),
      h(
        'a',
        { class: 'button', href: link('files', { ...at, path: parent(at.path) }) },
        'Folder above',
      ),
    ),
  );
}

/** A folder without entries, or without any that match; `newest` is the newest snapshot. */
export function nothing(at, wanted, newest) {
  if (wanted) {
    return [
      icon('search'),
      h('h2', null, 'No name here matches'),
      h('p', null, 'Search looks into every folder, and into snapshots.'),
      h(
        'a',
        {
          class: 'button',
          href: link('search', {
            pool: at.pool,
            dataset: at.dataset,
            pattern: wanted,
            everywhere: 'yes',
          }),
        },
        `Search everywhere for “${wanted}”`,
      ),
    ];
  }
  return [
    icon('folder'),
    h('h2', null, 'This folder is empty'),
    h(
      'p',
      null,
      at.snapshot
        ? 'It was empty when the snapshot was taken.'
        : 'If something should be here, an older snapshot may still have it.',
    ),
    !at.snapshot &&
      newest &&
      h(
        'a',
        {
          class: 'button',
          href: link('files', { ...at, snapshot: newest.name }),
        },
        'Look in the newest snapshot',
      ),
  ];
}
