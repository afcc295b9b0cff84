// Files: a folder of the live dataset or of a snapshot, as a windowed list.

import * as api from './api.js';
import { absent, nothing } from './absent.js';
import { crumbs } from './crumbs.js';
import { announce, h, icon, replace } from './dom.js';
import { arranged, cells, heading, rowOf, sortBy } from './entries.js';
import { bytes, count, plural, when } from './format.js';
import { trouble } from './failure.js';
import { frame } from './frame.js';
import { isFolder } from './kinds.js';
import { List } from './list.js';
import { base, join, parent, shown } from './paths.js';
import { picker } from './picker.js';
import { go, link } from './router.js';
import { selectionBar } from './selection.js';
import { poolOf } from './shell.js';

/** Entries of one folder that the page keeps; search finds the others. */
const ENTRIES_MAX = 300000;

/** The entry that was active in each folder, for the way back. */
const visited = new Map();

export async function view(given, signal) {
  const at = {
    pool: poolOf(given),
    dataset: given.dataset,
    snapshot: given.snapshot,
    path: given.path ?? '/',
  };
  const pages = api.entries(at, signal);
  const first = pages.next();
  first.catch(() => {});
  const snapshots = await api.snapshots(at);
  const here = new Folder(at, snapshots);
  try {
    await here.take(await first);
  } catch (error) {
    if (error.status !== 404 || at.path === '/') throw error;
    return { title: 'Not there', node: [frame(at, 'files'), crumbs(at), absent(at)] };
  }
  here.rest(pages, signal);
  const onKey = (event) => here.key(event);
  document.addEventListener('keydown', onKey, { signal });
  const title = `${at.path === '/' ? at.dataset : shown(base(at.path))}${at.snapshot ? ` at ${at.snapshot}` : ''}`;
  return {
    title,
    node: here.nodes(),
    fills: true,
    ready: () => {
      here.list.draw();
      here.list.reveal();
      here.list.focus();
    },
  };
}

class Folder {
  constructor(at, snapshots) {
    this.chosen = snapshots.find((one) => one.name === at.snapshot);
    Object.assign(this, { at, snapshots, rows: [], arrangedCount: 0, complete: false, wanted: '' });
    this.list = new List({
      label: `Files in ${shown(at.path)}`,
      head: heading((by) => this.sortBy(by)),
      cells,
      id: (row) => row.key,
      name: (row) => row.text,
      open: (row) => this.open(row),
      up: () => this.up(),
      ticked: (keys) => this.ticked(keys),
    });
    this.summary = h('span', { class: 'soft small', role: 'status' });
    this.bar = h('div', { class: 'selection', hidden: true });
    this.trouble = h('div');
    this.empty = h('div', { class: 'empty', hidden: true });
  }

  nodes() {
    const { at, snapshots, chosen } = this;
    const filter = h('input', {
      type: 'search',
      'data-search': true,
      placeholder: 'Filter this folder',
      'aria-label': 'Filter this folder',
      autocomplete: 'off',
      spellcheck: 'false',
      oninput: (event) => this.filter(event.target.value),
    });
    filter.addEventListener('keydown', (event) => {
      if (event.key === 'ArrowDown') {
        this.list.focus();
        event.preventDefault();
      }
      if (event.key === 'Enter') go(link('search', { ...at, path: null, pattern: filter.value }));
    });
    return [
      frame(
        at,
        'files',
        picker({
          snapshots,
          current: at.snapshot,
          choose: (snapshot) => go(link('files', { ...at, snapshot })),
        }),
      ),
      at.snapshot &&
        h(
          'div',
          { class: 'notice slim' },
          icon('clock'),
          h(
            'span',
            { class: 'grow' },
            'This is the past',
            chosen && [': the dataset as it was on ', h('strong', null, when(chosen.created))],
            chosen?.writable
              ? '. It is a writable one, from which files are downloaded, not restored; or '
              : '. Tick what you want back, or ',
            h(
              'a',
              { href: link('changes', { pool: at.pool, dataset: at.dataset, from: at.snapshot }) },
              'see what changed since',
            ),
            '.',
          ),
        ),
      h(
        'div',
        { class: 'row wrap toolbar' },
        crumbs(at),
        h('div', { class: 'searchbox' }, icon('search'), filter),
      ),
      this.trouble,
      h('div', { class: 'card flush files' }, this.list.element, this.empty),
      h('div', { class: 'row apart foot' }, this.summary, this.bar),
    ];
  }

