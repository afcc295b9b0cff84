// Snapshots: their names and times, and the dialogs that take and delete one.

import * as api from './api.js';
import { dialog, h, icon, replace, toast } from './dom.js';
import { bytes, when } from './format.js';
import { trouble } from './failure.js';
import { visible } from './paths.js';
import { show } from './router.js';

/** A name for a snapshot that is taken now: manual-20261130-071205. */
export function nameForNow(prefix) {
  return `${prefix}-${new Date().toISOString().slice(0, 19).replace(/[-:]/g, '').replace('T', '-')}`;
}

/** The snapshot's own name, of DATASET@SNAPSHOT too; null is the dataset as it is now. */
export function shortName(name, dataset) {
  if (!name || name === dataset) return null;
  return name.startsWith(`${dataset}@`) ? name.slice(dataset.length + 1) : name;
}

export function snapshotDialog(at) {
  const said = h('div');
  const name = h('input', {
    type: 'text',
    id: 'snapshot-name',
    required: true,
    autocomplete: 'off',
    spellcheck: 'false',
    value: nameForNow('manual'),
  });
  const writable = h('input', { type: 'checkbox' });
  const button = h('button', { class: 'primary' }, 'Take it');
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await api.createSnapshot(at, { name: name.value, readOnly: !writable.checked });
      shown.close();
      toast(`Took the snapshot ${name.value}`);
      await show();
    } catch (error) {
      replace(said, trouble(error));
      button.disabled = false;
    }
  };
  const shown = dialog(
    `Take a snapshot of ${visible(at.dataset)}`,
    h(
      'form',
      { class: 'body', onsubmit: submit },
      said,
      h('div', { class: 'field' }, h('label', { for: 'snapshot-name' }, 'Name'), name),
      h(
        'label',
        { class: 'choice' },
        writable,
        h(
          'span',
          null,
          'Writable',
          h(
            'span',
            { class: 'soft small block' },
            'For trying something out: a clone that can be changed, and is no backup.',
          ),
        ),
      ),
      h(
        'div',
        { class: 'actions' },
        h('button', { type: 'button', onclick: () => shown.close() }, 'Cancel'),
        button,
      ),
    ),
  );
  name.select();
}

export function deleteDialog(at, snapshot) {
  const said = h('div');
  const button = h(
    'button',
    {
      class: 'danger',
      onclick: async () => {
        button.disabled = true;
        try {
          await api.deleteSnapshot(at, snapshot.name);
          shown.close();
          toast(`Deleted the snapshot ${snapshot.name}`);
          await show();
        } catch (error) {
          replace(said, trouble(error));
          button.disabled = false;
        }
      },
    },
    icon('trash'),
    'Delete it',
  );
  const shown = dialog(
    `Delete ${visible(snapshot.name)}?`,
    h(
      'div',
      { class: 'body' },
      said,
      h(
        'p',
        null,
        'The snapshot of ',
        h('strong', null, when(snapshot.created)),
        ' will be gone. Versions of files that only it has cannot be brought back.',
      ),
      h(
        'p',
        { class: 'soft' },
        `It refers to ${bytes(snapshot.referencedBytes)} of data. The dataset and its other snapshots stay as they are.`,
      ),
      h(
        'div',
        { class: 'actions' },
        h('button', { onclick: () => shown.close() }, 'Keep it'),
        button,
      ),
    ),
  );
}
