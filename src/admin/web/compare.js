// Two versions of a file, side by side: texts line by line, pictures next to each other.

import * as api from './api.js';
import { h, icon, replace } from './dom.js';
import { bytes, count, plural } from './format.js';
import { trouble } from './failure.js';
import { imageType } from './kinds.js';
import { compareLines, inner } from './lines.js';
import { visible } from './paths.js';
import { IMAGE_MAX, TEXT_MAX, decode, note, picture } from './preview.js';
import { link } from './router.js';
import { may } from './shell.js';

/** Equal lines that are shown around each change. */
const CONTEXT = 3;
/** Rows that are put into the page at once; a button adds as many. */
const ROWS_MAX = 4000;

export function comparison(at, [before, after], signal) {
  const body = h(
    'div',
    { class: 'preview' },
    h('p', { class: 'soft', role: 'status' }, 'Comparing…'),
  );
  const named = (version) => (version.live ? 'now' : visible(version.last));
  load(at, before, after, signal).then(
    (node) => replace(body, node),
    (error) => {
      if (error.name !== 'AbortError') replace(body, trouble(error));
    },
  );
  return [
    h(
      'div',
      { class: 'row apart wrap' },
      h(
        'h2',
        { class: 'row wrap' },
        icon('compare'),
        h('span', { class: 'tag bad' }, named(before)),
        '→',
        h('span', { class: 'tag good' }, named(after)),
      ),
      h(
        'a',
        {
          class: 'button',
          href: link('file', { ...at, snapshot: after.live ? '@live' : after.last }),
        },
        icon('close'),
        'Stop comparing',
      ),
    ),
    body,
  ];
}

async function load(at, before, after, signal) {
  if (!may('reader'))
    return note(
      'info',
      'Your role shows names and sizes, not contents. Ask for a token with the role reader.',
    );
  const type = imageType(at.path);
  const sides = [before, after].map((version) => ({ ...at, snapshot: version.last }));
  if (type && before.size <= IMAGE_MAX && after.size <= IMAGE_MAX)
    return pictures(sides, [before, after], type, signal);
  if (before.size > TEXT_MAX || after.size > TEXT_MAX) {
    return note(
      'file',
      `Texts up to ${bytes(TEXT_MAX)} are compared line by line; these have ${bytes(before.size)} and ${bytes(after.size)}. Download both to compare them.`,
    );
  }
  const read = async (side, version) =>
    version.size === 0 ? '' : decode(await api.content(side, TEXT_MAX, signal));
  const [a, b] = await Promise.all([read(sides[0], before), read(sides[1], after)]);
  if (a === null || b === null)
    return note(
      'file',
      `These are no texts: ${bytes(before.size)} before, ${bytes(after.size)} after. Download both to compare them.`,
    );
  if (a === b) return note('check', 'The content is the same. Only times or permissions differ.');
  return texts(compareLines(a, b));
}

async function pictures(sides, versions, type, signal) {
  const shown = await Promise.all(
    sides.map((side, index) =>
      versions[index].size === 0
        ? note('file', 'Empty')
        : picture(side, type, versions[index].size, signal),
    ),
  );
  return h(
    'div',
    { class: 'pictures' },
    shown.map((node, index) =>
      h(
        'div',
        { class: 'stack' },
        h(
          'h3',
          null,
          index === 0 ? 'Before' : 'After',
          h('span', { class: 'soft small' }, ` · ${bytes(versions[index].size)}`),
        ),
        node,
      ),
    ),
  );
}

function texts(lines) {
  const added = lines.filter((line) => line.kind === 'added').length;
  const removed = lines.filter((line) => line.kind === 'removed').length;
  const rows = folded(lines);
  const body = h('div', {
    class: 'lines',
    role: 'table',
    'aria-label': 'Differences',
    tabindex: '0',
  });
  const more = h('button', null, 'Show more');
  let shown = 0;
  const grow = () => {
    body.append(...rows.slice(shown, shown + ROWS_MAX).map((row) => row()));
    shown += ROWS_MAX;
    more.hidden = shown >= rows.length;
  };
  more.addEventListener('click', grow);
  grow();
  return [
    h(
      'p',
      { class: 'row' },
      h('span', { class: 'tag good' }, `+${count(added)}`),
      h('span', { class: 'tag bad' }, `−${count(removed)}`),
      h('span', { class: 'soft' }, plural(added + removed, 'changed line')),
    ),
    body,
    more,
  ];
}

/** Functions that make rows; long runs of equal lines become one that opens. */
function folded(lines) {
  const near = new Uint8Array(lines.length);
  lines.forEach((line, index) => {
    if (line.kind !== 'same') near.fill(1, Math.max(0, index - CONTEXT), index + CONTEXT + 1);
  });
  const pairs = paired(lines);
  const rows = [];
  for (let at = 0; at < lines.length;) {
    if (near[at]) {
      const index = at;
      rows.push(() => lineRow(lines[index], pairs.get(index)));
      at += 1;
      continue;
    }
    const start = at;
    while (at < lines.length && !near[at]) at += 1;
    const hidden = lines.slice(start, at);
    rows.push(() => gap(hidden));
  }
  return rows;
}

/** Runs of as many removed as added lines were changed one by one: what of each line differs. */
function paired(lines) {
  const pairs = new Map();
  for (let at = 0; at < lines.length; at += 1) {
    if (lines[at].kind !== 'removed') continue;
    const start = at;
    while (lines[at]?.kind === 'removed') at += 1;
    const half = at;
    while (lines[at]?.kind === 'added') at += 1;
    if (half - start === at - half) {
      for (let step = 0; step < half - start; step += 1) {
        const parts = inner(lines[start + step].text, lines[half + step].text);
        if (parts) {
          pairs.set(start + step, parts.before);
          pairs.set(half + step, parts.after);
        }
      }
    }
    at -= 1;
  }
  return pairs;
}

const SIGNS = { same: ' ', added: '+', removed: '−' };
const SPOKEN = { same: '', added: 'added', removed: 'removed' };

function lineRow(line, parts) {
  const text = parts
    ? [visible(parts[0]), h('mark', null, visible(parts[1])), visible(parts[2])]
    : visible(line.text);
  return h(
    'div',
    { class: ['line', line.kind], role: 'row' },
    h('span', { class: 'line-number', role: 'cell' }, line.before ?? ''),
    h('span', { class: 'line-number', role: 'cell' }, line.after ?? ''),
    h(
      'span',
      { class: 'line-sign', role: 'cell' },
      SIGNS[line.kind],
      h('span', { class: 'unseen' }, SPOKEN[line.kind]),
    ),
    h('span', { class: 'line-text', role: 'cell' }, text),
  );
}

function gap(hidden) {
  const row = h(
    'div',
    { class: 'line gap', role: 'row' },
    h(
      'span',
      { role: 'cell' },
      h(
        'button',
        {
          class: 'quiet',
          onclick: () => {
            const first = hidden.slice(0, ROWS_MAX).map((line) => lineRow(line));
            const rest = hidden.slice(ROWS_MAX);
            row.replaceWith(...first, ...(rest.length ? [gap(rest)] : []));
          },
        },
        `${plural(hidden.length, 'equal line')}`,
      ),
    ),
  );
  return row;
}
