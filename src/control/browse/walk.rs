//! Walks a tree of an open root, depth first: every folder before its entries.
//!
//! Bounded memory for a folder of any size: a page of entries for each of the innermost
//! [`PAGES_HELD`] folders; one further up reads its page again from where it was.

use super::files::NamedEntry;
use super::path::below;
use super::{Entry, OpenRoot, refused};
use crate::control::ControlError;
use crate::fs::api::FileKind;
use crate::fs::key::{self, NameHash};
use crate::types::{Class, InodeNo};
use std::collections::VecDeque;

/// Entries read at a time.
const PAGE_ENTRIES: usize = 1024;
/// The innermost folders that keep what they have read.
const PAGES_HELD: usize = 8;
/// Folders within folders.
const DEPTH_MAX: usize = 4096;

/// A tree that is being walked.
pub struct TreeWalk {
    root: OpenRoot,
    /// The top, until it was returned.
    top: Option<Entry>,
    levels: Vec<Level<Entry>>,
}

impl OpenRoot {
    /// Walks the tree below an object, which comes first itself.
    pub fn walk(&self, top: Entry) -> TreeWalk {
        TreeWalk { root: self.clone(), top: Some(top), levels: Vec::new() }
    }
}

impl TreeWalk {
    /// The next object; `None` at the end.
    ///
    /// # Errors
    /// Those of reading, after which the walk cannot go on.
    pub async fn next(&mut self) -> Result<Option<Entry>, ControlError> {
        if let Some(top) = self.top.take() {
            self.enter(&top)?;
            return Ok(Some(top));
        }
        while let Some(level) = self.levels.last_mut() {
            if level.page.is_empty() && level.more {
                let named = self.root.named(level.ino, level.from, PAGE_ENTRIES).await?;
                level.more = named.len() == PAGE_ENTRIES;
                let positions: Vec<_> = named.iter().map(|named| named.position).collect();
                let entries = self.root.entries(&level.path, named).await?;
                level.page = positions.into_iter().zip(entries).collect();
            }
            match level.take()? {
                Some(entry) => {
                    self.enter(&entry)?;
                    return Ok(Some(entry));
                }
                None => drop(self.levels.pop()),
            }
        }
        Ok(None)
    }

    fn enter(&mut self, entry: &Entry) -> Result<(), ControlError> {
        match entry.kind {
            FileKind::Directory => enter(&mut self.levels, InodeNo(entry.ino), entry.path.clone()),
            _ => Ok(()),
        }
    }
}

/// The names of a tree without attributes, which cost no read of an inode.
pub(super) struct NameWalk<'a> {
    root: &'a OpenRoot,
    levels: Vec<Level<NamedEntry>>,
}

impl<'a> NameWalk<'a> {
    pub fn new(root: &'a OpenRoot) -> Result<Self, ControlError> {
        let mut levels = Vec::new();
        enter(&mut levels, InodeNo::ROOT, b"/".to_vec())?;
        Ok(Self { root, levels })
    }

    /// The path of the next object, and its entry; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(Vec<u8>, NamedEntry)>, ControlError> {
        while let Some(level) = self.levels.last_mut() {
            if level.page.is_empty() && level.more {
                let named = self.root.named(level.ino, level.from, PAGE_ENTRIES).await?;
                level.more = named.len() == PAGE_ENTRIES;
                level.page = named.into_iter().map(|named| (named.position, named)).collect();
            }
            let Some(named) = level.take()? else {
                self.levels.pop();
                continue;
            };
            let path = below(&level.path, named.name.as_bytes());
            if named.kind == FileKind::Directory {
                enter(&mut self.levels, named.ino, path.clone())?;
            }
            return Ok(Some((path, named)));
        }
        Ok(None)
    }
}

struct Level<T> {
    ino: InodeNo,
    path: Vec<u8>,
    /// The position after the last entry that was returned.
    from: (NameHash, u16),
    page: VecDeque<((NameHash, u16), T)>,
    /// There may be entries after the page.
    more: bool,
}

impl<T> Level<T> {
    fn take(&mut self) -> Result<Option<T>, ControlError> {
        let Some(((hash, n), entry)) = self.page.pop_front() else { return Ok(None) };
        let after = key::position_after(key::cookie(hash, n));
        self.from = after.ok_or(crate::fs::FsError::BadCookie)?;
        Ok(Some(entry))
    }
}

fn enter<T>(levels: &mut Vec<Level<T>>, ino: InodeNo, path: Vec<u8>) -> Result<(), ControlError> {
    if levels.len() >= DEPTH_MAX {
        let why = format!("folders are nested deeper than {DEPTH_MAX}: choose one further down");
        return Err(refused(Class::Invalid, why));
    }
    levels.push(Level { ino, path, from: key::FIRST, page: VecDeque::new(), more: true });
    if let Some(level) = levels.iter_mut().rev().nth(PAGES_HELD)
        && !level.page.is_empty()
    {
        level.page = VecDeque::new();
        level.more = true;
    }
    Ok(())
}
