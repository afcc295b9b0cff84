//! The edit of a directory: its row, and one name of it. Every operation that adds, replaces, moves
//! or removes a name goes through here.
//!
//! In order, under the locks of all nodes that change: [`DirEdit::new`]; [`Names::edit_name`] for
//! each name, which fills the batch; [`DirEdit::put`]; the submission; and, without waiting in
//! between, [`Names::show_name`] and [`DirEdit::publish`], which change memory. An edit that is
//! dropped before the submission has changed nothing.

use super::{Names, alive};
use crate::fs::FsError;
use crate::fs::api::{Before, Change, FileKind};
use crate::fs::committer::Batch;
use crate::fs::content::Release;
use crate::fs::inode::{Entry, Node, Resolved, attr};
use crate::fs::key::{self, NameHash};
use crate::fs::moment::Moment;
use crate::fs::row::{DirEntryRow, Inode};
use crate::types::{EntryName, InodeNo};
use std::sync::Arc;

/// Too many names of one hash in one directory: 65,536 names collided under a hash whose key is
/// secret.
const HASH_FULL: FsError =
    FsError::Invalid("the directory holds 65,536 names of one hash: choose another name");

/// A directory's row being changed by an operation that holds its lock.
pub(super) struct DirEdit<'a> {
    pub node: &'a Node,
    before: Before,
    pub row: Inode,
}

/// The place of a name among a directory's entries.
#[derive(Clone, Copy)]
pub(super) struct NameSlot<'a> {
    pub name: &'a EntryName,
    pub hash: NameHash,
    pub n: u16,
}

/// The object that has the name before the edit.
pub(super) enum Old<'a> {
    None,
    /// The object loses this name and gets another in the same batch: only the entry goes.
    Moved(FileKind),
    /// The object loses a link; with the last one it is removed.
    Unlinked(&'a Arc<Node>, Inode),
}

impl<'a> Old<'a> {
    /// The object that is replaced, if there is one. The caller holds its lock.
    pub fn replaced(there: Option<&'a Arc<Node>>) -> Result<Self, FsError> {
        there.map_or(Ok(Self::None), |node| Ok(Self::Unlinked(node, alive(node)?)))
    }

    pub fn row(&self) -> Option<&Inode> {
        if let Self::Unlinked(_, row) = self { Some(row) } else { None }
    }
}

/// A name's change that is in a batch, and not in memory yet.
#[must_use = "once its batch is submitted it must be shown, see Names::show_name"]
pub(super) struct NameEdit<'a> {
    dir: &'a Node,
    hash: NameHash,
    n: u16,
    entry: Option<Entry>,
    unlinked: Option<Unlinked<'a>>,
}

/// An object that has one link less, in a batch and not in memory yet.
struct Unlinked<'a> {
    node: &'a Arc<Node>,
    row: Inode,
    /// The way in which the extents of a file that is removed go.
    release: Option<Release>,
}

impl<'a> NameSlot<'a> {
    /// The place that the name has, or the one that it gets.
    pub fn of(name: &'a EntryName, hash: NameHash, resolved: Resolved) -> Result<Self, FsError> {
        let n = resolved.at.map(|entry| entry.n).or(resolved.next).ok_or(HASH_FULL)?;
        Ok(Self { name, hash, n })
    }
}

