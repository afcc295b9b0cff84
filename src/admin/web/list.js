// A windowed list: of 100,000 rows only those in sight are in the page, and the one that has the
// focus. Keyboard: a grid with one tab stop (roving tabindex), as ARIA describes it.

import { h, replace } from './dom.js';

/** Rows that are rendered beyond what is seen, above and below. */
const OVERSCAN = 8;
/** Letters typed within this time are one name. */
const TYPING_MS = 700;

/**
 * `options`: label, cells(row) → nodes of one row, name(row) → text for jumping by letters,
 * id(row) → identity of a row, open(row), up(), ticked(ids) after each change of the ticks.
 */
export class List {
  constructor(options) {
    this.options = options;
    this.rows = [];
    this.active = 0;
    this.anchor = 0;
    this.ticks = new Set();
    this.typed = { text: '', at: 0 };
    this.drawn = new Map();
    this.space = h('div', { class: 'list-space', role: 'rowgroup' });
    this.scroller = h('div', { class: 'list-scroll' }, this.space);
    this.element = h(
      'div',
      { class: 'list', role: 'grid', 'aria-label': options.label, 'aria-multiselectable': 'true' },
      options.head,
      this.scroller,
    );
    this.scroller.addEventListener('scroll', () => this.schedule(), { passive: true });
    this.element.addEventListener('keydown', (event) => this.key(event));
    this.space.addEventListener('click', (event) => this.click(event));
    this.watch = new ResizeObserver(() => this.schedule());
    this.watch.observe(this.scroller);
  }

  setHead(head) {
    this.element.firstChild.replaceWith(head);
  }

  /** Takes new rows; the active one stays active if it is still there. */
  setRows(rows, activeId) {
    const { id } = this.options;
    const before = activeId ?? (this.rows[this.active] && id(this.rows[this.active]));
    this.rows = rows;
    const found = before === undefined ? -1 : rows.findIndex((row) => id(row) === before);
    this.active = Math.max(0, Math.min(found < 0 ? 0 : found, rows.length - 1));
    this.anchor = this.active;
    this.element.setAttribute('aria-rowcount', String(rows.length + 1));
    this.redraw();
    if (activeId !== undefined && found >= 0) this.reveal();
  }

  redraw() {
    this.drawn.clear();
    const had = this.space.contains(document.activeElement);
    replace(this.space);
    this.draw();
    if (had) this.focus();
  }

