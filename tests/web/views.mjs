// Cases of every view as such: both themes, both widths, roles, sessions, errors, policies, space.

import {
  accessible,
  base,
  check,
  equal,
  open,
  rest,
  row,
  secret,
  settled,
  shot,
  signIn,
  test,
  until,
} from './harness.mjs';

export async function views(at) {
  const all = {
    home: '/',
    timeline: at('dataset'),
    files: at('files'),
    many: at('files', { dataset: 'large', path: '/many/small', snapshot: 'full' }),
    past: at('files', { snapshot: 'monday' }),
    empty: at('files', { path: '/empty' }),
    versions: at('file', { path: '/notes.txt', snapshot: 'monday' }),
    compared: at('file', { path: '/notes.txt', snapshot: 'monday', with: 'tuesday' }),
    pictures: at('file', { path: '/picture.bmp', snapshot: 'monday', with: 'tuesday' }),
    changes: at('changes', { from: 'monday' }),
    search: at('search', { pattern: 'lo', everywhere: 'yes' }),
    policy: at('policy'),
    space: '/space',
    activity: '/tasks',
    missing: '/nowhere',
  };
  for (const theme of ['light', 'dark']) {
    for (const width of [1280, 390]) {
      await test(`every view, ${theme}, ${width} px`, async () => {
        const page = await open({
          viewport: { width, height: width > 720 ? 800 : 844 },
          colorScheme: theme,
        });
        await signIn(page);
        equal(
          await page.evaluate(() => document.documentElement.dataset.theme),
          theme,
          'the theme of the system',
        );
        for (const [name, address] of Object.entries(all)) {
          await page.goto(base + address);
          await settled(page);
          await shot(page, `${name}-${width}-${theme}`);
          await accessible(page, `${name}, ${theme}, ${width} px`);
        }
      });
    }
  }

  await test('dialogs are accessible', async () => {
    const page = await open({ viewport: { width: 390, height: 844 } });
    await signIn(page, at('files', { snapshot: 'monday' }));
    await page.locator('.picker-open').click();
    await accessible(page, 'choosing a moment');
    await shot(page, 'moments-390-light');
    await page.keyboard.press('Escape');
    await page.locator('.list-row', { hasText: 'notes.txt' }).locator('.tick').click();
    await page.getByRole('button', { name: 'Restore…' }).click();
    await page.locator('[data-confirm]').waitFor();
    await accessible(page, 'restoring');
    await shot(page, 'restoring-390-light');
  });

  await test('the theme is chosen, and kept', async () => {
    const page = await open({ colorScheme: 'light' });
    await signIn(page);
    await page.getByRole('button', { name: 'Use dark colours' }).click();
    await page.reload();
    await page.getByRole('button', { name: 'Use light colours' }).waitFor();
    equal(
      await page.evaluate(() => getComputedStyle(document.body).colorScheme),
      'dark',
      'the colours after a reload',
    );
  });

  await test('motion is left out for who wants none', async () => {
    const page = await open({ reducedMotion: 'reduce' });
    await signIn(page, at('dataset'));
    const moves = await page.evaluate(() =>
      parseFloat(getComputedStyle(document.querySelector('summary .icon')).transitionDuration),
    );
    equal(moves, 0, 'seconds of a transition');
  });

  await test('the policy is set, simulated, changed and removed', async () => {
    const page = await open();
    await signIn(page, at('policy'));
    await page.getByRole('button', { name: 'Set a policy' }).click();
    await page.getByLabel('Take one every').fill('5m');
    await page.getByRole('button', { name: 'Set the policy' }).click();
    await page.getByRole('dialog').getByRole('alert').waitFor();
    await page.getByLabel('Take one every').fill('6h');
    await page.getByLabel('Time zone').fill('Europe/Vienna');
    await page.getByRole('button', { name: 'Set the policy' }).click();
    await page.getByText('every 6 hours').waitFor();
    await page.getByText('at the end').waitFor();
    await accessible(page, 'a policy');
    await shot(page, 'policy-set-1280-light');
    await page.getByRole('button', { name: 'Remove' }).click();
    await page.getByRole('button', { name: 'Remove it' }).click();
    await page.getByText('No snapshots are taken by themselves').waitFor();
  });

  await test('a dataset is changed and renamed', async () => {
    const drafts = '/pools/main/datasets/drafts';
    await rest('POST', '/pools/main/datasets', { name: 'drafts', sizeBytes: 2 ** 30 });
    const page = await open();
    await signIn(page, at('dataset', { dataset: 'drafts' }));
    const change = page.getByRole('button', { name: 'Change', exact: true });
    const asked = async () => {
      await page.getByRole('button', { name: 'Change properties' }).click();
      await change.waitFor();
    };
    const lifted = async () => {
      await page.getByLabel('Files, at most').fill('');
      await page.getByLabel('Bytes read a second, at most').fill('');
      await page.getByLabel('Sync').selectOption('default');
    };
    await asked();
    await accessible(page, 'changing properties');
    await shot(page, 'properties-1280-light');
    equal(await page.getByLabel('Size, at most').inputValue(), '1Gi', 'the present size');
    await page.getByLabel('Size, at most').fill('much');
    await page.keyboard.press('Enter');
    await page.getByText('much is no size').waitFor();
    await page.getByLabel('Size, at most').fill('2Gi');
    await page.getByLabel('Files, at most').fill('1000');
    await page.getByLabel('Bytes read a second, at most').fill('5Mi');
    await page.getByLabel('Bytes written a second, at most').fill('5');
    await page.getByLabel('Sync').selectOption('always');
    await page.getByLabel('Folder .snapshots').selectOption('visible');
    await change.click();
    await page.getByRole('dialog').getByText('maxWriteBandwidth').waitFor();
    await page.getByLabel('Bytes written a second, at most').fill('');
    await change.click();
    await page.getByText('2 GiB quota').waitFor();
    await page.getByText('at most 5 MiB/s').waitFor();
    const set = await rest('GET', drafts);
    equal(
      [set.sizeBytes, set.quotaInodes, set.maxReadBandwidth, set.sync, set.snapdir],
      [2 * 2 ** 30, 1000, 5 * 2 ** 20, 'always', 'visible'],
      'what was changed',
    );
    equal([set.maxWriteBandwidth, set.maxIops], [null, null], 'what was left as it was');
    await asked();
    await lifted();
    await page.keyboard.press('Escape');
    await change.waitFor({ state: 'detached' });
    equal((await rest('GET', drafts)).quotaInodes, 1000, 'the quota of files after Escape');
    await asked();
    await lifted();
    await change.click();
    await change.waitFor({ state: 'detached' });
    const back = await rest('GET', drafts);
    equal([back.quotaInodes, back.maxReadBandwidth, back.sync], [null, null, null], 'no limits');

    await page.getByRole('button', { name: 'Rename', exact: true }).click();
    await accessible(page, 'renaming');
    await page.getByLabel('Name', { exact: true }).fill('documents');
    await page.keyboard.press('Enter');
    await page.getByRole('dialog').getByRole('alert').waitFor();
    await page.getByLabel('Name', { exact: true }).fill('papers');
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: 'papers' }).waitFor();
    check(page.url().includes('dataset=papers'), 'the address names the dataset');
    const viewer = await open();
    await signIn(viewer, at('dataset', { dataset: 'papers' }), 'viewer');
    equal(
      await viewer.getByRole('button', { name: /Change properties|Rename/ }).count(),
      0,
      'buttons that would be refused',
    );
    await rest('DELETE', '/pools/main/datasets/papers');
  });

  await test('a task is stopped, by its button that keeps the focus', async () => {
    const { task } = await rest('POST', '/pools/main/scrubs', {
      dataset: 'documents',
      bytesPerSecond: 1,
    });
    const page = await open();
    await signIn(page, '/tasks');
    const stop = page.getByRole('button', { name: 'Stop the scrub of documents' });
    await stop.focus();
    const drawn = await stop.elementHandle();
    await until(
      async () => !(await drawn.evaluate((one) => one.isConnected)),
      'the rows are drawn again',
    );
    check(
      await stop.evaluate((one) => one === document.activeElement),
      'the button keeps the focus',
    );
    await accessible(page, 'a task that runs');
    await page.keyboard.press('Enter');
    await until(
      async () => (await rest('GET', `/tasks/${task}`)).state === 'stopped',
      'the scrub is stopped',
    );
    await stop.waitFor({ state: 'detached' });
  });

  await test('space is measured and drawn', async () => {
    const page = await open();
    await signIn(page, '/space');
    await page.locator('.space-row', { hasText: 'documents' }).waitFor();
    const chart = page.locator('.space-row', { hasText: 'documents' }).locator('.chart-bar');
    const said = await chart.getAttribute('aria-label');
    check(said.startsWith('documents: '), `the chart says ${said}`);
    await page.getByRole('button', { name: 'Measure again' }).click();
    await page.locator('.space-row', { hasText: 'documents' }).waitFor();
    await page.getByText('not known without an exact measurement').first().waitFor();
    await page.getByRole('button', { name: 'Measure exactly' }).click();
    await page.getByText('equal data stored once').waitFor({ timeout: 60000 });
    await page.locator('.tile', { hasText: 'Compression' }).getByText('×').waitFor();
  });

  await test('a viewer sees names, and is told what a reader could see', async () => {
    const page = await open();
    await signIn(page, at('file', { path: '/notes.txt', snapshot: 'monday' }), 'viewer');
    await page.getByText('token with the role reader').waitFor();
    equal(
      await page.getByRole('button', { name: /Restore|Download/ }).count(),
      0,
      'buttons that would be refused',
    );
  });

  await test('a session that has ended asks for a token, and goes on where it was', async () => {
    const page = await open();
    // The next request of a person finds the session ended, and not one that looks for tasks.
    await page.route(/v1\/tasks/, (route) => route.fulfill({ json: { items: [], next: null } }));
    await signIn(page, at('files', { path: '/reports' }));
    await page.context().clearCookies();
    await row(page, '2026').click();
    await page.getByText('Your session has ended').waitFor();
    await page.getByLabel('Token', { exact: true }).fill(secret('admin'));
    await page.keyboard.press('Enter');
    await row(page, 'plan.txt').waitFor();
    await page.getByRole('button', { name: /^Sign out/ }).click();
    await page.getByText('You have signed out').waitFor();
  });

  await test('failures say what to do, and can be tried again', async () => {
    const page = await open();
    await signIn(page);
    let answer = { status: 503, detail: 'the store does not answer' };
    await page.route(/datasets\/documents\/entries/, (route) =>
      answer
        ? route.fulfill({
            status: answer.status,
            contentType: 'application/problem+json',
            body: JSON.stringify({
              title: 'Unavailable',
              status: answer.status,
              detail: answer.detail,
            }),
          })
        : route.continue(),
    );
    await page.goto(base + at('files'));
    await page.getByText('the store does not answer').waitFor();
    await page.getByText('The object store or the node').waitFor();
    await accessible(page, 'a failure');
    answer = null;
    await page.getByRole('button', { name: 'Try again' }).click();
    await row(page, 'notes.txt').waitFor();
    await page.route('**/api/v1/**', (route) => route.abort());
    await page.getByRole('link', { name: 'Space' }).click();
    await page.getByText('zerofs-csi serve').waitFor();
  });

  await test('problems come first', async () => {
    const page = await open();
    await page.route('**/api/v1/problems', (route) =>
      route.fulfill({
        contentType: 'application/json',
        body: JSON.stringify({
          next: null,
          items: [
            {
              severity: 'error',
              subject: 'pool main',
              message: 'The store refuses writes',
              nextStep: 'Check the credentials.',
            },
          ],
        }),
      }),
    );
    await signIn(page);
    await page.getByText('Check the credentials.').waitFor();
    const [problem, datasets] = await Promise.all(
      ['1 problem', 'Datasets'].map(
        async (name) => (await page.getByRole('heading', { name }).boundingBox()).y,
      ),
    );
    check(problem < datasets, 'they stand above the datasets');
    await accessible(page, 'problems');
    await shot(page, 'problems-1280-light');
  });

  await test('the first view comes soon', async () => {
    const page = await open();
    await signIn(page);
    await page.reload();
    await page.locator('.dataset-row').first().waitFor();
    const shown = await page.evaluate(() => performance.getEntriesByName('shown')[0]?.startTime);
    check(shown > 0, 'the page marks when its first view is shown');
    console.log(`     first view after ${Math.round(shown)} ms`);
    await until(
      async () => (await page.locator('#progress').getAttribute('hidden')) !== null,
      'nothing is loading any more',
    );
  });
}
