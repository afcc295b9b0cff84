// The keyboard alone: from the token to the versions of a file, and back.

import { base, check, open, row, secret, test } from './harness.mjs';

const focused = (page, name) => row(page, name).and(page.locator(':focus'));

async function tabTo(page, name) {
  for (let n = 0; n < 40; n += 1) {
    await page.keyboard.press('Tab');
    const text = await page.evaluate(() => document.activeElement.textContent);
    const seen = await page.evaluate(
      () =>
        document.activeElement.matches(':focus-visible') &&
        getComputedStyle(document.activeElement).outlineStyle !== 'none',
    );
    check(seen, `no visible focus on ${text}`);
    if (text.includes(name)) return;
  }
  throw new Error(`${name} cannot be reached by Tab`);
}

export async function keyboard() {
  await test('the keyboard alone is enough', async () => {
    const page = await open();
    await page.goto(base);
    await page.locator('#token:focus').waitFor();
    await page.keyboard.type(secret('admin'));
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: 'Datasets', exact: true }).waitFor();
    await tabTo(page, 'documents');
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: 'documents' }).waitFor();
    await tabTo(page, 'Browse files');
    await page.keyboard.press('Enter');
    const active = page.locator('.list-row:focus');
    await active.waitFor();
    await page.keyboard.type('rep');
    await focused(page, 'reports').waitFor();
    await page.keyboard.press('Enter');
    await focused(page, '2026').waitFor();
    await page.keyboard.press('Backspace');
    await focused(page, 'reports').waitFor();
    await page.keyboard.press('[');
    await page.getByText('This is the past').waitFor();
    await page.locator('.list-row:focus').waitFor();
    await page.keyboard.press('Space');
    await page.keyboard.press('Shift+ArrowDown');
    await page.getByText('2 items ticked').waitFor();
    await page.keyboard.press('Escape');
    await page.locator('.selection').waitFor({ state: 'hidden' });
    await page.keyboard.press('?');
    const help = page.getByRole('dialog', { name: 'Keyboard shortcuts' });
    await help.waitFor();
    await page.keyboard.press('Escape');
    await help.waitFor({ state: 'hidden' });
    // The focus is back where it was: only then a key is the folder's.
    await page.locator('.list-row:focus').waitFor();
    await page.keyboard.press('/');
    await page.getByLabel('Filter this folder').and(page.locator(':focus')).waitFor();
    await page.keyboard.type('notes');
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: 'Versions' }).waitFor();
    await page.keyboard.press('Backspace');
    await focused(page, 'notes.txt').waitFor();
  });
}
