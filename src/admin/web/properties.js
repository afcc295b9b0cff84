// The dialogs that change the properties of a dataset, and its name.

import * as api from './api.js';
import { dialog, h, replace, toast } from './dom.js';
import { sizeText } from './format.js';
import { trouble } from './failure.js';
import { parseSize } from './home.js';
import { visible } from './paths.js';
import { go, link, show } from './router.js';

const wrong = (message) => Object.assign(new Error(message), { status: 400 });

/** How a kind of value is written in its field, and read from it. */
const SIZE = {
  write: sizeText,
  read: (text) => {
    const found = parseSize(text);
    if (found === null) throw wrong(`${text} is no size: write 500Mi, 20Gi or 1.5Ti`);
    return found;
  },
};
const NUMBER = {
  write: (value) => (value === null ? '' : String(value)),
  read: (text) => {
    if (!/^\d+$/.test(text)) throw wrong(`${text} is no number`);
    return Number(text);
  },
};
const CHOICE = { write: (value) => value ?? 'default', read: (text) => text };

/**
 * The properties, as the server names them. `none`: the value of an empty field; without it the
 * field may not be emptied.
 */
const PROPERTIES = [
  { name: 'sizeBytes', title: 'Size, at most', kind: SIZE, about: 'It can grow, and not shrink.' },
  { name: 'quotaInodes', title: 'Files, at most', kind: NUMBER, none: 0, about: 'Empty: no limit.' },
  { name: 'maxReadBandwidth', title: 'Bytes read a second, at most', kind: SIZE, none: 0 },
  { name: 'maxWriteBandwidth', title: 'Bytes written a second, at most', kind: SIZE, none: 0 },
  { name: 'maxIops', title: 'Reads and writes a second, at most', kind: NUMBER, none: 0 },
  {
    name: 'recordBytes',
    title: 'Record size',
    kind: SIZE,
    about: 'Of files that are created later.',
  },
  {
    name: 'compression',
    title: 'Compression',
    kind: CHOICE,
    choices: { none: 'none', lz4: 'lz4', zstd: 'zstd' },
    about: 'Of data that is written later.',
  },
  {
    name: 'sync',
    title: 'Sync',
    kind: CHOICE,
    choices: {
      default: 'by access modes',
      standard: 'standard',
      always: 'always',
      disabled: 'disabled',
    },
  },
  {
    name: 'snapdir',
    title: 'Folder .snapshots',
    kind: CHOICE,
    choices: { hidden: 'hidden', visible: 'visible' },
    about: 'Whether the root folder lists it.',
  },
];

function field({ name, title, kind, choices, none, about }, dataset) {
  const value = kind.write(dataset[name]);
  const id = `property-${name}`;
  const options = Object.entries(choices ?? {}).map(([key, text]) =>
    h('option', { value: key, selected: key === value }, text),
  );
  const input = choices
    ? h('select', { id, name }, options)
    : h('input', {
        type: 'text',
        id,
        name,
        value,
        placeholder: none === 0 ? 'no limit' : null,
        autocomplete: 'off',
        spellcheck: 'false',
      });
  return h(
    'div',
    { class: 'field' },
    h('label', { for: id }, title),
    input,
    about && h('span', { class: 'soft small' }, about),
  );
}

/** The values that differ from those of the dataset. */
function changes(form, dataset) {
  const changed = {};
  for (const { name, title, kind, none } of PROPERTIES) {
    const text = form.elements[name].value.trim();
    if (text === kind.write(dataset[name])) continue;
    if (text === '' && none === undefined) throw wrong(`${title}: a value is missing`);
    changed[name] = text === '' ? none : kind.read(text);
  }
  return changed;
}

export function changeDialog(at, dataset, isDefault) {
  const said = h('div');
  const chosen = h('input', { type: 'checkbox', name: 'default', checked: isDefault });
  const button = h('button', { class: 'primary' }, 'Change');
  const form = h(
    'form',
    { class: 'body' },
    said,
    h(
      'p',
      { class: 'soft small' },
      'They hold at once, also where the dataset is in use. Sizes are like 500Mi, 20Gi or 1.5Ti.',
    ),
    h(
      'div',
      { class: 'pairs' },
      PROPERTIES.map((property) => field(property, dataset)),
    ),
    h(
      'label',
      { class: 'choice' },
      chosen,
      h('span', null, 'The default dataset, which commands without a name use'),
    ),
    h(
      'div',
      { class: 'actions' },
      h('button', { type: 'button', onclick: () => shown.close() }, 'Cancel'),
      button,
    ),
  );
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const changed = changes(form, dataset);
      if (chosen.checked !== isDefault) changed.default = chosen.checked;
      if (Object.keys(changed).length > 0) {
        await api.changeDataset(at, changed);
        toast(`Changed ${visible(at.dataset)}`);
      }
      shown.close();
      await show();
    } catch (error) {
      replace(said, trouble(error));
      said.scrollIntoView({ block: 'nearest' });
      button.disabled = false;
    }
  });
  const shown = dialog(`Change ${visible(at.dataset)}`, form);
  form.elements.sizeBytes.focus();
}

export function renameDialog(at) {
  const said = h('div');
  const name = h('input', {
    type: 'text',
    id: 'rename-name',
    required: true,
    autocomplete: 'off',
    spellcheck: 'false',
    value: at.dataset,
  });
  const button = h('button', { class: 'primary' }, 'Rename');
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      const renamed = await api.renameDataset(at, name.value.trim());
      shown.close();
      toast(`Renamed ${visible(at.dataset)} to ${visible(renamed.name)}`);
      await go(link('dataset', { pool: at.pool, dataset: renamed.name }));
    } catch (error) {
      replace(said, trouble(error));
      button.disabled = false;
    }
  };
  const shown = dialog(
    `Rename ${visible(at.dataset)}`,
    h(
      'form',
      { class: 'body', onsubmit: submit },
      said,
      h('div', { class: 'field' }, h('label', { for: 'rename-name' }, 'Name'), name),
      h(
        'p',
        { class: 'soft' },
        'Its snapshots, its policy and mounts that exist stay with it. New mounts by its name need the new one, and so do tokens that are limited to names.',
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
