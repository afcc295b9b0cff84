// Sizes, counts and times in words.

import { h } from './dom.js';

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

export function bytes(count) {
  if (count === null || count === undefined) return '–';
  let value = Number(count);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${Number(value.toFixed(digits))} ${UNITS[unit]}`;
}

/** A size as people type it, without a loss: 20Gi, 1536Mi, 1000. Nothing for none. */
export function sizeText(count) {
  if (count === null || count === undefined) return '';
  let value = Number(count);
  let unit = 0;
  while (value > 0 && value % 1024 === 0 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value}${unit === 0 ? '' : UNITS[unit].slice(0, 2)}`;
}

const numbers = new Intl.NumberFormat('en');
export const count = (value) => numbers.format(value);
export const plural = (value, one, many = `${one}s`) =>
  `${count(value)} ${value === 1 ? one : many}`;
export const percent = (part, whole) => (whole > 0 ? Math.min(100, (part / whole) * 100) : 0);

const date = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', year: 'numeric' });
const weekday = new Intl.DateTimeFormat('en-GB', {
  weekday: 'long',
  day: 'numeric',
  month: 'long',
});
const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit' });
const exact = new Intl.DateTimeFormat('en-GB', { dateStyle: 'full', timeStyle: 'long' });
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto' });
const STEPS = [
  ['year', 31557600],
  ['month', 2629800],
  ['week', 604800],
  ['day', 86400],
  ['hour', 3600],
  ['minute', 60],
];

export const day = (time) => date.format(new Date(time));
export const hour = (time) => clock.format(new Date(time));
export const when = (time) => `${day(time)}, ${hour(time)}`;

/** The local day of a time, as a key: 2026-11-30. */
export function dayKey(time) {
  const at = new Date(time);
  const two = (value) => String(value).padStart(2, '0');
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

export function dayTitle(time) {
  const key = dayKey(time);
  if (key === dayKey(Date.now())) return 'Today';
  if (key === dayKey(Date.now() - 86400000)) return 'Yesterday';
  const text = weekday.format(new Date(time));
  const thisYear = new Date(time).getFullYear() === new Date().getFullYear();
  return thisYear ? text : `${text} ${new Date(time).getFullYear()}`;
}

export function ago(time) {
  const seconds = (new Date(time) - Date.now()) / 1000;
  for (const [unit, length] of STEPS) {
    if (Math.abs(seconds) >= length) return relative.format(Math.round(seconds / length), unit);
  }
  return seconds > 0 ? 'in a moment' : 'just now';
}

/** A time element: `text` by default says how long ago, its title says exactly when. */
export function timeElement(time, text = ago) {
  if (!time) return h('span', null, '–');
  return h('time', { datetime: time, title: exact.format(new Date(time)) }, text(time));
}

export function duration(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** -rwxr-xr-x, from an octal mode and a kind. */
export function permissions(octal, kind) {
  const mode = parseInt(octal, 8);
  const letters = 'rwxrwxrwx';
  const first = { folder: 'd', link: 'l' }[kind] ?? '-';
  const rest = Array.from(letters, (letter, at) => (mode & (1 << (8 - at)) ? letter : '-')).join(
    '',
  );
  return first + rest;
}
