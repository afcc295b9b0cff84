// Activity: the long work of the server, running and ended.

import * as api from './api.js';
import { h, icon, replace, toast } from './dom.js';
import { bytes, duration, plural, timeElement } from './format.js';
import { visible } from './paths.js';
import { may, tasksChanged } from './shell.js';

const REFRESH_MS = 1500;
const REFRESH_IDLE_MS = 6000;

export async function view(at, signal) {
  const list = h('div', { class: 'stack wide', 'aria-live': 'polite' });
  const draw = (tasks) => {
    const active = tasks.filter((task) => !task.ended);
    const ended = tasks.filter((task) => task.ended).reverse();
    redraw(
      list,
      section('Running now', active),
      section('Ended', ended),
      tasks.length === 0 && nothing(),
    );
    return active.length > 0;
  };
  let busy = draw(newestLast(await api.tasks(signal)));
  const again = async () => {
    if (signal.aborted) return;
    if (!document.hidden)
      busy = await api.tasks(signal).then(
        (tasks) => draw(newestLast(tasks)),
        () => busy,
      );
    if (!signal.aborted) setTimeout(again, busy ? REFRESH_MS : REFRESH_IDLE_MS);
  };
  setTimeout(again, REFRESH_MS);
  return {
    title: 'Activity',
    node: [
      h(
        'div',
        { class: 'stack' },
        h('h1', null, 'Activity'),
        h(
          'p',
          { class: 'soft' },
          'Restores, scrubs and collections of this server. Closing the page stops none of them.',
        ),
      ),
      list,
    ],
  };
}

const newestLast = (tasks) => [...tasks].sort((a, b) => new Date(a.started) - new Date(b.started));

function section(title, tasks) {
  return tasks.length > 0 && h('section', null, h('h2', null, title), taskList(tasks));
}

function nothing() {
  return h(
    'div',
    { class: 'empty card' },
    icon('check'),
    h('h2', null, 'Nothing is running'),
    h(
      'p',
      null,
      'Restores show their progress here. The last hundred that ended stay until the server restarts.',
    ),
  );
}

/** Replaces rows of tasks; the button that had the focus has it again, or else the view has it. */
export function redraw(list, ...rows) {
  const held = list.contains(document.activeElement) && document.activeElement.dataset.stop;
  replace(list, ...rows);
  if (!held) return;
  const again = list.querySelector(`[data-stop="${CSS.escape(held)}"]`);
  (again ?? list.closest('dialog') ?? document.getElementById('main')).focus();
}

function stopButton(task, name) {
  const title = `the ${name.toLowerCase()} of ${visible(task.subject)}`;
  const stop = async () => {
    try {
      await api.stopTask(task.id);
      toast(`Asked ${title} to stop`);
      tasksChanged();
    } catch (error) {
      toast(error.message, { tone: 'error' });
    }
  };
  return h(
    'button',
    { class: 'quiet', 'aria-label': `Stop ${title}`, 'data-stop': task.id, onclick: stop },
    'Stop',
  );
}

export const taskList = (tasks) => h('div', { class: 'card flush' }, tasks.map(taskRow));

const NAMES = { restore: 'Restore', scrub: 'Scrub', collection: 'Collection' };

const STATES = { running: 'accent', done: 'good', failed: 'bad', stopped: 'warn' };

export function taskRow(task) {
  const { objects, bytes: size } = task.progress;
  const progress = [objects > 0 && plural(objects, 'object'), size > 0 && bytes(size)].filter(
    Boolean,
  );
  // Once it has ended, its message says what was done.
  const said = task.error ?? task.message ?? progress.join(', ');
  const took = duration(new Date(task.ended ?? Date.now()) - new Date(task.started));
  const name = NAMES[task.kind] ?? visible(task.kind);
  return h(
    'div',
    { class: 'task' },
    h(
      'div',
      { class: 'row apart wrap' },
      h(
        'span',
        { class: 'row' },
        h('strong', null, name),
        h('bdi', { class: 'break' }, visible(task.subject)),
      ),
      h(
        'span',
        { class: 'row soft small' },
        h('span', { class: ['tag', STATES[task.state]] }, task.state),
        h('span', null, task.ended ? 'took ' : 'for ', took),
        h('span', { class: 'wide-only' }, timeElement(task.started)),
        !task.ended && may('admin') && stopButton(task, name),
      ),
    ),
    !task.ended &&
      h(
        'div',
        { class: 'meter busy', role: 'progressbar', 'aria-label': `${name} of ${task.subject}` },
        h('i'),
      ),
    said && h('p', { class: ['small', 'break', task.error ? 'wrong' : 'soft'] }, visible(said)),
  );
}
