// The REST API as functions. Every failure is an `ApiError`, which knows what a person can do.

const BASE = '/api/v1';
const PAGE = 1000;
/** Entries of a folder: few at first, so that something is seen at once, then many. */
const ENTRIES_FIRST = 500;
const ENTRIES_PAGE = 10000;
/** Lists that every view asks for are kept this long. */
const FRESH_MS = 10000;

export class ApiError extends Error {
  constructor(status, title, detail, type) {
    super(detail || title);
    Object.assign(this, { status, title, detail, type });
  }
}

let csrf = null;
let kept = new Map();

/** A query string; the value of `path` is percent-encoded already, a list repeats its name. */
export function query(values) {
  const pairs = [];
  for (const [name, value] of Object.entries(values ?? {})) {
    for (const one of [value].flat()) {
      if (one === null || one === undefined || one === '' || one === false) continue;
      pairs.push(`${name}=${name === 'path' ? one : encodeURIComponent(one)}`);
    }
  }
  return pairs.length ? `?${pairs.join('&')}` : '';
}

async function send(url, { method = 'GET', body, signal, headers = {}, quiet = false } = {}) {
  const request = {
    method,
    signal,
    credentials: 'same-origin',
    headers: { Accept: 'application/json', ...headers },
  };
  if (method !== 'GET' && method !== 'HEAD') {
    request.headers['X-Csrf-Token'] = csrf ?? '';
    kept = new Map();
  }
  if (body !== undefined) {
    request.headers['Content-Type'] = 'application/json';
    request.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(url, request);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(
      0,
      'The server does not answer',
      'It may be restarting, or the network is down.',
    );
  }
  if (!answer.ok) throw await problem(answer, quiet);
  return answer;
}

async function problem(answer, quiet) {
  let said = {};
  try {
    said = await answer.json();
  } catch {
    /* An answer without a body says enough by its status. */
  }
  const error = new ApiError(
    answer.status,
    said.title ?? `Status ${answer.status}`,
    said.detail ?? '',
    said.type,
  );
  if (answer.status === 401 && !quiet) document.dispatchEvent(new CustomEvent('session-ended'));
  return error;
}

async function json(url, options) {
  const answer = await send(url, options);
  return answer.status === 204 ? null : answer.json();
}

/** Every item of a list, page by page. */
async function all(url, values, options) {
  const items = [];
  let cursor = null;
  do {
    const page = await json(url + query({ ...values, limit: PAGE, cursor }), options);
    items.push(...page.items);
    cursor = page.next;
  } while (cursor);
  return items;
}

/** Like `all`, with what was read in the last seconds. */
function recent(url, values) {
  const key = url + query(values);
  const hit = kept.get(key);
  if (hit && Date.now() - hit.at < FRESH_MS) return hit.items;
  const items = all(url, values);
  kept.set(key, { at: Date.now(), items });
  items.catch(() => kept.delete(key));
  return items;
}

const part = encodeURIComponent;
const poolUrl = (pool) => `${BASE}/pools/${part(pool)}`;
const datasetUrl = ({ pool, dataset }) => `${poolUrl(pool)}/datasets/${part(dataset)}`;

export async function session() {
  const known = await json(`${BASE}/session`);
  csrf = known.csrf;
  return known;
}
export async function login(token) {
  await json(`${BASE}/login`, { method: 'POST', body: { token }, quiet: true });
}
export const logout = () => json(`${BASE}/logout`, { method: 'POST' });

export const pools = () => recent(`${BASE}/pools`);
export const datasets = (pool) => recent(`${poolUrl(pool)}/datasets`);
export const dataset = (at, signal) => json(datasetUrl(at), { signal });
export const createDataset = (pool, body) =>
  json(`${poolUrl(pool)}/datasets`, { method: 'POST', body });
export const changeDataset = (at, body) => json(datasetUrl(at), { method: 'PATCH', body });
export const renameDataset = (at, name) =>
  json(`${datasetUrl(at)}/rename`, { method: 'POST', body: { name } });
export const space = (pool, values, signal) =>
  json(`${poolUrl(pool)}/space${query(values)}`, { signal });

/** Snapshots that can be read, from the oldest to the newest. */
export async function snapshots(at) {
  const items = await recent(`${datasetUrl(at)}/snapshots`);
  const ready = items.filter((one) => one.state === 'ready');
  return ready.sort((a, b) => new Date(a.created) - new Date(b.created));
}
export const createSnapshot = (at, body) =>
  json(`${datasetUrl(at)}/snapshots`, { method: 'POST', body });
export const deleteSnapshot = (at, name) =>
  json(`${datasetUrl(at)}/snapshots/${part(name)}`, { method: 'DELETE' });

/** The entries of a folder, a page at a time. */
export async function* entries(at, signal) {
  let cursor = null;
  do {
    const values = {
      snapshot: at.snapshot,
      path: at.path,
      limit: cursor ? ENTRIES_PAGE : ENTRIES_FIRST,
      cursor,
    };
    const page = await json(`${datasetUrl(at)}/entries${query(values)}`, { signal });
    yield page.items;
    cursor = page.next;
  } while (cursor);
}

const fileQuery = (at) => query({ snapshot: at.snapshot, path: at.path });
export const stat = (at, signal) => json(`${datasetUrl(at)}/stat${fileQuery(at)}`, { signal });
export const contentUrl = (at) => `${datasetUrl(at)}/content${fileQuery(at)}`;
export const archiveUrl = (at, paths, format) =>
  `${datasetUrl(at)}/archive${query({ format, snapshot: at.snapshot, path: paths })}`;

/** The first `limit` bytes of a file. */
export async function content(at, limit, signal) {
  const answer = await send(contentUrl(at), {
    signal,
    headers: { Accept: '*/*', Range: `bytes=0-${limit - 1}` },
  });
  return new Uint8Array(await answer.arrayBuffer());
}
/** Whether a file's contents may be read: fails as the download would. */
export const mayRead = (at) => send(contentUrl(at), { method: 'HEAD', headers: { Accept: '*/*' } });

export async function history(at, signal) {
  const values = { path: at.path };
  return (await json(`${datasetUrl(at)}/history${query(values)}`, { signal })).items;
}
export const find = (at, values, signal) =>
  json(`${datasetUrl(at)}/find${query(values)}`, { signal });
export const diff = (at, values, signal) =>
  json(`${datasetUrl(at)}/diff${query(values)}`, { signal });
export const restore = (at, body) => json(`${datasetUrl(at)}/restores`, { method: 'POST', body });

export const tasks = async (signal) => (await json(`${BASE}/tasks`, { signal })).items;
export const task = (id) => json(`${BASE}/tasks/${part(id)}`);
export const stopTask = (id) => json(`${BASE}/tasks/${part(id)}/stop`, { method: 'POST' });
export const problems = async (signal) => (await json(`${BASE}/problems`, { signal })).items;

/** A dataset's snapshot policy; a dataset without one is an error of status 404. */
export const policy = (at, signal) => json(`${datasetUrl(at)}/policy`, { signal });
export const setPolicy = (at, body) => json(`${datasetUrl(at)}/policy`, { method: 'PUT', body });
export const deletePolicy = (at) => json(`${datasetUrl(at)}/policy`, { method: 'DELETE' });
export const simulatePolicy = (at, body) =>
  json(`${datasetUrl(at)}/policy/simulate`, { method: 'POST', body });