impl Names {
    /// Fills `batch` with the change of one name: from `old` to `new`, either of which may be
    /// absent.
    pub(super) fn edit_name<'a>(
        &self,
        dir: &mut DirEdit<'a>,
        at: NameSlot<'_>,
        old: Old<'a>,
        new: Option<(InodeNo, FileKind)>,
        now: Moment,
        batch: &mut Batch,
    ) -> Result<NameEdit<'a>, FsError> {
        let NameSlot { name, hash, n } = at;
        let unlinked = match old {
            Old::None => None,
            Old::Moved(kind) => {
                dir.count(-1, kind)?;
                None
            }
            Old::Unlinked(node, row) => {
                dir.count(-1, row.kind)?;
                Some(self.unlink(node, row, now, batch)?)
            }
        };
        let key = key::dir_entry(dir.node.file.ino, hash, n);
        let entry = match new {
            Some((ino, kind)) => {
                dir.count(1, kind)?;
                batch.put(key, &DirEntryRow { ino, kind, name: name.clone() });
                Some(Entry { n, name: name.clone(), ino, kind })
            }
            None => {
                batch.delete(key);
                None
            }
        };
        Ok(NameEdit { dir: dir.node, hash, n, entry, unlinked })
    }

    /// Updates memory once the batch is submitted: the entry first, and then the object that was
    /// removed with it (see [`Names::child`]).
    pub(super) fn show_name(&self, edit: NameEdit<'_>) {
        let NameEdit { dir, hash, n, entry, unlinked } = edit;
        if let Some(entries) = &dir.entries {
            self.inodes.count_entries(dir, entries.change(hash, n, entry));
        }
        if let Some(unlinked) = unlinked {
            self.unlinked(unlinked);
        }
    }

    /// Takes one link from an object, in its row and in the batch. With the last one the object is
    /// removed, and its data released (R5).
    fn unlink<'a>(
        &self,
        node: &'a Arc<Node>,
        mut row: Inode,
        now: Moment,
        batch: &mut Batch,
    ) -> Result<Unlinked<'a>, FsError> {
        row.ctime = now.ctime(row.ctime);
        row.nlink = if row.kind == FileKind::Directory { 0 } else { row.nlink.saturating_sub(1) };
        if row.nlink > 0 {
            batch.put(key::inode(node.file.ino), &node.stored(&row));
            return Ok(Unlinked { node, row, release: None });
        }
        let release =
            (row.kind == FileKind::Regular).then(|| self.contents.discard(node, &row, batch));
        batch.inodes -= 1;
        batch.delete(key::inode(node.file.ino));
        Ok(Unlinked { node, row, release })
    }

    /// Buffered data is dropped only now: a refused batch must lose nothing.
    fn unlinked(&self, unlinked: Unlinked<'_>) {
        let Unlinked { node, row, release } = unlinked;
        let gone = row.nlink == 0;
        *node.row.write() = row;
        if let Some(release) = release {
            self.contents.discarded(node, release);
        }
        if gone {
            self.inodes.forget(node.file.ino);
        }
    }
}

impl<'a> DirEdit<'a> {
    pub fn new(node: &'a Node) -> Result<Self, FsError> {
        let row = alive(node)?;
        if row.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        Ok(Self { node, before: Before::from(&attr(node.file, &row)), row })
    }

    /// Counts an entry added or removed, for an object of this kind.
    fn count(&mut self, entries: i64, kind: FileKind) -> Result<(), FsError> {
        let corrupt = || {
            FsError::Corrupt(format!(
                "directory {} counts fewer entries than it has",
                self.node.file.ino
            ))
        };
        self.row.size = self.row.size.checked_add_signed(entries).ok_or_else(corrupt)?;
        if kind == FileKind::Directory {
            let links = i64::from(self.row.nlink) + entries;
            self.row.nlink =
                u32::try_from(links).ok().filter(|links| *links >= 2).ok_or_else(corrupt)?;
        }
        Ok(())
    }

    /// Called after all names: puts the row with its new times into the batch.
    pub fn put(&mut self, now: Moment, batch: &mut Batch) {
        self.row.mtime = now.time();
        self.row.ctime = now.ctime(self.row.ctime);
        batch.put(key::inode(self.node.file.ino), &self.row);
    }

    /// After the batch was submitted.
    pub fn publish(self) -> Change {
        let after = attr(self.node.file, &self.row);
        *self.node.row.write() = self.row;
        Change { before: Some(self.before), after }
    }

    /// Returns the result of a call that changed nothing.
    pub fn unchanged(&self) -> Change {
        Change { before: Some(self.before), after: attr(self.node.file, &self.row) }
    }
}
