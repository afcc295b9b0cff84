// Every flow of the page, as a person does it. `run` starts the server and sets the environment.

import fs from 'node:fs';
import {
  accessible,
  base,
  check,
  equal,
  finish,
  manyFiles,
  nfs,
  open,
  rest,
  row,
  shot,
  signIn,
  start,
  test,
  until,
} from './harness.mjs';
import { keyboard } from './keyboard.mjs';
import restoring from './restoring.mjs';
import { units } from './units.mjs';
import { views } from './views.mjs';

/** Entries of the large folder, and snapshots of the dataset. */
const MANY = Number(process.env.WEB_MANY ?? 100000);
const SNAPSHOTS = 60;
/** Pixels of a side of a picture; a multiple of 4, as BMP wants it. */
const SIDE = 160;
const numbered = (number) => `file-${String(number).padStart(7, '0')}`;

const text = (edition) =>
  `${Array.from({ length: 300 }, (_, line) => (line % 50 === 7 ? `${line}: edition ${edition}` : `${line}: a line`)).join('\n')}\n`;
/** A picture of one colour, as BMP. */
const picture = (red, green, blue) => {
  const pixels = Buffer.alloc(SIDE * SIDE * 3, Buffer.from([blue, green, red]));
  const head = Buffer.alloc(54);
  head.write('BM');
  for (const [at, value] of [
    [2, 54 + pixels.length],
    [10, 54],
    [14, 40],
    [18, SIDE],
    [22, SIDE],
    [34, pixels.length],
  ])
    head.writeUInt32LE(value, at);
  head.writeUInt16LE(1, 26);
  head.writeUInt16LE(24, 28);
  return Buffer.concat([head, pixels]);
};
const odd = Buffer.from([0x2f, 0x63, 0x61, 0x66, 0xe9, 0x2e, 0x74, 0x78, 0x74]);
const documents = '/pools/main/datasets/documents';
const at = (page, { dataset = 'documents', ...values } = {}) =>
  `/${page}?${new URLSearchParams({ pool: 'main', dataset })}${Object.entries(values)
    .map(([name, value]) => `&${name}=${value}`)
    .join('')}`;
const now = async (path) =>
  rest('GET', `${documents}/content?path=${path}`).catch((error) => error.message);
const snapshot = (name) => rest('POST', `${documents}/snapshots`, { name, readOnly: true });

await start();

await test('the printed address signs in, once', async () => {
  const address = /http:\/\/\S+#token=\S+/.exec(
    fs.readFileSync(`${process.env.WEB_WORK}/ready`, 'utf8') +
      fs.readFileSync(`${process.env.WEB_WORK}/log`, 'utf8'),
  )?.[0];
  check(address, 'the server printed no address with a token');
  const page = await open();
  await page.goto(address);
  await page.getByRole('heading', { name: 'Datasets', exact: true }).waitFor();
  check(!page.url().includes('token='), 'the token stays in the address');
  const other = await open();
  await other.goto(address);
  await other.getByText('one-time token was used').waitFor();
});

await test('a wrong token is refused, and says what to do', async () => {
  const page = await open();
  await page.goto(base);
  await page.getByLabel('Token', { exact: true }).fill('wrong');
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('alert').getByText('token create').waitFor();
  await accessible(page, 'sign in');
  await shot(page, 'sign-in-1280-light');
});

await test('an empty pool leads to the first dataset', async () => {
  const page = await open();
  await signIn(page);
  await page.getByText('No datasets yet').waitFor();
  await accessible(page, 'empty pool');
  await shot(page, 'empty-pool-1280-light');
  await page.getByRole('button', { name: 'Create a dataset' }).click();
  await page.getByLabel('Name').fill('documents');
  await page.getByLabel('Size, at most').fill('much');
  await page.keyboard.press('Enter');
  await page.getByText('much is no size').waitFor();
  await page.getByLabel('Size, at most').fill('10Gi');
  await page.keyboard.press('Enter');
  await page.getByText('No snapshots yet').waitFor();
  equal((await rest('GET', documents)).sizeBytes, 10 * 2 ** 30, 'the quota');
});

await test('snapshots are taken by the page', async () => {
  const page = await open();
  nfs('documents', [
    { mkdir: '/reports' },
    { mkdir: '/reports/2026' },
    { mkdir: '/empty' },
    { write: '/notes.txt', data: text(1) },
    { write: '/reports/2026/plan.txt', data: 'the plan\n' },
    { write: '/reports/lost.txt', data: 'it will be deleted\n' },
    { write: '/picture.bmp', data: picture(200, 30, 30) },
    { write: odd, data: 'not UTF-8\n' },
    { write: '/ملف التقرير.txt', data: 'right to left\n' },
    { write: `/${'long'.repeat(60)}`, data: '' },
    { write: '/evil\u202egpj.exe', data: 'x' },
    { write: '/<img src=x onerror=alert(1)>', data: '<script>alert(2)</script>' },
    { write: '/page.html', data: '<script>alert(3)</script>' },
    { write: '/file10.log', data: 'x' },
    { write: '/file2.log', data: 'xxx' },
    { link: '/latest', to: 'reports/2026' },
  ]);
  await signIn(page, at('dataset'));
  await page.getByRole('button', { name: 'Take the first snapshot' }).click();
  await page.getByLabel('Name').fill('monday');
  await page.getByRole('button', { name: 'Take it' }).click();
  await page.getByRole('link', { name: 'monday', exact: true }).waitFor();
  await page.getByRole('button', { name: 'Take a snapshot' }).click();
  await page.getByLabel('Name').fill('monday');
  await page.getByRole('button', { name: 'Take it' }).click();
  await page.getByRole('dialog').getByRole('alert').waitFor();
});

