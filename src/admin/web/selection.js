// Actions on the ticked entries of a folder.

import * as api from './api.js';
import { h, icon, replace, toast } from './dom.js';
import { plural } from './format.js';
import { isFile } from './kinds.js';
import { base, join, shown } from './paths.js';
import { link } from './router.js';
import { restoreDialog } from './restore.js';
import { may } from './shell.js';

/** An address that is longer is refused by some servers and proxies. */
const URL_MAX = 16000;

export function selectionBar(bar, at, rows, total, clear) {
  const whole = rows.length === total;
  const each = rows.map((row) => join(at.path, row.key));
  // A whole folder is one path; the root is restored by what is in it.
  const packed = whole ? [at.path] : each;
  const paths = whole && at.path !== '/' ? [at.path] : each;
  const one = rows.length === 1 && isFile(rows[0].entry.kind) ? { ...at, path: each[0] } : null;
  const archive = (format) =>
    h(
      'button',
      { onclick: () => download(at, packed, format) },
      icon('download'),
      h('span', { class: 'wide-only' }, 'Download '),
      format,
    );
  replace(
    bar,
    h('span', { class: 'strong' }, `${plural(rows.length, 'item')} ticked`),
    one && h('a', { class: 'button', href: link('file', one) }, icon('clock'), 'Versions'),
    may('reader') &&
      (one
        ? h('button', { onclick: () => downloadFile(one) }, icon('download'), 'Download')
        : [archive('zip'), archive('tar')]),
    at.snapshot &&
      !at.writable &&
      may('restorer') &&
      h(
        'button',
        { class: 'primary', onclick: () => restoreDialog(at, paths) },
        icon('restore'),
        'Restore…',
      ),
    h(
      'button',
      {
        class: 'quiet icon-only',
        'aria-label': 'Clear the ticks',
        title: 'Clear the ticks (Esc)',
        onclick: clear,
      },
      icon('close'),
    ),
  );
}

function save(url, name) {
  const anchor = h('a', { href: url, download: name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
}

/** Downloads one file; what would fail is said here and not by the browser. */
export async function downloadFile(at) {
  try {
    await api.mayRead(at);
    save(api.contentUrl(at), shown(base(at.path)));
  } catch (error) {
    toast(`${shown(at.path)}: ${error.message}`, { tone: 'error' });
  }
}

export function download(at, paths, format) {
  const url = api.archiveUrl(at, paths, format);
  if (url.length > URL_MAX)
    return toast('Too many for one download: tick fewer, or the folder that holds them.', {
      tone: 'error',
    });
  save(url, `${at.dataset}.${format}`);
  toast(`The download of ${plural(paths.length, 'item')} has started`);
}
