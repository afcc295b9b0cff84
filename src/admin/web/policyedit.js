// The dialogs that set, change and remove a dataset's snapshot policy.

import * as api from './api.js';
import { dialog, h, replace, toast } from './dom.js';
import { trouble } from './failure.js';
import { show } from './router.js';

/** The rules of a policy: which snapshots each keeps. */
export const TIERS = [
  ['last', 'Newest', 'of all snapshots'],
  ['hourly', 'Hourly', 'the newest of each hour'],
  ['daily', 'Daily', 'the newest of each day'],
  ['weekly', 'Weekly', 'the newest of each week'],
  ['monthly', 'Monthly', 'the newest of each month'],
];

export function edit(at, policy, isNew) {
  const said = h('div');
  const field = (id, title, value, about) =>
    h(
      'div',
      { class: 'field' },
      h('label', { for: `policy-${id}` }, title),
      h('input', {
        type: 'text',
        id: `policy-${id}`,
        name: id,
        value: value ?? '',
        autocomplete: 'off',
        spellcheck: 'false',
      }),
      about && h('span', { class: 'soft small' }, about),
    );
  const skip = h('input', { type: 'checkbox', name: 'skipEmpty', checked: policy.skipEmpty });
  const form = h(
    'form',
    { class: 'body' },
    said,
    field(
      'schedule',
      'Take one every',
      policy.schedule,
      'An interval like 15min, 6h or 1d, or five fields of cron: 0 3 * * *',
    ),
    field('timeZone', 'Time zone', policy.timeZone, 'Of hours, days and weeks: Europe/Vienna'),
    field('prefix', 'Names begin with', policy.prefix),
    h('label', { class: 'choice' }, skip, h('span', null, 'Take none while nothing has changed')),
    h(
      'fieldset',
      { class: 'stack' },
      h('legend', { class: 'strong' }, 'Keep'),
      h(
        'p',
        { class: 'soft small' },
        'A number of snapshots, or a time like 48h, 30d or 6mo. Empty: no rule.',
      ),
      h(
        'div',
        { class: 'tiers' },
        TIERS.map(([tier, title]) => field(`keep-${tier}`, title, policy.keep?.[tier])),
      ),
    ),
    h(
      'div',
      { class: 'actions' },
      h('button', { type: 'button', onclick: () => shown.close() }, 'Cancel'),
      h('button', { class: 'primary' }, isNew ? 'Set the policy' : 'Change the policy'),
    ),
  );
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const values = new FormData(form);
    const keep = Object.fromEntries(
      TIERS.map(([tier]) => [tier, values.get(`keep-${tier}`).trim()]).filter(([, rule]) => rule),
    );
    try {
      await api.setPolicy(at, {
        schedule: values.get('schedule').trim(),
        timeZone: values.get('timeZone').trim(),
        prefix: values.get('prefix').trim(),
        skipEmpty: skip.checked,
        keep,
      });
      shown.close();
      toast('The policy is set');
      await show();
    } catch (error) {
      replace(said, trouble(error));
      said.scrollIntoView({ block: 'nearest' });
    }
  });
  const shown = dialog(isNew ? 'Set a policy' : 'Change the policy', form);
  form.elements.schedule.focus();
}

export function remove(at) {
  const said = h('div');
  const act = async () => {
    try {
      await api.deletePolicy(at);
      shown.close();
      toast('The policy is removed');
      await show();
    } catch (error) {
      replace(said, trouble(error));
    }
  };
  const shown = dialog(
    'Remove the policy?',
    h(
      'div',
      { class: 'body' },
      said,
      h(
        'p',
        null,
        'No more snapshots are taken by themselves, and none is deleted. Those that exist stay until somebody deletes them.',
      ),
      h(
        'div',
        { class: 'actions' },
        h('button', { onclick: () => shown.close() }, 'Keep it'),
        h('button', { class: 'danger', onclick: act }, 'Remove it'),
      ),
    ),
  );
}