await test('further snapshots, and another dataset with a folder of many files', async () => {
  await rest('POST', '/pools/main/datasets', { name: 'large', sizeBytes: 2 ** 36 });
  manyFiles('large', 'many', MANY);
  await rest('POST', '/pools/main/datasets/large/snapshots', { name: 'full', readOnly: true });
  nfs('documents', [{ mkdir: '/late' }]);
  nfs('documents', [
    { write: '/notes.txt', data: text(2) },
    { write: '/picture.bmp', data: picture(30, 30, 200) },
    { remove: '/reports/lost.txt' },
  ]);
  await snapshot('tuesday');
  for (let n = 0; n < SNAPSHOTS; n += 1) await snapshot(`hourly-${String(n).padStart(3, '0')}`);
  nfs('documents', [{ write: '/notes.txt', data: text(3) }]);
  await until(
    async () => (await now('/notes.txt')) === text(3),
    'the last edition is in the store',
  );
});

await test('the timeline folds a day with many snapshots', async () => {
  const page = await open();
  await signIn(page, at('dataset'));
  const day = page.locator('.day').first();
  await day.locator('summary').focus();
  const rows = day.getByRole('link', { name: /^hourly-/ });
  equal(await rows.count(), SNAPSHOTS, 'snapshots of the day');
  check(await rows.first().isVisible(), 'the newest day is open');
  await page.keyboard.press('Enter');
  await rows.first().waitFor({ state: 'hidden' });
  await page.locator('.strip-bar').last().click();
  await rows.first().waitFor({ state: 'visible' });
});

await test('a snapshot is deleted after a question', async () => {
  const page = await open();
  await signIn(page, at('dataset'));
  await page.getByRole('button', { name: 'Delete hourly-000', exact: true }).click();
  await page.getByRole('button', { name: 'Keep it' }).click();
  await page.getByRole('button', { name: 'Delete hourly-000', exact: true }).click();
  await page.getByRole('button', { name: 'Delete it' }).click();
  await page.getByText('Deleted the snapshot hourly-000').first().waitFor();
  const left = page.getByRole('link', { name: 'hourly-000', exact: true });
  await until(async () => (await left.count()) === 0, 'it is gone from the timeline');
});

await test('names are shown as they are, and run nothing', async () => {
  const page = await open();
  await signIn(page, at('files', { snapshot: 'monday' }));
  const names = await page.locator('.cell-name bdi').allTextContents();
  for (const name of [
    'caf\ufffd.txt',
    'ملف التقرير.txt',
    'long'.repeat(60),
    'evil⟨202E⟩gpj.exe',
    '<img src=x onerror=alert(1)>',
  ])
    check(names.includes(name), `${name} is missing among ${names}`);
  check(names.indexOf('file2.log') < names.indexOf('file10.log'), 'numbers in names count');
  check(names.indexOf('reports') < names.indexOf('file10.log'), 'folders come first');
  check(
    (await page.locator('.cell-name', { hasText: 'latest' }).textContent()).includes(
      '→ reports/2026',
    ),
    'a link shows its target',
  );
  equal(await page.locator('main img').count(), 0, 'elements made of names');
  await row(page, 'caf\ufffd.txt').click();
  await page.getByText('not UTF-8').waitFor();
  check(page.url().includes('path=/caf%E9.txt'), page.url());
});

await test('a folder of many files is windowed', async () => {
  const page = await open();
  await signIn(page, at('files', { dataset: 'large', path: '/many/small', snapshot: 'full' }));
  await page.getByText(`${MANY.toLocaleString('en')} items`).waitFor({ timeout: 120000 });
  const rows = page.locator('.list-row');
  check((await rows.count()) < 80, `${await rows.count()} rows are in the page`);
  await page.locator('.list-row.active').focus();
  await page.keyboard.press('End');
  await row(page, numbered(MANY - 1)).and(page.locator(':focus')).waitFor();
  await page.keyboard.press('Home');
  await page.keyboard.type(numbered(MANY / 2).slice(0, -2));
  await page.locator('.list-row.active', { hasText: numbered(MANY / 2) }).waitFor();
  await page.getByLabel('Filter this folder').fill(String(MANY - 1));
  await page.getByText(/^1 of/).waitFor();
  await page.getByLabel('Filter this folder').fill('nothing has this');
  await page.getByText('No name here matches').waitFor();
});

await test('columns sort', async () => {
  const page = await open();
  await signIn(page, at('files', { snapshot: 'monday' }));
  const files = async () =>
    (await page.locator('.cell-name bdi').allTextContents()).filter((name) =>
      /log|notes/.test(name),
    );
  equal(await files(), ['file2.log', 'file10.log', 'notes.txt'], 'by name');
  await page.getByRole('button', { name: 'Size' }).click();
  equal(await files(), ['notes.txt', 'file2.log', 'file10.log'], 'largest first');
  await page.getByRole('button', { name: 'Size' }).click();
  equal(await files(), ['file10.log', 'file2.log', 'notes.txt'], 'smallest first');
  equal(
    await page.getByRole('columnheader', { name: 'Size' }).getAttribute('aria-sort'),
    'ascending',
    'the heading says so',
  );
});

await keyboard();
await restoring({ at, now, text, documents });
await views(at);
await units();
await finish();
