// The folders that lead to a path, each a link.

import { h, icon } from './dom.js';
import { parts, shown, visible } from './paths.js';
import { link } from './router.js';

/** `at` names the dataset, the moment and the path. */
export function crumbs(at) {
  const names = parts(at.path);
  let path = '';
  const items = names.map((name, index) => {
    path += `/${name}`;
    const last = index === names.length - 1;
    const label = h('bdi', null, shown(name));
    return h(
      'li',
      null,
      icon('right'),
      last
        ? h('span', { 'aria-current': 'location' }, label)
        : h(
            'a',
            {
              href: link('files', {
                pool: at.pool,
                dataset: at.dataset,
                snapshot: at.snapshot,
                path,
              }),
            },
            label,
          ),
    );
  });
  const root = { pool: at.pool, dataset: at.dataset, snapshot: at.snapshot };
  const first =
    names.length > 0
      ? h('a', { href: link('files', root) }, visible(at.dataset))
      : h('span', { 'aria-current': 'location' }, visible(at.dataset));
  const list = h('ol', { class: 'crumbs', tabindex: '-1' }, h('li', null, first), items);
  // The end of a long path is what people look at.
  requestAnimationFrame(() => {
    list.scrollLeft = list.scrollWidth;
  });
  return h('nav', { 'aria-label': 'Folders', class: 'grow' }, list);
}
