// Errors, and the next step for each.

import { h, icon } from './dom.js';

const ADVICE = {
  0: 'Check that the server still runs (zerofs-csi serve …), then try again.',
  403: 'Your token’s role does not allow this. Ask whoever runs the server for one with a higher role: viewer lists names, reader reads files, restorer restores and takes snapshots.',
  404: 'It may have been deleted or renamed since this address was made.',
  409: 'Something else is changing it. Wait a moment, then try again.',
  429: 'Too many requests at once. Wait a moment, then try again.',
  501: 'This server cannot do it. A newer version may.',
  503: 'The object store or the node that owns the dataset does not answer. The problems on the first page may say why.',
  507: 'There is no room left: expand the dataset, or delete what is not needed.',
};

export const advice = (error) =>
  ADVICE[error.status] ??
  (error.status >= 500 ? 'Try again; if it goes on, the server’s log says more.' : '');

/** A whole view that failed. */
export function failure(error, again) {
  const title =
    error.status === 404
      ? 'Not there'
      : error.status === 403
        ? 'Not allowed'
        : (error.title ?? 'Something went wrong');
  return h(
    'div',
    { class: 'empty', role: 'alert' },
    icon(error.status === 404 ? 'search' : 'error'),
    h('h1', null, title),
    h('p', { class: 'break' }, error.message),
    h('p', null, advice(error)),
    h(
      'div',
      { class: 'row' },
      again && h('button', { class: 'primary', onclick: again }, 'Try again'),
      h('a', { class: 'button', href: '/' }, 'All datasets'),
    ),
  );
}

/** A part of a view that failed. */
export function trouble(error, again) {
  return h(
    'div',
    { class: 'notice bad', role: 'alert' },
    icon('error'),
    h(
      'div',
      { class: 'stack grow' },
      h('strong', { class: 'break' }, error.message),
      h('span', { class: 'soft' }, advice(error)),
      again && h('div', null, h('button', { onclick: again }, 'Try again')),
    ),
  );
}
