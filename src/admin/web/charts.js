// Charts drawn as SVG: bars that share one scale.

import { h, svg } from './dom.js';

const WIDTH = 600;
const HEIGHT = 14;

/** One bar of parts [{ value, tone }], as long as their sum is of `whole`. */
export function bar(parts, whole, label) {
  let x = 0;
  const scale = (value) => (whole > 0 ? (value / whole) * WIDTH : 0);
  const rects = parts
    .filter((part) => part.value > 0)
    .map((part) => {
      const width = Math.max(2, scale(part.value));
      const rect = svg(
        'rect',
        { class: `part part-${part.tone}`, x, width, y: 0, height: HEIGHT },
        svg('title', null, part.title),
      );
      x += width;
      return rect;
    });
  return svg(
    'svg',
    {
      class: 'chart-bar',
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: 'none',
      role: 'img',
      'aria-label': label,
    },
    svg('rect', { class: 'part part-none', x: 0, width: WIDTH, y: 0, height: HEIGHT }),
    rects,
  );
}

export const legend = (entries) =>
  h(
    'ul',
    { class: 'legend' },
    entries.map(([tone, text]) =>
      h(
        'li',
        null,
        svg(
          'svg',
          { viewBox: '0 0 10 10', class: 'legend-dot', 'aria-hidden': 'true' },
          svg('rect', { class: `part part-${tone}`, width: 10, height: 10, rx: 3 }),
        ),
        text,
      ),
    ),
  );
