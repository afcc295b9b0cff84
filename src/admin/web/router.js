// Which view a URL shows. A URL holds everything a view needs (pool, dataset, snapshot, path), so
// that any of them can be sent to somebody.

import { announce, h, icon, replace } from './dom.js';
import { query } from './api.js';
import { canonical } from './paths.js';
import { failure } from './failure.js';

/** Pages and the modules that show them. */
const VIEWS = {
  '/': 'home',
  '/dataset': 'dataset',
  '/files': 'browser',
  '/file': 'file',
  '/changes': 'diff',
  '/search': 'search',
  '/policy': 'policy',
  '/space': 'space',
  '/tasks': 'tasks',
};
/** A view that is ready sooner than this shows no progress. */
const PATIENCE_MS = 150;

let leave = new AbortController();

/** The address of a view. */
export const link = (page, at) => `/${page}${query(at)}`;

/** What the URL says: decoded, but for paths, which stay encoded. */
export function place() {
  const at = { page: location.pathname };
  for (const pair of location.search.slice(1).split('&').filter(Boolean)) {
    const cut = pair.indexOf('=');
    const [name, value] = cut < 0 ? [pair, ''] : [pair.slice(0, cut), pair.slice(cut + 1)];
    at[name] = name === 'path' ? canonical(value) : decode(value);
  }
  return at;
}

function decode(value) {
  try {
    return decodeURIComponent(value.replaceAll('+', ' '));
  } catch {
    return value;
  }
}

export function go(address, { replace: inPlace = false } = {}) {
  if (inPlace) history.replaceState(null, '', address);
  else history.pushState(null, '', address);
  return show();
}

/** Changes the URL without leaving the view. */
export const remember = (address) => history.replaceState(null, '', address);

/**
 * Shows the view of the present URL. A view is `async (at, signal) => { title, node, ready }`: its
 * signal is aborted when the person leaves, `ready` runs once the node is in the page.
 */
export async function show() {
  leave.abort();
  const here = (leave = new AbortController());
  const at = place();
  const main = document.getElementById('main');
  const progress = document.getElementById('progress');
  const waiting = setTimeout(() => {
    progress.hidden = false;
  }, PATIENCE_MS);
  try {
    const name = VIEWS[at.page];
    const view = name ? await import(`./${name}.js`) : { view: missing };
    const { title, node, ready, fills } = await view.view(at, here.signal);
    if (here.signal.aborted) return;
    present(main, title, node, fills);
    ready?.();
  } catch (error) {
    if (here.signal.aborted || error.name === 'AbortError') return;
    if (error.status !== 401) present(main, 'Something is wrong', failure(error, show), false);
  } finally {
    clearTimeout(waiting);
    if (leave === here) progress.hidden = true;
  }
}

function present(main, title, node, fills) {
  document.title = `${title} · ZeroFS`;
  document.body.classList.toggle('filling', Boolean(fills));
  replace(main, node);
  scrollTo(0, 0);
  performance.mark('shown');
  document.dispatchEvent(new CustomEvent('shown'));
  announce(title);
  const heading = main.querySelector('h1');
  heading?.setAttribute('tabindex', '-1');
  (heading ?? main).focus({ preventScroll: true });
}

async function missing() {
  const node = h(
    'div',
    { class: 'empty' },
    icon('search'),
    h('h1', null, 'There is no such page'),
    h('p', null, 'The address may have been cut off when it was copied.'),
    h('a', { class: 'button primary', href: '/' }, 'All datasets'),
  );
  return { title: 'Not found', node };
}

/** Links of the page change the view instead of loading a document. */
export function start() {
  addEventListener('popstate', show);
  document.addEventListener('click', (event) => {
    const anchor = event.target.closest?.('a[href]');
    if (!anchor || event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    if (anchor.origin !== location.origin || anchor.target || anchor.hasAttribute('download'))
      return;
    if (anchor.getAttribute('href').startsWith('#') || anchor.pathname.startsWith('/api/')) return;
    event.preventDefault();
    go(anchor.href);
  });
}
