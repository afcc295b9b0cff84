// Shared by the cases: the browser, the counts, files over NFS, axe, screenshots.

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const env = process.env;
const require = createRequire(`${env.WEB_CACHE}/`);
const { chromium } = require('playwright-core');
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

export const base = `http://127.0.0.1:${env.WEB_ADMIN}`;
export const artefacts = env.WEB_ARTEFACTS;
export const secret = (role) => JSON.parse(fs.readFileSync(`${env.WEB_WORK}/${role}.json`)).token;
/** A case that takes longer has hung. */
const CASE_MS = 240000;
/** What a page may say in the console: an answer that a case provoked. */
const EXPECTED = /Failed to load resource/;

/** The cases to run: all, unless some are looked into. */
const ONLY = new RegExp(env.WEB_ONLY ?? '');

let passed = 0;
let failed = 0;
let browser;
let strays = [];

export async function start() {
  browser = await chromium.launch({ executablePath: chromiumPath(), args: ['--no-sandbox'] });
}

function chromiumPath() {
  const found = ['/usr/bin/chromium', '/usr/bin/chromium-browser'].find((one) =>
    fs.existsSync(one),
  );
  if (!found) throw new Error('chromium is missing: apt-get install chromium');
  return found;
}

export async function finish() {
  await browser.close();
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed > 0 || passed === 0 ? 1 : 0);
}

/** Files of the page that the program was not built with yet, with the headers of the server. */
async function unbuilt(route) {
  const name = new URL(route.request().url()).pathname;
  const body = fs.readFileSync(path.join(env.WEB_ASSETS, name.includes('.') ? name : 'index.html'));
  const answer = await fetch(base);
  const type = { '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' };
  const headers = {
    ...Object.fromEntries(answer.headers),
    'content-type': type[path.extname(name)] ?? 'text/html',
  };
  delete headers['content-length'];
  await route.fulfill({ status: 200, headers, body });
}

