// Snapshots in time: a strip over the whole span, then a list by day. Days with many snapshots are
// folded; their dots show when they were taken.

import { h, icon, svg } from './dom.js';
import { bytes, day, dayKey, dayTitle, hour, plural, timeElement, when } from './format.js';
import { visible } from './paths.js';
import { link } from './router.js';
import { may } from './shell.js';
import { deleteDialog } from './snapshots.js';

/** A day with more snapshots is folded. */
const FOLD_OVER = 4;
/** Days that are shown at first, and added by the button. */
const DAYS = 30;
const STRIP_WIDTH = 1000;
const STRIP_HEIGHT = 56;
const DAY_MS = 86400000;
/** Days that the strip has at least. */
const SPAN_MIN = 14;

/** Snapshots by local day, newest day first. */
export function byDay(snapshots) {
  const days = new Map();
  for (const snapshot of snapshots) {
    const key = dayKey(snapshot.created);
    if (!days.has(key)) days.set(key, []);
    days.get(key).push(snapshot);
  }
  return [...days.values()].reverse();
}

export function timeline(at, snapshots) {
  const days = byDay(snapshots);
  const list = h('ol', { class: 'days' });
  let shown = 0;
  const more = h('button', { onclick: () => grow() });
  const grow = (upTo = shown + DAYS) => {
    const first = shown;
    for (; shown < Math.min(upTo, days.length); shown += 1)
      list.append(dayItem(at, days[shown], shown === 0));
    more.hidden = shown >= days.length;
    more.textContent = `Show ${plural(Math.min(DAYS, days.length - shown), 'earlier day')}`;
    if (first > 0) list.children[first]?.querySelector('summary, a')?.focus();
  };
  const jump = (key) => {
    const index = days.findIndex((one) => dayKey(one[0].created) === key);
    if (index < 0) return;
    if (index >= shown) grow(index + 1);
    const item = list.children[index];
    const folded = item.querySelector('details');
    if (folded) folded.open = true;
    item.scrollIntoView({ block: 'center', behavior: 'smooth' });
    item.classList.remove('found');
    requestAnimationFrame(() => item.classList.add('found'));
  };
  grow(DAYS);
  return h('div', { class: 'stack wide' }, strip(days, jump), list, h('div', null, more));
}

/** The whole span: one bar a day, as high as the day has snapshots. A click goes to the day. */
function strip(days, jump) {
  const today = new Date().setHours(0, 0, 0, 0);
  const first = new Date(days.at(-1)[0].created).setHours(0, 0, 0, 0);
  const oldest = Math.min(first, today - (SPAN_MIN - 1) * DAY_MS);
  const span = Math.round((today - oldest) / DAY_MS) + 1;
  const most = Math.max(...days.map((one) => one.length));
  const width = STRIP_WIDTH / span;
  const bars = days.map((one) => {
    const index = Math.round((new Date(one[0].created).setHours(0, 0, 0, 0) - oldest) / DAY_MS);
    const tall = Math.max(6, (Math.sqrt(one.length) / Math.sqrt(most)) * (STRIP_HEIGHT - 8));
    const bar = svg(
      'rect',
      {
        class: 'strip-bar',
        x: index * width + width * 0.12,
        width: Math.max(1.5, width * 0.76),
        y: STRIP_HEIGHT - tall,
        height: tall,
        rx: Math.min(3, width * 0.3),
      },
      svg('title', null, `${day(one[0].created)}: ${plural(one.length, 'snapshot')}`),
    );
    bar.addEventListener('click', () => jump(dayKey(one[0].created)));
    return bar;
  });
  return h(
    'figure',
    { class: 'card strip' },
    svg(
      'svg',
      {
        viewBox: `0 0 ${STRIP_WIDTH} ${STRIP_HEIGHT}`,
        preserveAspectRatio: 'none',
        'aria-hidden': 'true',
      },
      svg('line', {
        class: 'strip-line',
        x1: 0,
        x2: STRIP_WIDTH,
        y1: STRIP_HEIGHT - 0.5,
        y2: STRIP_HEIGHT - 0.5,
      }),
      bars,
    ),
    h(
      'figcaption',
      { class: 'row apart soft small' },
      h('span', null, day(oldest)),
      h('span', null, 'Today'),
    ),
  );
}

function dayItem(at, snapshots, open) {
  const title = h('h3', null, dayTitle(snapshots[0].created));
  const rows = h(
    'ol',
    { class: 'snapshots' },
    [...snapshots].reverse().map((snapshot) => snapshotItem(at, snapshot)),
  );
  if (snapshots.length <= FOLD_OVER)
    return h(
      'li',
      { class: 'day card flush' },
      h('div', { class: 'day-head' }, title, dots(snapshots)),
      rows,
    );
  return h(
    'li',
    { class: 'day card flush' },
    h(
      'details',
      { open },
      h(
        'summary',
        { class: 'day-head' },
        icon('right'),
        title,
        dots(snapshots),
        h('span', { class: 'tag' }, plural(snapshots.length, 'snapshot')),
      ),
      rows,
    ),
  );
}

/** A day of 24 hours with a dot for each snapshot. */
function dots(snapshots) {
  const marks = snapshots.map((snapshot) => {
    const time = new Date(snapshot.created);
    const part = (time.getHours() * 60 + time.getMinutes()) / 1440;
    return svg(
      'circle',
      { class: ['dot', snapshot.writable && 'dot-writable'], cx: 6 + part * 228, cy: 8, r: 4 },
      svg('title', null, `${hour(time)} ${snapshot.name}`),
    );
  });
  return svg(
    'svg',
    { class: 'dots wide-only', viewBox: '0 0 240 16', 'aria-hidden': 'true' },
    svg('line', { class: 'strip-line', x1: 6, x2: 234, y1: 8, y2: 8 }),
    marks,
  );
}

function snapshotItem(at, snapshot) {
  const there = { ...at, snapshot: snapshot.name };
  const name = visible(snapshot.name);
  return h(
    'li',
    { class: 'snapshot-row' },
    h('span', { class: 'snapshot-time' }, timeElement(snapshot.created, hour)),
    h(
      'a',
      { class: 'strong clip snapshot-name', href: link('files', there) },
      h('bdi', null, name),
    ),
    h(
      'span',
      { class: 'row' },
      snapshot.writable && h('span', { class: 'tag move' }, 'writable'),
      snapshot.clones > 0 && h('span', { class: 'tag' }, plural(snapshot.clones, 'clone')),
    ),
    h('span', { class: 'soft small number wide-only' }, bytes(snapshot.referencedBytes)),
    h(
      'span',
      { class: 'row snapshot-actions' },
      h(
        'a',
        {
          class: 'button quiet',
          href: link('changes', { ...at, from: snapshot.name }),
          'aria-label': `Changes since ${name}, ${when(snapshot.created)}`,
        },
        icon('compare'),
        h('span', { class: 'wide-only' }, 'Changes since'),
      ),
      may('admin') &&
        h(
          'button',
          {
            class: 'quiet icon-only',
            'aria-label': `Delete ${name}`,
            title: 'Delete',
            onclick: () => deleteDialog(at, snapshot),
          },
          icon('trash'),
        ),
    ),
  );
}
