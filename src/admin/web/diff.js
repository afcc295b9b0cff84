// Changes between two moments, as a tree with counts.

import * as api from './api.js';
import { announce, h, icon, replace } from './dom.js';
import { count, plural } from './format.js';
import { trouble } from './failure.js';
import { frame } from './frame.js';
import { isFile, isFolder, kindIcon } from './kinds.js';
import { join, parts, pathOf, shown } from './paths.js';
import { picker } from './picker.js';
import { go, link } from './router.js';
import { poolOf } from './shell.js';
import { focusItem, treeKey } from './tree.js';

/** Changes that one request brings; the server compares again for each. */
const PAGE = 10000;
/** Children of one folder that are shown at once. */
const CHILDREN_MAX = 500;
/** Trees with fewer changes are open from the start. */
const OPEN_UP_TO = 60;

export async function view(given, signal) {
  const at = { pool: poolOf(given), dataset: given.dataset };
  const snapshots = await api.snapshots(at);
  if (snapshots.length === 0)
    return { title: 'Changes', node: [frame(at, 'changes'), nothing(at)] };
  const from = given.from ?? snapshots.at(-1).name;
  const to = given.to;
  const choose = (values) => go(link('changes', { ...at, from, to, ...values }));
  const result = h(
    'section',
    { 'aria-label': 'Changes', 'aria-busy': 'true' },
    h('p', { class: 'soft', role: 'status' }, 'Comparing…'),
  );
  const node = [
    frame(at, 'changes'),
    h(
      'div',
      { class: 'row wrap between' },
      h(
        'div',
        { class: 'field' },
        h('span', null, 'From'),
        picker({
          snapshots,
          current: from,
          live: false,
          label: 'From',
          choose: (name) => choose({ from: name }),
        }),
      ),
      h(
        'div',
        { class: 'field' },
        h('span', null, 'To'),
        picker({ snapshots, current: to, label: 'To', choose: (name) => choose({ to: name }) }),
      ),
    ),
    result,
  ];
  new Comparison(at, from, to, result, signal).read();
  return { title: `Changes of ${at.dataset}`, node };
}

function nothing(at) {
  return h(
    'div',
    { class: 'empty card' },
    icon('compare'),
    h('h2', null, 'Nothing to compare with'),
    h('p', null, 'Changes are seen between two snapshots, or since one. Take the first:'),
    h('a', { class: 'button primary', href: link('dataset', at) }, 'To the timeline'),
  );
}

const TONES = { added: 'good', removed: 'bad', changed: 'warn', renamed: 'move' };
const SIGNS = { added: '+', removed: '−', changed: '~', renamed: '→' };
const toneOf = (change) => (change in TONES ? change : 'changed');

class Comparison {
  constructor(at, from, to, element, signal) {
    Object.assign(this, { at, from, to, element, signal, cursor: null, total: 0, counts: {} });
    this.root = { name: '', path: '/', children: new Map(), counts: {} };
  }

  async read() {
    this.element.setAttribute('aria-busy', 'true');
    try {
      const page = await api.diff(
        this.at,
        { from: this.from, to: this.to, limit: PAGE, cursor: this.cursor },
        this.signal,
      );
      page.items.forEach((item) => this.add(item));
      this.cursor = page.next;
      this.all = page.counts;
      this.draw();
    } catch (error) {
      if (error.name !== 'AbortError')
        replace(
          this.element,
          trouble(error, () => this.read()),
        );
    }
    this.element.removeAttribute('aria-busy');
  }

  add(item) {
    const change = toneOf(item.change);
    this.total += 1;
    let node = this.root;
    bump(node, change);
    for (const name of parts(pathOf(item))) {
      if (!node.children.has(name))
        node.children.set(name, {
          name,
          path: join(node.path, name),
          children: new Map(),
          counts: {},
        });
      node = node.children.get(name);
      bump(node, change);
    }
    node.item = item;
    node.counts[change] -= 1;
  }

