// Keyboard shortcuts, and the dialog that lists them.

import { dialog, h } from './dom.js';

const KEYS = [
  [
    'Anywhere',
    [
      ['?', 'This help'],
      ['/', 'Search'],
      ['g then d', 'Datasets'],
      ['g then s', 'Space'],
      ['g then a', 'Activity'],
    ],
  ],
  [
    'In a list of files',
    [
      ['↑ ↓', 'Move'],
      ['Home End', 'First, last'],
      ['Enter', 'Open'],
      ['Backspace', 'Folder above'],
      ['Space', 'Tick'],
      ['Shift ↑ ↓', 'Tick several'],
      ['Ctrl A', 'Tick all'],
      ['a–z', 'Jump to a name'],
      ['[ ]', 'Older or newer snapshot'],
      ['Esc', 'Clear ticks'],
    ],
  ],
  [
    'In a tree or timeline',
    [
      ['← →', 'Close, open'],
      ['Enter', 'Follow'],
    ],
  ],
];

export function help() {
  if (document.querySelector('dialog')) return;
  dialog(
    'Keyboard shortcuts',
    h(
      'div',
      { class: 'body' },
      KEYS.map(([title, keys]) =>
        h(
          'section',
          null,
          h('h3', null, title),
          h(
            'dl',
            { class: 'keys' },
            keys.map(([key, does]) => [
              h(
                'dt',
                null,
                key.split(' ').map((one) => (one === 'then' ? ' then ' : h('kbd', null, one))),
              ),
              h('dd', null, does),
            ]),
          ),
        ),
      ),
    ),
  );
}

const typing = (target) =>
  target.closest?.('input:not([type=checkbox]):not([type=radio]), textarea, select, dialog');

export function shortcuts(showHelp) {
  let before = '';
  document.addEventListener('keydown', (event) => {
    if (
      event.defaultPrevented ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      typing(event.target)
    )
      return;
    const pair = before === 'g' ? { d: '/', s: '/space', a: '/tasks' }[event.key] : null;
    before = event.key;
    if (event.key === '?') showHelp();
    else if (event.key === '/') document.querySelector('[data-search]')?.focus();
    else if (pair) document.querySelector(`#shell nav a[href^="${pair}"]`)?.click();
    else return;
    event.preventDefault();
  });
}
