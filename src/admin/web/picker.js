// Chooses the moment a view looks at: now, or a snapshot. A button opens a list by day with a
// filter; arrows beside it step to the next older or newer one.

import { dialog, h, icon } from './dom.js';
import { ago, dayTitle, hour, plural, when } from './format.js';
import { visible } from './paths.js';
import { byDay } from './timeline.js';

/** More are found by typing. */
const SHOWN_MAX = 400;

/** `choose(name)` is called with a snapshot's name, or null for now. */
export function picker({ snapshots, current, choose, label = 'Viewing', live = true }) {
  const index = snapshots.findIndex((one) => one.name === current);
  const chosen = snapshots[index];
  const older = index < 0 ? (current ? -1 : snapshots.length - 1) : index - 1;
  const newer = index < 0 ? -1 : index + 1;
  const stepTo = (at) => (at < snapshots.length ? choose(snapshots[at].name) : choose(null));
  const mayNewer = newer > 0 || index === 0 ? newer < snapshots.length || live : false;
  const step = (name, words, possible, at) =>
    h(
      'button',
      {
        class: 'icon-only',
        'aria-label': words,
        title: words,
        disabled: !possible,
        'data-step': name,
        onclick: () => stepTo(at),
      },
      icon(name),
    );
  const text = chosen
    ? [
        h('bdi', { class: 'strong clip' }, visible(chosen.name)),
        h(
          'span',
          { class: 'soft clip wide-only' },
          `${when(chosen.created)} · ${ago(chosen.created)}`,
        ),
      ]
    : current
      ? h('strong', null, visible(current))
      : [h('strong', null, 'Now'), h('span', { class: 'soft clip wide-only' }, 'the live dataset')];
  return h(
    'div',
    { class: 'picker row', role: 'group', 'aria-label': label },
    step('left', 'Older snapshot', older >= 0, older),
    h(
      'button',
      {
        class: 'picker-open',
        'aria-haspopup': 'dialog',
        onclick: () => choices(snapshots, current, choose, live),
      },
      icon('clock'),
      h('span', { class: 'unseen' }, `${label}: `),
      text,
      icon('down'),
    ),
    step('right', 'Newer snapshot', mayNewer, newer),
  );
}

function choices(snapshots, current, choose, live) {
  const list = h('ul', { class: 'choices' });
  const filter = h('input', {
    type: 'search',
    placeholder: 'Filter by name or date',
    'aria-label': 'Filter snapshots',
    autocomplete: 'off',
  });
  const pick = (name) => {
    shown.close();
    choose(name);
  };
  const option = (name, title, detail) =>
    h(
      'li',
      null,
      h(
        'button',
        {
          class: ['choice-row', name === (current ?? null) && 'current'],
          'aria-current': name === (current ?? null) ? 'true' : null,
          onclick: () => pick(name),
        },
        h('bdi', { class: 'clip' }, title),
        h('span', { class: 'soft small' }, detail),
      ),
    );
  const draw = () => {
    const wanted = filter.value.trim().toLowerCase();
    const matching = snapshots.filter(
      (one) =>
        !wanted ||
        `${one.name} ${when(one.created)} ${dayTitle(one.created)}`.toLowerCase().includes(wanted),
    );
    const seen = matching.slice(-SHOWN_MAX);
    list.replaceChildren();
    if (live && !wanted) list.append(option(null, 'Now', 'the live dataset'));
    for (const group of byDay(seen)) {
      list.append(
        h(
          'li',
          { class: 'choice-day' },
          h('h3', null, dayTitle(group[0].created)),
          h(
            'ul',
            null,
            [...group]
              .reverse()
              .map((one) => option(one.name, visible(one.name), hour(one.created))),
          ),
        ),
      );
    }
    if (matching.length === 0)
      list.append(
        h(
          'li',
          { class: 'soft choice-none' },
          snapshots.length ? 'No snapshot has this name or date.' : 'There are no snapshots yet.',
        ),
      );
    if (seen.length < matching.length)
      list.append(
        h(
          'li',
          { class: 'soft choice-none' },
          `${plural(matching.length - seen.length, 'older one')}: type to find them.`,
        ),
      );
  };
  filter.addEventListener('input', draw);
  const shown = dialog(
    'Choose a moment',
    h('div', { class: 'body' }, h('div', { class: 'searchbox' }, icon('search'), filter), list),
  );
  shown.addEventListener('keydown', (event) => moveFocus(event, list, filter));
  draw();
  (list.querySelector('.current') ?? filter).focus();
}

/** Arrows move through the list, from the filter too. */
function moveFocus(event, list, filter) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by) return;
  const buttons = [...list.querySelectorAll('button')];
  const to = buttons.indexOf(document.activeElement) + by;
  event.preventDefault();
  if (to < 0) filter.focus();
  else buttons[Math.min(to, buttons.length - 1)]?.focus();
}
