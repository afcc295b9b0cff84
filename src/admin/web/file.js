// One file first: its versions across all snapshots and now; look at one, compare two, download,
// restore.

import * as api from './api.js';
import { h, icon } from './dom.js';
import { bytes, plural, timeElement, when } from './format.js';
import { comparison } from './compare.js';
import { crumbs } from './crumbs.js';
import { frame } from './frame.js';
import { kindIcon, isFile, isFolder, isLink } from './kinds.js';
import { base, parent, shown, visible } from './paths.js';
import { preview } from './preview.js';
import { go, link } from './router.js';
import { restoreDialog } from './restore.js';
import { downloadFile } from './selection.js';
import { may, poolOf } from './shell.js';
import { shortName } from './snapshots.js';

/** How a URL names the dataset as it is now, among snapshots. */
const LIVE = '@live';
const NARROW = '(max-width: 980px)';

export async function view(given, signal) {
  const at = { pool: poolOf(given), dataset: given.dataset, path: given.path ?? '/' };
  const [found, snapshots] = await Promise.all([api.history(at, signal), api.snapshots(at)]);
  const versions = described(found, snapshots, at.dataset);
  const chosen =
    pick(versions, given.snapshot) ?? versions.findLast((one) => one.kind) ?? versions.at(-1);
  const other = given.with && pick(versions, given.with === LIVE ? null : given.with, true);
  const name = shown(base(at.path)) || '/';
  const panel =
    other && other !== chosen && other.kind && chosen.kind
      ? comparison(at, older(versions, other, chosen), signal)
      : detail(at, chosen, versions, signal);
  const moment = given.snapshot === LIVE ? undefined : given.snapshot;
  const folder = link('files', { ...at, snapshot: moment, path: parent(at.path) });
  const node = [
    frame(at, 'files'),
    h(
      'div',
      { class: 'row apart' },
      crumbs({ ...at, snapshot: moment }),
      h('span', { class: 'soft' }, plural(versions.filter((one) => one.kind).length, 'version')),
    ),
    h(
      'div',
      { class: 'split' },
      h(
        'section',
        { 'aria-label': 'Versions' },
        h('h2', null, 'Versions'),
        list(at, versions, chosen, other),
      ),
      h('section', { 'aria-label': other ? 'Comparison' : 'Version', class: 'card' }, panel),
    ),
  ];
  document.addEventListener('keydown', (event) => back(event, folder), { signal });
  // On a phone the version is below the list: whoever chose one wants to see it.
  const ready = () => {
    if ((given.snapshot || given.with) && matchMedia(NARROW).matches)
      node.at(-1).lastChild.scrollIntoView();
  };
  return { title: `${name} · versions`, node, ready };
}

/** Backspace leads to the folder, as in a list of files. */
function back(event, folder) {
  if (event.key !== 'Backspace' || event.target.closest('input, select, dialog')) return;
  event.preventDefault();
  go(folder);
}

/** Adds to each version the snapshot it is read from, and when it was first and last seen. */
function described(found, snapshots, dataset) {
  const order = new Map(snapshots.map((one, index) => [one.name, index]));
  return found.map((one) => {
    const first = shortName(one.first, dataset);
    const last = shortName(one.last, dataset);
    const live = last === null;
    // A version that is there now is read from a snapshot if one has it: that never changes.
    return {
      ...one,
      live,
      first,
      last,
      from: first === null ? Infinity : (order.get(first) ?? -1),
      to: live ? Infinity : (order.get(last) ?? -1),
      firstSeen: snapshots[order.get(first)]?.created,
      lastSeen: snapshots[order.get(last)]?.created,
      order,
    };
  });
}

/** The version that a snapshot has; of now for no snapshot, if the URL says so. */
function pick(versions, snapshot, live = false) {
  if (!snapshot) return live ? versions.find((one) => one.live) : undefined;
  if (snapshot === LIVE) return versions.find((one) => one.live);
  const index = versions[0]?.order.get(snapshot);
  return versions.find((one) => index >= one.from && index <= one.to);
}

const older = (versions, a, b) => (versions.indexOf(a) < versions.indexOf(b) ? [a, b] : [b, a]);
const token = (version) => version.last ?? LIVE;