/** A page of its own; whatever it does that a page must not do fails the case. */
export async function open(options = {}) {
  const context = await browser.newContext({
    viewport: { width: 1280, height: 800 },
    acceptDownloads: true,
    ...options,
  });
  context.setDefaultTimeout(30000);
  if (env.WEB_ASSETS) await context.route((url) => !url.pathname.startsWith('/api/'), unbuilt);
  const page = await context.newPage();
  page.on('pageerror', (error) => strays.push(`error in the page: ${error.message}`));
  page.on('console', (said) => {
    if (['error', 'warning'].includes(said.type()) && !EXPECTED.test(said.text()))
      strays.push(`console: ${said.text()}`);
  });
  page.on('dialog', (dialog) => {
    strays.push(`a script of the data ran: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on('request', (request) => {
    const { protocol, origin } = new URL(request.url());
    if (!['blob:', 'data:'].includes(protocol) && origin !== base)
      strays.push(`asked another site: ${request.url()}`);
  });
  return page;
}

export async function test(name, body) {
  if (!ONLY.test(name)) return;
  strays = [];
  const pages = new Set(browser.contexts());
  try {
    const limit = new Promise((_, reject) => {
      setTimeout(reject, CASE_MS, new Error(`no end within ${CASE_MS} ms`)).unref();
    });
    await Promise.race([body(), limit]);
    if (strays.length > 0) throw new Error(strays.join('\n'));
    passed += 1;
    console.log(`ok   ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}\n     ${String(error.stack).replaceAll('\n', '\n     ')}`);
    const page = browser.contexts().at(-1)?.pages()[0];
    await page?.screenshot({ path: path.join(artefacts, `failed-${failed}.png`) }).catch(() => {});
  }
  for (const context of browser.contexts()) if (!pages.has(context)) await context.close();
}

export function check(condition, what) {
  if (!condition) throw new Error(what);
}

export function equal(found, wanted, what) {
  check(
    JSON.stringify(found) === JSON.stringify(wanted),
    `${what}: ${JSON.stringify(found)} instead of ${JSON.stringify(wanted)}`,
  );
}

/** Tries until `condition` holds: what a page or store does in its own time. */
export async function until(condition, what, milliseconds = 20000) {
  const end = Date.now() + milliseconds;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`not in ${milliseconds} ms: ${what}`);
    await new Promise((wake) => {
      setTimeout(wake, 100);
    });
  }
}

/** No rule of WCAG A and AA is broken, as far as axe can tell, and nothing sticks out sideways. */
export async function accessible(page, what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() =>
    globalThis.axe.run(document, { resultTypes: ['violations'] }),
  );
  const said = violations.map(
    ({ id, nodes }) =>
      `${id}: ${nodes
        .slice(0, 3)
        .map((node) => `${node.html.slice(0, 160)} ${node.failureSummary}`)
        .join(' | ')}`,
  );
  check(violations.length === 0, `${what}: ${said.join('\n')}`);
  const wide = await page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  );
  check(wide <= 0, `${what}: ${wide} px wider than the screen`);
}

export const shot = (page, name) => page.screenshot({ path: path.join(artefacts, `${name}.png`) });

const encoded = (value) => Buffer.from(value).toString('base64');

/** Changes the files of a dataset as any NFS client would. */
export function nfs(dataset, steps) {
  const input = JSON.stringify(
    steps.map((step) =>
      Object.fromEntries(Object.entries(step).map(([name, value]) => [name, encoded(value)])),
    ),
  );
  const script = fileURLToPath(new URL('files.py', import.meta.url));
  const done = spawnSync('python3', [script, '127.0.0.1', env.WEB_NFS, `/${dataset}`], {
    input,
    encoding: 'utf8',
    timeout: 60000,
  });
  if (done.status !== 0) throw new Error(`files.py: ${done.stderr}`);
  return done.stdout
    .split('\n')
    .filter(Boolean)
    .map((line) => Buffer.from(line, 'base64'));
}

/** Empty files as fast as the server takes them. */
export function manyFiles(dataset, folder, count) {
  const made = spawnSync(
    env.WEB_PROGRAM,
    [
      'bench',
      '--target',
      `127.0.0.1:${env.WEB_NFS}`,
      '--export',
      `/${dataset}`,
      '--only',
      'create',
      '--files',
      String(count),
      '--directory',
      folder,
      '--keep',
      '--concurrency',
      '64',
    ],
    { encoding: 'utf8', timeout: 120000 },
  );
  if (made.status !== 0) throw new Error(`bench: ${made.stderr}`);
}

/** The REST API beside the page, with the admin's token. */
export async function rest(method, url, body) {
  const answer = await fetch(`${base}/api/v1${url}`, {
    method,
    headers: {
      authorization: `Bearer ${secret('admin')}`,
      ...(body ? { 'content-type': 'application/json' } : {}),
    },
    body: body ? JSON.stringify(body) : undefined,
  });
  if (!answer.ok) throw new Error(`${method} ${url}: ${answer.status} ${await answer.text()}`);
  const text = await answer.text();
  return text.startsWith('{') ? JSON.parse(text) : text;
}

/** Waits until the view of the address is shown, and all that it loads. */
export async function settled(page) {
  await page.waitForFunction(() => {
    const main = document.getElementById('main');
    const loads = /(Reading|Comparing|Measuring|Simulating|Searching)…/;
    return performance.getEntriesByName('shown').length > 0 && !loads.test(main.textContent);
  });
}

/** The row of a list that has this name. */
export const row = (page, name) =>
  page.locator('.list-row').filter({ has: page.locator('bdi').getByText(name, { exact: true }) });

/** Signs in by the view that asks for a token. */
export async function signIn(page, address = '/', role = 'admin') {
  await page.goto(base + address);
  await page.getByLabel('Token', { exact: true }).fill(secret(role));
  await page.keyboard.press('Enter');
  await settled(page);
}
