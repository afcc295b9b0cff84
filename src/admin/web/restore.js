// Restores in place, after a dialog that says exactly what will happen: what is replaced, from
// which snapshot, and whether the present content is in a snapshot or will be lost.

import * as api from './api.js';
import { dialog, h, icon, replace } from './dom.js';
import { bytes, plural, timeElement, when } from './format.js';
import { trouble } from './failure.js';
import { isFolder } from './kinds.js';
import { base, join, parent, shown, toBody, visible, fromText } from './paths.js';
import { closing, start } from './restoring.js';
import { shortName } from './snapshots.js';

/** Paths that the dialog names one by one. */
const NAMED_MAX = 6;

/** `at` names the snapshot; `paths` are what is to come back. */
export async function restoreDialog(at, paths) {
  const body = h(
    'div',
    { class: 'body' },
    h('p', { class: 'soft', role: 'status' }, 'Comparing with the present files…'),
  );
  const title =
    paths.length === 1
      ? `Restore ${shown(base(paths[0])) || 'everything'}`
      : `Restore ${plural(paths.length, 'item')}`;
  const shownDialog = dialog(title, body);
  try {
    const plan = await look(at, paths);
    if (shownDialog.isConnected) confirm(shownDialog, body, at, paths, plan);
  } catch (error) {
    replace(body, trouble(error), closing(shownDialog));
  }
}

/** The present content, the restored one, and the snapshots that have the present one. */
async function look(at, paths) {
  const [snapshots, dryRun] = await Promise.all([
    api.snapshots(at),
    api.restore(at, {
      snapshot: at.snapshot,
      paths: paths.map((path) => toBody('source', path)),
      overwrite: true,
      dryRun: true,
    }),
  ]);
  const snapshot = snapshots.find((one) => one.name === at.snapshot);
  const newest = snapshots.filter((one) => !one.writable).at(-1);
  if (paths.length > 1) return { snapshot, newest, dryRun };
  const [versions, past] = await Promise.all([
    api.history({ ...at, path: paths[0] }),
    api.stat({ ...at, path: paths[0] }),
  ]);
  const last = versions.at(-1);
  const now = last?.kind && shortName(last.last, at.dataset) === null ? last : null;
  const keptIn = now && shortName(now.first, at.dataset);
  return { snapshot, newest, dryRun, past, now, keptIn, single: !isFolder(past.kind) };
}

function confirm(shownDialog, body, at, paths, plan) {
  // Also where a snapshot has what is stored: programs may have written since.
  const lost = plan.single ? plan.now : plan.dryRun.replaced > 0 || plan.dryRun.truncated;
  const first = h('input', { type: 'checkbox' });
  first.checked = Boolean(lost);
  const beside = besideName(at, paths[0]);
  const mode = { beside: false };
  const button = h('button', { class: 'primary', 'data-confirm': true }, icon('restore'), '');
  const effect = h('div', { class: 'stack' });
  const safety = h(
    'label',
    { class: 'choice' },
    first,
    h(
      'span',
      null,
      'Take a snapshot first',
      h('span', { class: 'soft small block' }, 'Then this can be undone.'),
    ),
  );
  const draw = () => {
    replace(
      effect,
      mode.beside
        ? h(
            'p',
            null,
            'Puts the old version at ',
            h('strong', { class: 'break' }, h('bdi', null, shown(beside))),
            '. Nothing is replaced.',
          )
        : effects(at, paths, plan),
    );
    safety.hidden = mode.beside || (plan.single ? !plan.now : !lost);
    replace(
      button,
      icon('restore'),
      mode.beside ? 'Put it beside' : plan.single && plan.now ? 'Replace it' : 'Restore',
    );
  };
  const radio = (value, title, detail) =>
    h(
      'label',
      { class: 'choice' },
      h('input', {
        type: 'radio',
        name: 'where',
        checked: mode.beside === value,
        onchange: () => {
          mode.beside = value;
          draw();
        },
      }),
      h('span', null, title, h('span', { class: 'soft small block break' }, detail)),
    );
  button.addEventListener('click', () =>
    start(shownDialog, body, at, {
      paths: mode.beside
        ? [{ ...toBody('source', paths[0]), ...toBody('destination', beside) }]
        : paths.map((path) => toBody('source', path)),
      first: !mode.beside && !safety.hidden && first.checked,
      overwrite: !mode.beside,
    }),
  );
  replace(
    body,
    h(
      'p',
      null,
      'From the snapshot ',
      h('strong', { class: 'break' }, visible(at.snapshot)),
      plan.snapshot && [', taken ', timeElement(plan.snapshot.created, when)],
      '.',
    ),
    h(
      'ul',
      { class: 'paths' },
      paths
        .slice(0, NAMED_MAX)
        .map((path) => h('li', null, h('bdi', { class: 'break' }, shown(path)))),
      paths.length > NAMED_MAX &&
        h('li', { class: 'soft' }, `and ${plural(paths.length - NAMED_MAX, 'other')}`),
    ),
    plan.single &&
      plan.now &&
      h(
        'fieldset',
        null,
        h('legend', { class: 'unseen' }, 'Where'),
        radio(
          false,
          'Replace the present file',
          'It gets the content, times and permissions of the snapshot.',
        ),
        radio(
          true,
          'Keep the present file',
          `The old one goes beside it, as ${shown(base(beside))}`,
        ),
      ),
    effect,
    safety,
    h(
      'div',
      { class: 'actions' },
      h('button', { onclick: () => shownDialog.close() }, 'Cancel'),
      button,
    ),
  );
  draw();
  button.focus();
}

