// Compares two texts line by line: Myers' algorithm (An O(ND) Difference Algorithm, 1986), after
// what both begin and end with was taken off.

/** Beyond this many differences the rest is shown as replaced as a whole. */
export const EDITS_MAX = 2000;

/** [{ kind: 'same' | 'added' | 'removed', text, before, after }]: lines, with their numbers from 1. */
export function compareLines(before, after) {
  const [a, b] = [split(before), split(after)];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (
    tail < a.length - head &&
    tail < b.length - head &&
    a[a.length - 1 - tail] === b[b.length - 1 - tail]
  )
    tail += 1;
  const steps = [
    ...'='.repeat(head),
    ...script(a.slice(head, a.length - tail), b.slice(head, b.length - tail)),
    ...'='.repeat(tail),
  ];
  return number(steps, a, b);
}

function split(text) {
  const lines = text.split('\n');
  if (lines.at(-1) === '') lines.pop();
  return lines;
}

/** The shortest edit script, as '=', '-' and '+'. */
function script(a, b) {
  const limit = Math.min(a.length + b.length, EDITS_MAX);
  const zero = limit + 1;
  const reach = new Int32Array(2 * zero + 1).fill(-1);
  reach[zero + 1] = 0;
  const trace = [];
  for (let edits = 0; edits <= limit; edits += 1) {
    // Only what this round reads is kept: the diagonals around 0.
    trace.push(reach.slice(zero - edits - 1, zero + edits + 2));
    for (let k = -edits; k <= edits; k += 2) {
      let x = downwards(reach, zero, k, edits) ? reach[zero + k + 1] : reach[zero + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      reach[zero + k] = x;
      if (x >= a.length && x - k >= b.length) return walkBack(trace, a.length, b.length);
    }
  }
  return ['-'.repeat(a.length), '+'.repeat(b.length)].join('');
}

/** Whether the furthest way to diagonal `k` comes from above: by a line that was added. */
const downwards = (reach, zero, k, edits) =>
  k === -edits || (k !== edits && reach[zero + k - 1] < reach[zero + k + 1]);

function walkBack(trace, width, height) {
  const steps = [];
  let [x, y] = [width, height];
  for (let edits = trace.length - 1; edits > 0; edits -= 1) {
    const reach = trace[edits];
    const zero = edits + 1;
    const k = x - y;
    const down = downwards(reach, zero, k, edits);
    const fromX = reach[zero + (down ? k + 1 : k - 1)];
    const fromY = fromX - (down ? k + 1 : k - 1);
    const same = (down ? x : x - 1) - fromX;
    for (let line = 0; line < same; line += 1) steps.push('=');
    steps.push(down ? '+' : '-');
    [x, y] = [fromX, fromY];
  }
  for (; x > 0; x -= 1) steps.push('=');
  return steps.reverse();
}

function number(steps, a, b) {
  let [before, after] = [0, 0];
  return [...steps].map((step) => {
    if (step === '=') return { kind: 'same', text: a[before], before: ++before, after: ++after };
    if (step === '-') return { kind: 'removed', text: a[before], before: ++before, after: null };
    return { kind: 'added', text: b[after], before: null, after: ++after };
  });
}

/** Where two lines differ: the lengths of what both begin and end with. */
export function inner(before, after) {
  const [a, b] = [[...before], [...after]];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a.at(-1 - tail) === b.at(-1 - tail))
    tail += 1;
  const cut = (letters) => [
    letters.slice(0, head).join(''),
    letters.slice(head, letters.length - tail).join(''),
    letters.slice(letters.length - tail).join(''),
  ];
  return head + tail === 0 ? null : { before: cut(a), after: cut(b) };
}
