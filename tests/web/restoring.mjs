// Cases of versions, comparisons, downloads, searches and restores.

import { execFileSync } from 'node:child_process';
import { check, equal, nfs, open, rest, row, signIn, test, until } from './harness.mjs';

export default async function cases({ at, now, text, documents }) {
  await test('a file shows its versions, and two are compared', async () => {
    const page = await open();
    await signIn(page, at('file', { path: '/notes.txt' }));
    await page.getByText('3 versions').waitFor();
    equal(await page.locator('.version').count(), 3, 'versions');
    await page
      .locator('.version')
      .nth(2)
      .getByRole('link', { name: /^Compare/ })
      .click();
    await page.getByText('12 changed lines').waitFor();
    equal(await page.locator('.line.added').count(), 6, 'added lines');
    check(
      (await page.locator('.line.added').first().textContent()).includes('edition 3'),
      'the newer side is the present one',
    );
    const before = await page.locator('.line').count();
    await page.locator('.line.gap button').first().click();
    check((await page.locator('.line').count()) > before, 'equal lines unfold');
    const address = page.url();
    await page.goto(address);
    await page.getByText('12 changed lines').waitFor();
  });

  await test('two pictures are compared side by side', async () => {
    const page = await open();
    await signIn(page, at('file', { path: '/picture.bmp', snapshot: '@live', with: 'monday' }));
    await page.locator('.pictures img').nth(1).waitFor();
    await until(
      async () =>
        (await page.locator('.pictures figcaption').allTextContents()).every(
          (said) => said === '160 × 160 pixels',
        ),
      'both pictures are decoded',
    );
    const boxes = await page
      .locator('.pictures img')
      .evaluateAll((images) => images.map((image) => image.getBoundingClientRect().top));
    equal(boxes[0], boxes[1], 'they stand side by side');
  });

  await test('a page among the files is text', async () => {
    const page = await open();
    await signIn(page, at('file', { path: '/page.html' }));
    await page.getByText('<script>alert(3)</script>').waitFor();
  });

  await test('files are downloaded, one as it is and several as an archive', async () => {
    const page = await open();
    await signIn(page, at('file', { path: '/notes.txt', snapshot: 'monday' }));
    const one = await saved(page, () => page.getByRole('button', { name: 'Download' }).click());
    equal(one.name, 'notes.txt', 'its name');
    equal(one.text(), text(1), 'its content');
    await page.goto(new URL(at('files', { snapshot: 'monday' }), page.url()).href);
    for (const name of ['reports', 'notes.txt', 'caf\ufffd.txt'])
      await row(page, name).locator('.tick').click();
    await page.getByText('3 items ticked').waitFor();
    for (const format of ['zip', 'tar']) {
      const archive = await saved(page, () =>
        page.getByRole('button', { name: `Download ${format}` }).click(),
      );
      const module = format === 'zip' ? 'zipfile' : 'tarfile';
      const listed = execFileSync('python3', ['-m', module, '-l', archive.path], {
        encoding: 'latin1',
      });
      for (const name of ['plan.txt', 'lost.txt', 'notes.txt', 'caf'])
        check(listed.includes(name), `${format}: ${name} is missing in ${listed}`);
    }
  });

  await test('one file is restored in place, after the page said what happens', async () => {
    const page = await open();
    await signIn(page, at('file', { path: '/notes.txt', snapshot: 'monday' }));
    await page.getByRole('button', { name: 'Restore this version…' }).click();
    const dialog = page.getByRole('dialog');
    await dialog.getByText('No snapshot has the present content.').waitFor();
    check(
      await dialog.getByLabel('Take a snapshot first').isChecked(),
      'a snapshot first is what is proposed',
    );
    await dialog.getByText('monday').first().waitFor();
    await dialog.getByRole('button', { name: 'Replace it' }).click();
    await page.getByText('Restored', { exact: true }).first().waitFor({ timeout: 30000 });
    await until(async () => (await now('/notes.txt')) === text(1), 'the first edition is back');
    const names = (await rest('GET', `${documents}/snapshots?limit=1000`)).items.map(
      (one) => one.name,
    );
    const before = names.find((name) => name.startsWith('before-restore-'));
    check(before, 'the snapshot before the restore');
    equal(
      await rest('GET', `${documents}/content?path=/notes.txt&snapshot=${before}`),
      text(3),
      'what was replaced is in it',
    );
  });

  await test('an old version goes beside the present one', async () => {
    const page = await open();
    await signIn(page, at('file', { path: '/picture.bmp', snapshot: 'monday' }));
    await page.getByRole('button', { name: 'Restore this version…' }).click();
    await page.getByText('has the content that is stored now').waitFor();
    await page.getByLabel('Keep the present file').check();
    await page.getByText('Nothing is replaced.').waitFor();
    await page.getByRole('button', { name: 'Put it beside' }).click();
    await page.getByText('Restored', { exact: true }).first().waitFor({ timeout: 30000 });
    equal(
      nfs('documents', [{ read: '/picture (monday).bmp' }])[0].length,
      54 + 160 * 160 * 3,
      'the file beside',
    );
  });

  await test('a deleted file is found by its name in all snapshots, and put back', async () => {
    const page = await open();
    await signIn(page, at('dataset'));
    await page.getByLabel('Looking for a file?').fill('lost');
    await page.keyboard.press('Enter');
    await page
      .getByRole('link', { name: /lost\.txt/ })
      .getByText('deleted')
      .waitFor();
    await page.getByRole('link', { name: /lost\.txt/ }).click();
    await page.getByText('it will be deleted').waitFor();
    await page.getByRole('button', { name: 'Restore this version…' }).click();
    await page.getByText('nothing is replaced').waitFor();
    await page.locator('[data-confirm]').click();
    await page.getByText('Restored', { exact: true }).first().waitFor({ timeout: 30000 });
    equal(
      String(nfs('documents', [{ read: '/reports/lost.txt' }])[0]),
      'it will be deleted\n',
      'it is back',
    );
  });

  await test('several are restored at once', async () => {
    nfs('documents', [{ remove: '/file2.log' }, { write: '/file10.log', data: 'changed' }]);
    const page = await open();
    await signIn(page, at('files', { snapshot: 'tuesday' }));
    for (const name of ['file2.log', 'file10.log']) await row(page, name).locator('.tick').click();
    await page.getByRole('button', { name: 'Restore…' }).click();
    await page.getByText('replaces 1 file, adds 1 file').waitFor();
    await page.getByText('since the newest snapshot').waitFor();
    await page.locator('[data-confirm]').click();
    await page.getByText('Restored', { exact: true }).first().waitFor({ timeout: 30000 });
    equal(
      nfs('documents', [{ read: '/file2.log' }, { read: '/file10.log' }]).map(String),
      ['xxx', 'x'],
      'both are back',
    );
    await page.goto(new URL('/tasks', page.url()).href);
    await page.locator('.task', { hasText: 'Restore' }).first().getByText('done').waitFor();
  });

  await test('changes are a tree with counts, which the keyboard opens', async () => {
    const page = await open();
    await signIn(page, at('changes', { from: 'monday', to: 'tuesday' }));
    await page.getByText('− 1 removed').waitFor();
    await page.getByRole('tree').waitFor();
    await page.locator('[role=treeitem][tabindex="0"]').focus();
    await page.keyboard.press('End');
    await page.keyboard.press('Home');
    await page.keyboard.press('ArrowRight');
    const item = page.getByRole('treeitem', { name: /notes\.txt/ });
    await item.locator('.tree-row').click();
    await page.getByText('12 changed lines').waitFor();
  });

  await test('two moments without differences say so', async () => {
    const page = await open();
    await signIn(page, at('changes', { from: 'hourly-003', to: 'hourly-004' }));
    await page.getByText('No changes').waitFor();
  });

  await test('a path that is not there leads to the snapshots that have it', async () => {
    const page = await open();
    await signIn(page, at('files', { path: '/late', snapshot: 'monday' }));
    await page.getByText('Not in this snapshot').waitFor();
    await page.getByRole('link', { name: 'Look in all snapshots' }).click();
    await page.getByText('1 version').waitFor();
  });
}

async function saved(page, act) {
  const [download] = await Promise.all([page.waitForEvent('download'), act()]);
  const path = await download.path();
  const { readFileSync } = await import('node:fs');
  return { name: download.suggestedFilename(), path, text: () => readFileSync(path, 'utf8') };
}