  draw() {
    announce(plural(this.total, 'change'));
    if (this.total === 0) {
      return replace(
        this.element,
        h(
          'div',
          { class: 'empty card' },
          icon('check'),
          h('h2', null, 'No changes'),
          h('p', null, 'Both moments have the same files with the same content.'),
        ),
      );
    }
    const tree = h('ul', { class: 'tree', role: 'tree', 'aria-label': 'Changed files' });
    tree.append(...this.items(this.root, this.total <= OPEN_UP_TO));
    tree.querySelector('[role=treeitem]')?.setAttribute('tabindex', '0');
    tree.addEventListener('keydown', (event) => treeKey(event, tree));
    replace(
      this.element,
      h(
        'div',
        { class: 'row wrap' },
        Object.keys(TONES).map(
          (change) =>
            this.all[change] > 0 &&
            h(
              'span',
              { class: ['tag', TONES[change]] },
              `${SIGNS[change]} ${count(this.all[change])} ${change}`,
            ),
        ),
        this.all.truncated && h('span', { class: 'soft' }, 'and more than were counted'),
        this.cursor &&
          h('span', { class: 'soft' }, `The tree shows the first ${count(this.total)}.`),
        this.cursor && h('button', { onclick: () => this.read() }, `Read ${count(PAGE)} more`),
      ),
      h('div', { class: 'card flush' }, tree),
    );
  }

  items(node, open) {
    const children = [...node.children.values()].sort(
      (a, b) => (b.children.size > 0) - (a.children.size > 0) || (a.name < b.name ? -1 : 1),
    );
    const shownNow = children.slice(0, CHILDREN_MAX).map((child) => this.item(child, open));
    if (children.length > CHILDREN_MAX)
      shownNow.push(
        h(
          'li',
          { role: 'none', class: 'soft tree-more' },
          `and ${plural(children.length - CHILDREN_MAX, 'other')}`,
        ),
      );
    return shownNow;
  }

  item(node, open) {
    // Folders with one child are one line, as a path.
    let label = shown(node.name);
    while (!node.item && node.children.size === 1) {
      node = [...node.children.values()][0];
      label += ` / ${shown(node.name)}`;
    }
    const { item } = node;
    const change = item && toneOf(item.change);
    const branch = node.children.size > 0;
    const counts = Object.keys(TONES)
      .filter((one) => node.counts[one] > 0)
      .map((one) =>
        h(
          'span',
          { class: ['tag', TONES[one]] },
          SIGNS[one],
          count(node.counts[one]),
          h('span', { class: 'unseen' }, ` ${one}`),
        ),
      );
    const row = h(
      'div',
      { class: 'tree-row' },
      branch ? icon('right') : h('span', { class: 'icon' }),
      kindIcon(item?.kind ?? 'folder'),
      h('bdi', { class: 'break' }, label),
      change && h('span', { class: ['tag', TONES[change]] }, change),
      item?.from &&
        h(
          'span',
          { class: 'soft small break' },
          'from ',
          h('bdi', null, shown(pathOf(item, 'from'))),
        ),
      item?.aspects?.length > 0 && h('span', { class: 'soft small' }, item.aspects.join(', ')),
      h('span', { class: 'grow' }),
      branch && counts,
    );
    const group = branch && h('ul', { role: 'group', hidden: !open });
    if (branch && open) group.append(...this.items(node, true));
    const element = h(
      'li',
      {
        role: 'treeitem',
        tabindex: '-1',
        'aria-expanded': branch ? String(open) : null,
        class: change,
      },
      row,
      group,
    );
    const toggle = (wanted = group.hidden) => {
      if (wanted && !group.firstChild) group.append(...this.items(node, false));
      group.hidden = !wanted;
      element.setAttribute('aria-expanded', String(wanted));
    };
    element.toggle = branch ? toggle : null;
    element.follow = () => this.follow(node);
    row.addEventListener('click', () => {
      focusItem(element);
      if (branch) toggle();
      else this.follow(node);
    });
    return element;
  }

  follow({ path, item }) {
    const gone = item?.change === 'removed';
    const snapshot = gone ? this.from : this.to;
    const both = item?.change === 'changed' && isFile(item.kind);
    if (item && !isFolder(item.kind))
      go(
        link('file', {
          ...this.at,
          path,
          snapshot: snapshot ?? '@live',
          with: both ? this.from : null,
        }),
      );
    else go(link('files', { ...this.at, path, snapshot }));
  }
}

const bump = (node, change) => {
  node.counts[change] = (node.counts[change] ?? 0) + 1;
};