  schedule() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.draw();
    });
  }

  height() {
    return matchMedia('(max-width: 720px)').matches ? 58 : 42;
  }

  draw() {
    const height = this.height();
    if (height !== this.drawnHeight) {
      this.drawnHeight = height;
      this.drawn.forEach((node) => node.remove());
      this.drawn.clear();
    }
    this.space.style.setProperty('height', `${this.rows.length * height}px`);
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - OVERSCAN);
    const last = Math.min(
      this.rows.length - 1,
      Math.ceil((this.scroller.scrollTop + this.scroller.clientHeight) / height) + OVERSCAN,
    );
    const wanted = new Set(this.rows.length > 0 ? [this.active] : []);
    for (let at = first; at <= last; at += 1) wanted.add(at);
    for (const [at, node] of this.drawn)
      if (!wanted.has(at)) {
        node.remove();
        this.drawn.delete(at);
      }
    for (const at of [...wanted].sort((a, b) => a - b))
      if (!this.drawn.has(at)) this.insert(at, height);
  }

  insert(at, height) {
    const row = this.rows[at];
    const ticked = this.ticks.has(this.options.id(row));
    const node = h(
      'div',
      {
        role: 'row',
        class: ['list-row', at === this.active && 'active'],
        'data-at': at,
        'aria-rowindex': at + 2,
        'aria-selected': ticked ? 'true' : 'false',
        tabindex: at === this.active ? '0' : '-1',
        style: { top: `${at * height}px`, height: `${height}px` },
      },
      h('span', { role: 'gridcell', class: 'cell-tick' }, h('span', { class: 'tick' })),
      this.options.cells(row),
    );
    this.drawn.set(at, node);
    const after = [...this.drawn.keys()].filter((other) => other > at);
    this.space.insertBefore(node, after.length ? this.drawn.get(Math.min(...after)) : null);
  }

  /** Moves the active row, and gives it the focus. */
  move(to) {
    if (this.rows.length === 0) return;
    const before = this.active;
    this.active = Math.max(0, Math.min(this.rows.length - 1, to));
    const old = this.drawn.get(before);
    old?.setAttribute('tabindex', '-1');
    old?.classList.remove('active');
    this.reveal();
    const node = this.drawn.get(this.active);
    node.setAttribute('tabindex', '0');
    node.classList.add('active');
    node.focus({ preventScroll: true });
  }

  reveal() {
    const height = this.height();
    const top = this.active * height;
    const { scrollTop, clientHeight } = this.scroller;
    if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top + height > scrollTop + clientHeight)
      this.scroller.scrollTop = top + height - clientHeight;
    this.draw();
  }

  focus() {
    this.drawn.get(this.active)?.focus({ preventScroll: true });
  }

  tick(rows, on) {
    for (const row of rows) {
      if (on) this.ticks.add(this.options.id(row));
      else this.ticks.delete(this.options.id(row));
    }
    this.showTicks();
  }

  clearTicks() {
    this.ticks.clear();
    this.showTicks();
  }

  showTicks() {
    for (const [at, node] of this.drawn)
      node.setAttribute('aria-selected', String(this.ticks.has(this.options.id(this.rows[at]))));
    this.options.ticked(this.ticks);
  }

  toggle(at) {
    const row = this.rows[at];
    this.tick([row], !this.ticks.has(this.options.id(row)));
    this.anchor = at;
  }

  /** Ticks everything between where the ticking began and `at`. */
  extend(at) {
    const [from, to] = [Math.min(this.anchor, at), Math.max(this.anchor, at)];
    this.tick(this.rows.slice(from, to + 1), true);
  }

  click(event) {
    const node = event.target.closest('.list-row');
    if (!node) return;
    const at = Number(node.dataset.at);
    const ticking = event.target.closest('.cell-tick') || event.ctrlKey || event.metaKey;
    if (event.shiftKey) {
      this.extend(at);
      this.move(at);
    } else if (ticking) {
      this.move(at);
      this.toggle(at);
    } else {
      this.move(at);
      this.options.open(this.rows[at]);
    }
  }

  key(event) {
    if (!event.target.closest('.list-row') || event.altKey) return;
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.height()) - 1);
    const moves = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    };
    const command = event.ctrlKey || event.metaKey;
    if (event.key in moves) {
      const to = Math.max(0, Math.min(this.rows.length - 1, this.active + moves[event.key]));
      if (event.shiftKey) this.extend(to);
      else this.anchor = to;
      this.move(to);
    } else if (command && event.key === 'a') this.tick(this.rows, true);
    else if (command) return;
    else if (event.key === 'Enter') this.options.open(this.rows[this.active]);
    else if (event.key === 'Backspace') this.options.up();
    else if (event.key === ' ') this.toggle(this.active);
    else if (event.key === 'Escape' && this.ticks.size > 0) this.clearTicks();
    else if (event.key.length === 1 && /[\p{L}\p{N}._-]/u.test(event.key)) this.jump(event.key);
    else return;
    event.preventDefault();
  }

  jump(letter) {
    const now = Date.now();
    const text = (now - this.typed.at < TYPING_MS ? this.typed.text : '') + letter.toLowerCase();
    this.typed = { text, at: now };
    const from = text.length === 1 ? this.active + 1 : this.active;
    for (let step = 0; step < this.rows.length; step += 1) {
      const at = (from + step) % this.rows.length;
      if (this.options.name(this.rows[at]).toLowerCase().startsWith(text)) return this.move(at);
    }
  }
}

/** A key by which strings sort as people count: file2 before file10. */
export const naturalKey = (text) =>
  text.toLowerCase().replace(/\d+/g, (digits) => digits.padStart(12, '0'));
