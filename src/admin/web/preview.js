// Shows what is in a file: its text, its picture, or its facts.

import * as api from './api.js';
import { h, icon, replace } from './dom.js';
import { bytes, permissions, timeElement, when } from './format.js';
import { trouble } from './failure.js';
import { imageType } from './kinds.js';
import { base, shown } from './paths.js';
import { may } from './shell.js';

/** More of a text is not shown; it can be downloaded. */
export const TEXT_MAX = 512 * 1024;
/** Larger pictures are not shown. */
export const IMAGE_MAX = 32 * 1024 * 1024;
/** Bytes by which text is told from other data. */
const SNIFFED = 4096;

export function preview(at, version, signal) {
  const body = h(
    'div',
    { class: 'preview' },
    h('p', { class: 'soft', role: 'status' }, 'Reading…'),
  );
  const facts = h(
    'p',
    { class: 'soft small' },
    bytes(version.size),
    ' · changed ',
    timeElement(version.modified, when),
  );
  api.stat(at, signal).then(
    (entry) =>
      facts.append(
        ` · ${permissions(entry.mode, entry.kind)} · user ${entry.uid}, group ${entry.gid}`,
      ),
    () => {},
  );
  load(at, version.size, signal).then(
    (node) => replace(body, node),
    (error) => {
      if (error.name !== 'AbortError') replace(body, trouble(error));
    },
  );
  return h('div', { class: 'stack' }, facts, body);
}

async function load(at, size, signal) {
  if (!may('reader'))
    return note(
      'info',
      'Your role shows names and sizes, not contents. Ask whoever runs the server for a token with the role reader.',
    );
  if (size === 0) return note('file', 'The file is empty.');
  const type = imageType(at.path);
  if (type)
    return size > IMAGE_MAX
      ? note('file', `A picture of ${bytes(size)}: too large to show here. Download it.`)
      : picture(at, type, size, signal);
  const data = await api.content(at, TEXT_MAX, signal);
  const text = decode(data, size > TEXT_MAX);
  if (text === null) return note('file', 'This is no text. Download it to open it.');
  return [
    size > TEXT_MAX &&
      h(
        'div',
        { class: 'notice slim' },
        icon('info'),
        h('span', null, `The first ${bytes(TEXT_MAX)} of ${bytes(size)}.`),
      ),
    h(
      'pre',
      {
        class: 'text',
        tabindex: '0',
        role: 'region',
        'aria-label': `Text of ${shown(base(at.path))}`,
      },
      text,
    ),
  ];
}

export const note = (name, text) => h('div', { class: 'empty' }, icon(name), h('p', null, text));

/** UTF-8 text, else null. A cut end may split a letter. */
export function decode(data, cut = false) {
  if (data.subarray(0, SNIFFED).includes(0)) return null;
  for (let less = 0; less <= (cut ? 3 : 0); less += 1) {
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(data.subarray(0, data.length - less));
    } catch {
      /* One byte less may be whole letters. */
    }
  }
  return null;
}

/** A picture from the bytes: a file is shown by its own type, and can run nothing. */
export async function picture(at, type, size, signal) {
  const data = await api.content(at, Math.max(1, size), signal);
  const url = URL.createObjectURL(new Blob([data], { type }));
  const name = shown(base(at.path));
  const image = h('img', { src: url, alt: name, class: 'picture' });
  const caption = h('figcaption', { class: 'soft small' });
  const figure = h('figure', null, image, caption);
  image.addEventListener('load', () => {
    caption.textContent = `${image.naturalWidth} × ${image.naturalHeight} pixels`;
    URL.revokeObjectURL(url);
  });
  image.addEventListener('error', () =>
    replace(
      figure,
      note('file', 'The picture cannot be shown: its data is of another kind than its name says.'),
    ),
  );
  return figure;
}
