// Cases of the page's pure modules, run in the browser that loads them from the server.

import { base, equal, open, test } from './harness.mjs';

export async function units() {
  await test('line differences are the shortest, and right', async () => {
    const page = await open();
    await page.goto(base);
    const wrong = await page.evaluate(async () => {
      const { compareLines, inner } = await import('/lines.js');
      // The longest common subsequence, by the table that everybody knows.
      const common = (a, b) => {
        const table = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
        for (let i = a.length - 1; i >= 0; i -= 1) {
          for (let j = b.length - 1; j >= 0; j -= 1)
            table[i][j] =
              a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
        }
        return table[0][0];
      };
      let seed = 7;
      const random = (below) => {
        seed = (seed * 1103515245 + 12345) % 2147483648;
        return Math.floor((seed / 2147483648) * below);
      };
      const lines = () => Array.from({ length: random(10) }, () => 'abc'[random(3)]);
      for (let round = 0; round < 5000; round += 1) {
        const [a, b] = [lines(), lines()];
        const found = compareLines(
          a.map((line) => `${line}\n`).join(''),
          b.map((line) => `${line}\n`).join(''),
        );
        const side = (without) =>
          found.filter((line) => line.kind !== without).map((line) => line.text);
        const same = found.filter((line) => line.kind === 'same');
        const numbered = same.every(
          (line) => a[line.before - 1] === line.text && b[line.after - 1] === line.text,
        );
        if (
          String(side('added')) !== String(a) ||
          String(side('removed')) !== String(b) ||
          same.length !== common(a, b) ||
          !numbered
        )
          return `${a} and ${b}`;
      }
      const large = (word) => Array.from({ length: 20000 }, (_, n) => `${word} ${n}`).join('\n');
      const all = compareLines(large('old'), large('new'));
      if (all.length !== 40000) return `texts beyond the limit of edits: ${all.length} lines`;
      const [, middle] = inner('edition 2 of it', 'edition 3 of it').after;
      return middle === '3' ? '' : `inner difference: ${middle}`;
    });
    equal(wrong, '', 'what differs');
  });

  await test('sizes are written as they are read', async () => {
    const page = await open();
    await page.goto(base);
    const wrong = await page.evaluate(async () => {
      const [{ sizeText }, { parseSize }] = await Promise.all([
        import('/format.js'),
        import('/home.js'),
      ]);
      const cases = { 1: '1', 1000: '1000', 1024: '1Ki', 1572864: '1536Ki', 21474836480: '20Gi' };
      for (const [count, text] of Object.entries(cases)) {
        if (sizeText(Number(count)) !== text) return `${count}: ${sizeText(Number(count))}`;
        if (parseSize(text) !== Number(count)) return `${text}: ${parseSize(text)}`;
      }
      return sizeText(null);
    });
    equal(wrong, '', 'what differs');
  });

  await test('paths keep every byte', async () => {
    const page = await open();
    await page.goto(base);
    const wrong = await page.evaluate(async () => {
      const paths = await import('/paths.js');
      const said = [];
      const same = (found, wanted) => {
        if (found !== wanted) said.push(`${found} instead of ${wanted}`);
      };
      const bytes = String.fromCharCode(
        ...Array.from({ length: 255 }, (_, n) => n + 1).filter((n) => n !== 47),
      );
      const name = paths.nameOf({ name: 'lossy', nameBytes: btoa(bytes) });
      same(atob(paths.toBody('source', `/${name}`).sourceBytes), `/${bytes}`);
      same(
        paths.canonical(`//${name.toLowerCase()}/`.replaceAll('%2f', '')),
        `/${paths.canonical(name.toLowerCase()).slice(1)}`,
      );
      same(paths.pathOf({ path: '/lossy', pathBytes: btoa('/a/\xff') }), '/a/%FF');
      same(paths.pathOf({ path: '/é/%41' }), '/%C3%A9/%2541');
      same(JSON.stringify(paths.toBody('source', '/%C3%A9/%2541')), '{"source":"/é/%41"}');
      same(paths.fromText('/a b//c/'), '/a%20b/c');
      same(paths.parent('/a/b'), '/a');
      same(paths.parent('/a'), '/');
      same(paths.shown('/a%0A%E2%80%AEb'), '/a␊⟨202E⟩b');
      same(paths.extension('/a.b/c.PNG'), 'png');
      same(paths.extension('/.png'), '');
      return said;
    });
    equal(wrong, [], 'paths');
  });

  await test('sizes are read and written', async () => {
    const page = await open();
    await page.goto(base);
    const { written, read } = await page.evaluate(async () => {
      const { bytes } = await import('/format.js');
      const { parseSize } = await import('/home.js');
      return {
        written: [0, 1023, 1024, 1536, 10 * 2 ** 30, null].map(bytes),
        read: ['20Gi', '1.5T', '512', '3 MiB', 'much', '-1', ''].map(parseSize),
      };
    });
    equal(written, ['0 B', '1023 B', '1 KiB', '1.5 KiB', '10 GiB', '–'], 'sizes in words');
    equal(
      read,
      [20 * 2 ** 30, 1.5 * 2 ** 40, 512, 3 * 2 ** 20, null, null, null],
      'sizes in bytes',
    );
  });

  await test('names sort as people count', async () => {
    const page = await open();
    await page.goto(base);
    const sorted = await page.evaluate(async () => {
      const { naturalKey } = await import('/list.js');
      return ['b', 'file10', 'A', 'file9', 'file'].sort((x, y) =>
        naturalKey(x) < naturalKey(y) ? -1 : 1,
      );
    });
    equal(sorted, ['A', 'b', 'file', 'file9', 'file10'], 'the order');
  });
}
