// Kinds of objects: what they are called, and how they look.

import { icon } from './dom.js';
import { extension } from './paths.js';

export const isFolder = (kind) => kind === 'folder';
export const isLink = (kind) => kind === 'link';
export const isFile = (kind) => kind === 'file';

export function kindIcon(kind) {
  return icon(
    isFolder(kind) ? 'folder' : isLink(kind) ? 'symlink' : isFile(kind) ? 'file' : 'other',
    isFile(kind) ? null : kind,
  );
}

const IMAGES = {
  png: 'image/png',
  jpg: 'image/jpeg',
  jpeg: 'image/jpeg',
  gif: 'image/gif',
  webp: 'image/webp',
  avif: 'image/avif',
  svg: 'image/svg+xml',
  bmp: 'image/bmp',
  ico: 'image/x-icon',
};

/** The type of an image that browsers can show; else nothing. */
export const imageType = (path) => IMAGES[extension(path)];