  /**
   * Takes a page. The list shows the first at once, then each time there are twice as many, so that
   * a large folder is sorted a few times and not once a page.
   */
  async take({ value, done }) {
    if (done) this.complete = true;
    else for (const entry of value) this.rows.push(rowOf(entry));
    if (done || this.rows.length >= 2 * this.arrangedCount) this.arrange();
    else this.say(this.list.rows.length);
  }

  /** Reads the other pages while the first is shown already. */
  async rest(pages, signal) {
    try {
      while (!this.complete && this.rows.length < ENTRIES_MAX) await this.take(await pages.next());
      if (!this.complete)
        replace(
          this.trouble,
          h(
            'div',
            { class: 'notice' },
            icon('info'),
            h(
              'span',
              null,
              `Only the first ${count(ENTRIES_MAX)} entries are listed. Search finds the others.`,
            ),
          ),
        );
      if (this.rows.length > 10000)
        announce(`${plural(this.rows.length, 'entry', 'entries')} listed`);
    } catch (error) {
      if (!signal.aborted)
        replace(
          this.trouble,
          trouble(error, () => go(location.href, { replace: true })),
        );
    }
  }

  arrange() {
    this.arrangedCount = this.rows.length;
    const rows = arranged(this.rows, this.wanted);
    const back = this.list.rows.length === 0 ? visited.get(this.at.path) : undefined;
    this.list.setRows(rows, back);
    this.say(rows.length);
  }

  say(seen) {
    const total = this.rows.length;
    const files = this.rows.reduce(
      (sum, row) => sum + (isFolder(row.entry.kind) ? 0 : row.entry.size || 0),
      0,
    );
    const words = this.complete
      ? `${plural(total, 'item')}, ${bytes(files)} in files`
      : `${count(total)} items so far…`;
    replace(this.summary, this.wanted ? `${count(seen)} of ${words}` : words);
    this.empty.hidden = seen > 0;
    this.list.element.hidden = seen === 0;
    if (seen === 0) replace(this.empty, nothing(this.at, this.wanted, this.snapshots.at(-1)));
  }

  filter(text) {
    this.wanted = text.trim();
    this.arrange();
  }

  sortBy(by) {
    const order = sortBy(by);
    const header = heading((other) => this.sortBy(other));
    this.list.setHead(header);
    header.querySelector(`.cell-${by} button`).focus();
    this.arrange();
    announce(`Sorted by ${by}, ${order}`);
  }

  open(row) {
    visited.set(this.at.path, row.key);
    const path = join(this.at.path, row.key);
    go(link(isFolder(row.entry.kind) ? 'files' : 'file', { ...this.at, path }));
  }

  up() {
    if (this.at.path === '/') return;
    visited.set(parent(this.at.path), base(this.at.path));
    go(link('files', { ...this.at, path: parent(this.at.path) }));
  }

  ticked(keys) {
    this.bar.hidden = keys.size === 0;
    if (keys.size > 0)
      selectionBar(
        this.bar,
        { ...this.at, writable: this.chosen?.writable },
        this.rows.filter((row) => keys.has(row.key)),
        this.rows.length,
        () => {
          this.list.clearTicks();
          this.list.focus();
        },
      );
  }

  key(event) {
    if (
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      event.target.closest('input, dialog, textarea')
    )
      return;
    const step = { '[': 'left', ']': 'right' }[event.key];
    if (step) document.querySelector(`[data-step="${step}"]`)?.click();
  }
}