/** report.txt of the snapshot monday becomes report (monday).txt. */
function besideName(at, path) {
  const name = base(path);
  const dot = name.lastIndexOf('.');
  const [stem, end] = dot > 0 ? [name.slice(0, dot), name.slice(dot)] : [name, ''];
  return join(parent(path), `${stem}${fromText(` (${at.snapshot})`).slice(1)}${end}`);
}

function effects(at, paths, plan) {
  const { past, now, keptIn, dryRun, newest } = plan;
  if (plan.single && !now)
    return h(
      'p',
      null,
      'Puts it back: ',
      describe(past),
      '. There is nothing at this path now, so nothing is replaced.',
    );
  if (plan.single) {
    return [
      h(
        'dl',
        { class: 'swap' },
        h('dt', null, 'Now'),
        h('dd', null, describe(now)),
        h('dt', null, 'After'),
        h('dd', null, describe(past)),
      ),
      dryRun.unchanged > 0
        ? h(
            'div',
            { class: 'notice' },
            icon('check'),
            h('span', null, 'The present file is this version already.'),
          )
        : keptIn
          ? h(
              'div',
              { class: 'notice' },
              icon('check'),
              h(
                'span',
                null,
                'The snapshot ',
                h('strong', null, visible(keptIn)),
                ' has the content that is stored now. What programs wrote in the last seconds may ' +
                  'not be stored yet.',
              ),
            )
          : h(
              'div',
              { class: 'notice warn' },
              icon('warning'),
              h(
                'span',
                null,
                h('strong', null, 'No snapshot has the present content.'),
                ' It is lost unless you take one first.',
              ),
            ),
    ];
  }
  return [
    h('p', null, counted(dryRun)),
    h(
      'p',
      { class: 'soft' },
      'Files that are only there now stay. Each file is replaced at once, never half.',
    ),
    (dryRun.replaced > 0 || dryRun.truncated) &&
      h(
        'div',
        { class: 'notice warn' },
        icon('warning'),
        h(
          'span',
          null,
          'What was changed ',
          newest
            ? [
                'since the newest snapshot (',
                h('strong', null, visible(newest.name)),
                ', ',
                timeElement(newest.created),
                ')',
              ]
            : 'and is in no snapshot',
          ' is lost where it is replaced, unless you take a snapshot first.',
        ),
      ),
  ];
}

const describe = (file) => [bytes(file.size), ', changed ', timeElement(file.modified, when)];

/** The counts of a dry run, in words. */
function counted({ replaced, created, unchanged, folders, bytes: size, truncated }) {
  const said = [
    replaced > 0 && `replaces ${plural(replaced, 'file')}`,
    created > 0 && `adds ${plural(created, 'file')}`,
    folders > 0 && replaced + created > 0 && `in ${plural(folders, 'folder')}`,
  ]
    .filter(Boolean)
    .join(', ');
  if (said === '' && !truncated)
    return 'Everything there is as it was in the snapshot: nothing changes but folders.';
  return [
    `This ${said || 'changes nothing so far'} (${bytes(size)}).`,
    unchanged > 0 && ` ${plural(unchanged, 'file')} are as they were.`,
    truncated && ' There are more than were counted.',
  ];
}
