// Paths as the server has them: bytes, which need not be UTF-8. The page keeps a path as its
// percent-encoded bytes ("/caf%C3%A9/%FF"), so that it survives the URL unchanged, and decodes it
// only to show it.

const PLAIN = /[A-Za-z0-9\-_.~]/;
const utf8 = new TextEncoder();
const lossy = new TextDecoder();
const strict = new TextDecoder('utf-8', { fatal: true });

function encodeBytes(bytes) {
  let text = '';
  for (const byte of bytes) {
    const char = String.fromCharCode(byte);
    text += PLAIN.test(char) ? char : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  }
  return text;
}

function decodeBytes(encoded) {
  const bytes = [];
  for (let at = 0; at < encoded.length; at += 1) {
    const hex = encoded[at] === '%' ? encoded.slice(at + 1, at + 3) : '';
    if (/^[0-9a-fA-F]{2}$/.test(hex)) {
      bytes.push(parseInt(hex, 16));
      at += 2;
    } else {
      bytes.push(...utf8.encode(encoded[at]));
    }
  }
  return new Uint8Array(bytes);
}

function base64(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

const encodeText = (text) =>
  /^[A-Za-z0-9\-_.~]*$/.test(text) ? text : encodeBytes(utf8.encode(text));

/** The path of what people type: components that are empty are left out. */
export function fromText(text) {
  return `/${text.split('/').filter(Boolean).map(encodeText).join('/')}`;
}

/** The same path, however the URL spelt it. */
export function canonical(encoded) {
  const parts = encoded.split('/').filter(Boolean);
  return `/${parts.map((part) => encodeBytes(decodeBytes(part))).join('/')}`;
}

/** The encoded name of an entry: its bytes where it is not UTF-8. */
export function nameOf(entry) {
  return entry.nameBytes ? encodeBytes(base64(entry.nameBytes)) : encodeText(entry.name);
}

/** The encoded path in a field of an answer, of the bytes beside it where it is not UTF-8. */
export function pathOf(item, field = 'path') {
  const bytes = item[`${field}Bytes`];
  const text = bytes ? lossyLatin(base64(bytes)) : null;
  if (text === null) return fromText(item[field]);
  return `/${text
    .split('/')
    .filter(Boolean)
    .map((part) => encodeBytes(Uint8Array.from(part, (char) => char.charCodeAt(0))))
    .join('/')}`;
}

const lossyLatin = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join('');

/** A path as the body of a request has it: text, and its bytes where it is not UTF-8. */
export function toBody(field, path) {
  const bytes = decodeBytes(path);
  try {
    return { [field]: strict.decode(bytes) };
  } catch {
    return { [field]: lossy.decode(bytes), [`${field}Bytes`]: btoa(lossyLatin(bytes)) };
  }
}

export const join = (folder, name) => (folder === '/' ? `/${name}` : `${folder}/${name}`);
export const parent = (path) => path.slice(0, path.lastIndexOf('/')) || '/';
export const base = (path) => path.slice(path.lastIndexOf('/') + 1);
export const parts = (path) => path.split('/').filter(Boolean);

/**
 * A name or path for the eye. Control characters and those that change the direction of what
 * follows get a visible form, so that no name can pass for another.
 */
export function shown(encoded) {
  return visible(encoded.includes('%') ? lossy.decode(decodeBytes(encoded)) : encoded);
}

export function visible(text) {
  return text
    .replace(/[\u0000-\u001f]/g, (char) => String.fromCharCode(0x2400 + char.charCodeAt(0)))
    .replace(
      /[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
      (char) => `⟨${char.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}⟩`,
    );
}

/** The letters after the last dot, in lower case. */
export function extension(path) {
  const name = base(path);
  const dot = name.lastIndexOf('.');
  return dot > 0 ? name.slice(dot + 1).toLowerCase() : '';
}
