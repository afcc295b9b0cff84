// Builds elements. Data only ever becomes text nodes and attributes: nothing here, or anywhere in
// the page, parses a string as HTML.

const SVG = 'http://www.w3.org/2000/svg';

/**
 * Makes an element. In `attributes`, `onclick` and the like are listeners, `class` may be a list,
 * `style` an object of properties, and null or false leave an attribute out.
 */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'class')
      element.setAttribute('class', [value].flat().filter(Boolean).join(' '));
    else if (name === 'style')
      for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else if (name === 'value') element.value = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

// One 20 by 20 stroke per icon.
const ICONS = {
  folder:
    'M2.5 5.5v9a1.5 1.5 0 0 0 1.5 1.5h12a1.5 1.5 0 0 0 1.5-1.5v-7A1.5 1.5 0 0 0 16 6h-6L8 4H4a1.5 1.5 0 0 0-1.5 1.5z',
  file: 'M5 2.5h6.5L16 7v9.5a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1v-13a1 1 0 0 1 1-1zM11.5 2.5V7H16',
  symlink: 'M8.5 11.5l3-3M7 9l-2 2a2.8 2.8 0 0 0 4 4l2-2M13 11l2-2a2.8 2.8 0 0 0-4-4L9 7',
  other: 'M10 2.5l6.5 3.75v7.5L10 17.5l-6.5-3.75v-7.5zM3.5 6.25L10 10l6.5-3.75M10 10v7.5',
  dataset:
    'M3.5 5c0-1.4 2.9-2.5 6.5-2.5s6.5 1.1 6.5 2.5-2.9 2.5-6.5 2.5S3.5 6.4 3.5 5zM3.5 5v10c0 1.4 2.9 2.5 6.5 2.5s6.5-1.1 6.5-2.5V5M3.5 10c0 1.4 2.9 2.5 6.5 2.5s6.5-1.1 6.5-2.5',
  clock: 'M10 2.5a7.5 7.5 0 1 1 0 15 7.5 7.5 0 0 1 0-15zM10 6v4.2l2.8 1.8',
  restore: 'M3 10a7 7 0 1 0 2.2-5.1M3 3.5v3.8h3.8M10 6.5V10l2.5 1.6',
  download: 'M10 3v9.5M6 9l4 4 4-4M3.5 16.5h13',
  search: 'M9 3.5a5.5 5.5 0 1 1 0 11 5.5 5.5 0 0 1 0-11zM13 13l4 4',
  compare: 'M7 3.5v13M13 3.5v13M4 7l3-3.5L10 7M10 13l3 3.5 3-3.5',
  camera:
    'M3.5 6.5h3L8 4.5h4l1.5 2h3a1 1 0 0 1 1 1v7a1 1 0 0 1-1 1h-13a1 1 0 0 1-1-1v-7a1 1 0 0 1 1-1zM10 8.2a2.7 2.7 0 1 1 0 5.4 2.7 2.7 0 0 1 0-5.4z',
  warning: 'M10 3L2.5 16h15zM10 8v3.5M10 13.6v.2',
  error: 'M10 2.5a7.5 7.5 0 1 1 0 15 7.5 7.5 0 0 1 0-15zM10 6.2v4.6M10 13.4v.2',
  info: 'M10 2.5a7.5 7.5 0 1 1 0 15 7.5 7.5 0 0 1 0-15zM10 9.2v4.4M10 6.4v.2',
  check: 'M4 10.5l4 4 8-9',
  close: 'M5 5l10 10M15 5L5 15',
  right: 'M7.5 4.5L13 10l-5.5 5.5',
  left: 'M12.5 4.5L7 10l5.5 5.5',
  down: 'M4.5 7.5L10 13l5.5-5.5',
  sun: 'M10 6.5a3.5 3.5 0 1 1 0 7 3.5 3.5 0 0 1 0-7zM10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1.1 1.1M14.6 14.6l1.1 1.1M4.3 15.7l1.1-1.1M14.6 5.4l1.1-1.1',
  moon: 'M16.5 11.7A6.8 6.8 0 0 1 8.3 3.5a6.8 6.8 0 1 0 8.2 8.2z',
  keyboard: 'M2.5 5.5h15v9h-15zM5.5 8.3h.1M8.5 8.3h.1M11.5 8.3h.1M14.5 8.3h.1M6 11.7h8',
  trash: 'M4 5.5h12M8 5.5V3.5h4v2M5.5 5.5l.7 11h7.6l.7-11',
  leave: 'M8 3.5H4.5a1 1 0 0 0-1 1v11a1 1 0 0 0 1 1H8M12.5 6.5L16 10l-3.5 3.5M16 10H7.5',
  more: 'M4.5 10h.1M10 10h.1M15.5 10h.1',
};

export function icon(name, title) {
  const drawn = svg('path', { d: ICONS[name] ?? ICONS.other });
  return svg(
    'svg',
    {
      class: ['icon', `icon-${name}`],
      viewBox: '0 0 20 20',
      role: title ? 'img' : null,
      'aria-label': title,
      'aria-hidden': title ? null : 'true',
    },
    drawn,
  );
}

/** The page's mark: three layers, the topmost solid. */
export function mark() {
  return svg(
    'svg',
    { class: 'mark', viewBox: '0 0 24 24', 'aria-hidden': 'true' },
    svg('path', { class: 'mark-back', d: 'M12 13.2l8.5-3.9v3.6L12 17l-8.5-4.1V9.3z' }),
    svg('path', { class: 'mark-base', d: 'M3.5 15.1L12 19.2l8.5-4.1v2.2L12 21.5l-8.5-4.2z' }),
    svg('path', { class: 'mark-top', d: 'M12 2.5l8.5 4.1L12 10.7 3.5 6.6z' }),
  );
}

/** Says something to people who do not see the page. */
export function announce(text) {
  const region = document.getElementById('announcer');
  region.textContent = '';
  setTimeout(() => {
    region.textContent = text;
  }, 50);
}

/** Shows a short message in the corner; it leaves by itself, or with its button. */
export function toast(text, { link, tone = 'info' } = {}) {
  const shown = h(
    'div',
    { class: ['toast', `tone-${tone}`] },
    icon(tone === 'error' ? 'error' : 'check'),
    h('span', null, text),
    link,
    h(
      'button',
      { class: 'quiet icon-only', 'aria-label': 'Dismiss', onclick: () => shown.remove() },
      icon('close'),
    ),
  );
  document.getElementById('toasts').append(shown);
  announce(text);
  setTimeout(() => shown.remove(), 9000);
}

/**
 * Opens a modal dialog and returns it. The browser keeps the focus inside and gives it back to
 * where it was; Escape closes.
 */
export function dialog(title, ...content) {
  const opener = document.activeElement;
  const heading = h('h2', { id: 'dialog-title' }, title);
  const shown = h(
    'dialog',
    { 'aria-labelledby': 'dialog-title' },
    h(
      'header',
      null,
      heading,
      h(
        'button',
        {
          class: 'quiet icon-only',
          'aria-label': 'Close',
          type: 'button',
          onclick: () => shown.close(),
        },
        icon('close'),
      ),
    ),
    content,
  );
  shown.addEventListener('close', () => {
    shown.remove();
    if (opener?.isConnected) opener.focus();
  });
  shown.addEventListener('click', (event) => {
    if (event.target === shown) shown.close();
  });
  document.body.append(shown);
  shown.showModal();
  return shown;
}
