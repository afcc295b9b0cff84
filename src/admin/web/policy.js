// A dataset's snapshot policy: when snapshots are taken, which are kept, and what that will mean.

import * as api from './api.js';
import { h, icon, replace, svg } from './dom.js';
import { day, plural, timeElement, when } from './format.js';
import { trouble } from './failure.js';
import { frame } from './frame.js';
import { visible } from './paths.js';
import { TIERS, edit, remove } from './policyedit.js';
import { may, poolOf } from './shell.js';

const SIMULATED_DAYS = [7, 30, 90, 365];
const SUGGESTED = {
  schedule: '1h',
  timeZone: Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC',
  prefix: 'auto-',
  skipEmpty: true,
  keep: { hourly: '24', daily: '14', weekly: '8' },
};

export async function view(given, signal) {
  const at = { pool: poolOf(given), dataset: given.dataset };
  const policy = await api.policy(at, signal).catch((error) => {
    if (error.status === 404) return null;
    throw error;
  });
  const node = [frame(at, 'policy'), policy ? current(at, policy) : none(at)];
  return { title: `Policy of ${at.dataset}`, node };
}

function none(at) {
  return h(
    'div',
    { class: 'empty card' },
    icon('clock'),
    h('h2', null, 'No snapshots are taken by themselves'),
    h(
      'p',
      null,
      'With a policy the server takes them on a schedule and deletes old ones, so that there is always one to go back to.',
    ),
    may('admin')
      ? h('button', { class: 'primary', onclick: () => edit(at, SUGGESTED, true) }, 'Set a policy')
      : h('p', null, 'A token with the role admin can set one.'),
  );
}

function current(at, policy) {
  const { keep } = policy;
  const simulation = h('div', { class: 'stack wide' });
  const days = h(
    'select',
    { 'aria-label': 'Days ahead' },
    SIMULATED_DAYS.map((value) =>
      h('option', { value, selected: value === 30 }, plural(value, 'day')),
    ),
  );
  const run = async () => {
    replace(simulation, h('p', { class: 'soft', role: 'status' }, 'Simulating…'));
    try {
      replace(simulation, simulated(await api.simulatePolicy(at, { days: Number(days.value) })));
    } catch (error) {
      replace(simulation, trouble(error, run));
    }
  };
  run();
  const fact = (name, value) => value && h('div', null, h('dt', null, name), h('dd', null, value));
  return [
    policy.broken &&
      h(
        'div',
        { class: 'notice bad', role: 'alert' },
        icon('error'),
        h('span', null, 'It takes no snapshots: ', visible(policy.broken), '. Change it.'),
      ),
    h(
      'section',
      { class: 'card' },
      h(
        'div',
        { class: 'row apart wrap' },
        h('h2', null, 'Policy'),
        may('admin') &&
          h(
            'div',
            { class: 'row' },
            h('button', { onclick: () => edit(at, policy, false) }, 'Change'),
            h('button', { class: 'quiet', onclick: () => remove(at) }, icon('trash'), 'Remove'),
          ),
      ),
      h(
        'dl',
        { class: 'facts' },
        fact('Taken', described(policy.schedule)),
        fact('Time zone', visible(policy.timeZone)),
        fact('Names begin with', visible(policy.prefix)),
        fact('Without changes', policy.skipEmpty ? 'none is taken' : 'one is taken'),
        fact('Next', policy.next && timeElement(policy.next, when)),
        fact(
          'Deletes',
          new Date(policy.deletesFrom) > new Date() && [
            'not before ',
            timeElement(policy.deletesFrom, when),
          ],
        ),
      ),
      h('h3', null, 'Kept'),
      h(
        'ul',
        { class: 'keeps' },
        TIERS.filter(([tier]) => keep[tier]).map(([tier, title, about]) =>
          h(
            'li',
            { class: 'tile' },
            h('span', { class: 'big' }, visible(keep[tier])),
            h('span', { class: 'strong' }, title),
            h('span', { class: 'soft small' }, about),
          ),
        ),
      ),
      h(
        'p',
        { class: 'soft small' },
        'The newest one is always kept, and so are those that somebody took or holds. A changed policy deletes nothing for 24 hours.',
      ),
    ),
    h(
      'section',
      null,
      h(
        'div',
        { class: 'row apart wrap' },
        h('h2', null, 'What it would keep'),
        h('div', { class: 'row' }, days, h('button', { onclick: run }, 'Simulate')),
      ),
      simulation,
    ),
  ];
}

const UNITS = { min: 'minute', h: 'hour', d: 'day', w: 'week', mo: 'month', y: 'year' };

/** An interval in words; a cron expression as it is. */
function described(schedule) {
  const found = /^(\d+)(min|h|d|w|mo|y)$/.exec(schedule);
  if (!found) return h('code', null, visible(schedule));
  const [, amount, unit] = found;
  return amount === '1' ? `every ${UNITS[unit]}` : `every ${plural(Number(amount), UNITS[unit])}`;
}

function simulated(result) {
  const { snapshots } = result;
  const kept = snapshots.filter((one) => !one.deleted);
  return [
    h(
      'p',
      { class: 'row wrap' },
      h('span', { class: 'tag good' }, `${plural(kept.length, 'snapshot')} at the end`),
      h(
        'span',
        { class: 'tag' },
        `${plural(snapshots.length - kept.length, 'snapshot')} deleted meanwhile`,
      ),
      h('span', { class: 'soft small' }, `at most ${plural(result.most, 'snapshot')} at a time`),
    ),
    kept.length > 0 && keptStrip(kept, result.until),
    h(
      'div',
      { class: 'card flush scroll' },
      h(
        'table',
        null,
        h('caption', { class: 'unseen' }, 'Snapshots that would be kept'),
        h(
          'thead',
          null,
          h(
            'tr',
            null,
            h('th', null, 'Snapshot'),
            h('th', null, 'Taken'),
            h('th', null, 'Kept because'),
          ),
        ),
        h(
          'tbody',
          null,
          [...kept]
            .reverse()
            .map((one) =>
              h(
                'tr',
                null,
                h(
                  'td',
                  { class: 'break' },
                  visible(one.name),
                  one.exists && h('span', { class: 'tag' }, 'exists'),
                ),
                h('td', null, timeElement(one.created, when)),
                h('td', null, visible(one.reason)),
              ),
            ),
        ),
      ),
    ),
  ];
}

/** Where in time the kept snapshots stand. */
function keptStrip(kept, until) {
  const first = new Date(kept[0].created);
  const last = new Date(until);
  const place = (time) => 8 + ((new Date(time) - first) / Math.max(1, last - first)) * 984;
  return h(
    'figure',
    { class: 'card strip' },
    svg(
      'svg',
      { viewBox: '0 0 1000 24', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      svg('line', { class: 'strip-line', x1: 0, x2: 1000, y1: 23, y2: 23 }),
      kept.map((one) =>
        svg(
          'rect',
          {
            class: ['strip-bar', one.exists && 'strip-old'],
            x: place(one.created) - 2,
            width: 4,
            y: 4,
            height: 19,
            rx: 2,
          },
          svg('title', null, `${visible(one.name)}: ${visible(one.reason)}`),
        ),
      ),
    ),
    h(
      'figcaption',
      { class: 'row apart soft small' },
      h('span', null, day(first)),
      h('span', null, day(last)),
    ),
  );
}