function list(at, versions, chosen, other) {
  return h(
    'ol',
    { class: 'versions' },
    [...versions].reverse().map((version) => {
      const current = version === chosen;
      const seen = version.live
        ? 'Now'
        : version.lastSeen
          ? when(version.lastSeen)
          : visible(version.last);
      if (!version.kind) {
        return h(
          'li',
          { class: 'version gone' },
          h('span', { class: 'version-dot' }),
          h(
            'div',
            { class: 'stack' },
            h('span', { class: 'strong' }, version.live ? 'Not there now' : 'Not there'),
            h('span', { class: 'soft small' }, spanOf(version)),
          ),
        );
      }
      return h(
        'li',
        { class: ['version', current && 'current', version === other && 'other'] },
        h('span', { class: 'version-dot' }),
        h(
          'a',
          {
            class: 'stack grow',
            href: link('file', { ...at, snapshot: token(version) }),
            'aria-current': current ? 'true' : null,
          },
          h(
            'span',
            { class: 'row' },
            h('span', { class: 'strong' }, seen),
            version.live && h('span', { class: 'tag good' }, 'present'),
          ),
          h(
            'span',
            { class: 'small' },
            isFile(version.kind) ? bytes(version.size) : version.kind,
            ' · changed ',
            timeElement(version.modified),
          ),
          h('span', { class: 'soft small' }, spanOf(version)),
        ),
        !current &&
          chosen.kind &&
          isFile(version.kind) &&
          h(
            'a',
            {
              class: 'button quiet icon-only',
              href: link('file', { ...at, snapshot: token(chosen), with: token(version) }),
              'aria-label': `Compare with the version of ${seen}`,
              title: 'Compare',
            },
            icon('compare'),
          ),
      );
    }),
  );
}

function spanOf(version) {
  const amount = version.snapshots;
  const inSnapshots = version.live ? amount - 1 : amount;
  if (version.live && inSnapshots === 0) return 'in no snapshot';
  if (inSnapshots === 1) return `in ${visible(version.first)}`;
  return `in ${plural(inSnapshots, 'snapshot')}, since ${version.firstSeen ? when(version.firstSeen) : visible(version.first)}`;
}

function detail(at, version, versions, signal) {
  if (!version?.kind) {
    const last = versions.findLast((one) => one.kind);
    return h(
      'div',
      { class: 'empty' },
      icon('search'),
      h('h2', null, 'Not there'),
      h('p', null, 'At this time the path led to nothing.'),
      last &&
        h(
          'a',
          { class: 'button primary', href: link('file', { ...at, snapshot: token(last) }) },
          'Show its last version',
        ),
    );
  }
  const there = { ...at, snapshot: version.last };
  const others = versions.filter((one) => isFile(one.kind) && one !== version);
  const compare = h(
    'select',
    {
      'aria-label': 'Compare with',
      onchange: (event) =>
        go(link('file', { ...at, snapshot: token(version), with: event.target.value })),
    },
    h('option', { value: '' }, 'Compare with…'),
    [...others]
      .reverse()
      .map((one) =>
        h(
          'option',
          { value: token(one) },
          one.live ? 'the present version' : one.lastSeen ? when(one.lastSeen) : one.last,
        ),
      ),
  );
  const restore =
    may('restorer') &&
    !version.live &&
    h(
      'button',
      { class: 'primary', onclick: () => restoreDialog(there, [at.path]) },
      icon('restore'),
      'Restore this version…',
    );
  return [
    h(
      'div',
      { class: 'row apart wrap' },
      h(
        'h2',
        { class: 'row' },
        kindIcon(version.kind),
        version.live
          ? 'Present version'
          : ['Version of ', version.lastSeen ? when(version.lastSeen) : visible(version.last)],
      ),
      h(
        'div',
        { class: 'row wrap version-actions' },
        isFile(version.kind) && others.length > 0 && compare,
        may('reader') &&
          isFile(version.kind) &&
          h('button', { onclick: () => downloadFile(there) }, icon('download'), 'Download'),
        isFolder(version.kind) &&
          h('a', { class: 'button', href: link('files', there) }, 'Open the folder'),
        restore,
      ),
    ),
    isFile(version.kind)
      ? preview(there, version, signal)
      : isLink(version.kind)
        ? linkDetail(there, signal)
        : null,
  ];
}

function linkDetail(at, signal) {
  const said = h('p', { class: 'soft' }, 'A symbolic link.');
  api.stat(at, signal).then(
    (entry) => {
      said.textContent = `A symbolic link to ${visible(entry.target ?? '?')}. Links are not followed here.`;
    },
    () => {},
  );
  return said;
}
