// The bar at the top: where one can go, what runs, the theme, who is signed in.

import * as api from './api.js';
import { h, icon, mark, replace } from './dom.js';
import { help } from './help.js';
import { go, link, place } from './router.js';

const RUNNING_MS = 3000;
const IDLE_MS = 15000;

let known = null;
let poolNames = [];
let running = 0;

/** Who is signed in; null before. */
export const session = () => known;

const ROLES = ['viewer', 'reader', 'restorer', 'admin'];
/** Whether the caller has a role, or a higher one. Where another authority decides, it will say. */
export const may = (role) =>
  known?.role === null || ROLES.indexOf(known?.role) >= ROLES.indexOf(role);

/** The pool of the URL, or the only one. */
export function poolOf(at) {
  return at.pool ?? poolNames[0];
}

export async function signedIn() {
  const [session, pools] = await Promise.all([api.session(), api.pools()]);
  known = session;
  poolNames = pools.map((pool) => pool.name);
  draw();
  watchTasks();
}

export function signedOut() {
  known = null;
  clearTimeout(timer);
  replace(document.getElementById('shell'));
}

function draw() {
  const at = place();
  const pool = poolOf(at);
  const here = (pages) => (pages.includes(at.page) ? 'page' : null);
  const many = poolNames.length > 1;
  const to = (page) => link(page, many ? { pool } : {});
  const nav = h(
    'nav',
    { 'aria-label': 'Main' },
    h(
      'a',
      {
        href: to(''),
        'aria-current': here([
          '/',
          '/dataset',
          '/files',
          '/file',
          '/changes',
          '/search',
          '/policy',
        ]),
      },
      'Datasets',
    ),
    h('a', { href: to('space'), 'aria-current': here(['/space']) }, 'Space'),
    h(
      'a',
      { href: to('tasks'), 'aria-current': here(['/tasks']) },
      'Activity',
      running > 0 &&
        h('span', { class: 'tag accent' }, running, h('span', { class: 'unseen' }, ' running')),
    ),
  );
  replace(
    document.getElementById('shell'),
    h(
      'div',
      { class: 'bar' },
      h(
        'a',
        { class: 'brand', href: to(''), 'aria-label': 'ZeroFS, all datasets' },
        mark(),
        h('span', null, 'ZeroFS'),
      ),
      nav,
      many && poolSelect(pool),
      h(
        'button',
        {
          class: 'quiet icon-only wide-only',
          'aria-label': 'Keyboard shortcuts',
          title: 'Keyboard shortcuts (?)',
          onclick: help,
        },
        icon('keyboard'),
      ),
      themeButton(),
      account(),
    ),
  );
}

function poolSelect(pool) {
  const options = poolNames.map((name) =>
    h('option', { value: name, selected: name === pool }, name),
  );
  return h(
    'select',
    { 'aria-label': 'Pool', onchange: (event) => go(link('', { pool: event.target.value })) },
    options,
  );
}

function account() {
  const leave = async () => {
    await api.logout().catch(() => {});
    document.dispatchEvent(new CustomEvent('session-ended', { detail: 'left' }));
  };
  return h(
    'button',
    {
      class: 'quiet icon-only',
      'aria-label': `Sign out ${known.caller}`,
      title: `${known.caller}, ${known.role}. Sign out`,
      onclick: leave,
    },
    icon('leave'),
  );
}

/** The theme: the system's until somebody chooses. */
export function theme() {
  let kept = null;
  try {
    kept = localStorage.getItem('theme');
  } catch {
    /* Storage may be forbidden. */
  }
  return kept ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
}

export function applyTheme() {
  document.documentElement.dataset.theme = theme();
}

export function themeButton() {
  const dark = theme() === 'dark';
  const turn = (event) => {
    try {
      localStorage.setItem('theme', dark ? 'light' : 'dark');
    } catch {
      /* It lasts as long as the page. */
    }
    document.documentElement.dataset.theme = dark ? 'light' : 'dark';
    const other = themeButton();
    event.currentTarget.replaceWith(other);
    other.focus();
  };
  const label = dark ? 'Use light colours' : 'Use dark colours';
  return h(
    'button',
    { class: 'quiet icon-only', 'aria-label': label, title: label, onclick: turn },
    icon(dark ? 'sun' : 'moon'),
  );
}

let timer;

/** Looks for running tasks, often while there are some and the page is seen. */
async function watchTasks() {
  clearTimeout(timer);
  if (!known) return;
  if (!document.hidden) {
    const tasks = await api.tasks().catch(() => []);
    const now = tasks.filter((task) => !task.ended).length;
    document.dispatchEvent(new CustomEvent('tasks', { detail: tasks }));
    if (now !== running) {
      running = now;
      if (known) draw();
    }
  }
  timer = setTimeout(watchTasks, running > 0 ? RUNNING_MS : IDLE_MS);
}

/** Asks for tasks at once: one was started. */
export const tasksChanged = () => watchTasks();

document.addEventListener('shown', () => {
  if (known) draw();
});
