// Starts a restore, and follows it to its end.

import * as api from './api.js';
import { h, replace, toast } from './dom.js';
import { trouble } from './failure.js';
import { go, link, show } from './router.js';
import { tasksChanged } from './shell.js';
import { nameForNow } from './snapshots.js';
import { redraw, taskRow } from './tasks.js';

const POLL_MS = 700;

export const closing = (shownDialog) =>
  h('div', { class: 'actions' }, h('button', { onclick: () => shownDialog.close() }, 'Close'));

/** `plan`: the paths as the server takes them, whether to overwrite, and to take a snapshot first. */
export async function start(shownDialog, body, at, plan) {
  const status = h('div', { role: 'status' });
  replace(body, status, closing(shownDialog));
  try {
    if (plan.first) {
      const name = nameForNow('before-restore');
      replace(status, h('p', null, `Taking the snapshot ${name}…`));
      await api.createSnapshot(at, { name, readOnly: true });
    }
    replace(status, h('p', null, 'Starting…'));
    const answer = await api.restore(at, {
      snapshot: at.snapshot,
      paths: plan.paths,
      overwrite: plan.overwrite,
      dryRun: false,
    });
    tasksChanged();
    await follow(shownDialog, status, at, answer.task);
  } catch (error) {
    replace(status, trouble(error));
  }
}

/** Shows the task until it ends; closing the dialog does not stop it. */
async function follow(shownDialog, status, at, id) {
  for (;;) {
    const task = await api.task(id);
    if (shownDialog.isConnected) redraw(status, taskRow(task));
    if (task.ended) {
      if (!task.error) {
        toast('Restored', { link: h('a', { href: link('tasks', {}) }, 'Show') });
        if (shownDialog.isConnected) shownDialog.close();
        return location.pathname === '/file'
          ? go(link('file', { pool: at.pool, dataset: at.dataset, path: at.path }))
          : show();
      }
      return;
    }
    await new Promise((wake) => {
      setTimeout(wake, POLL_MS);
    });
  }
}
