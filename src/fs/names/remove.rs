//! REMOVE and RMDIR.

use super::entries::Place;
use super::ring::First;
use super::{DirEdit, Names, Outcome, TRIES, lock_all};
use crate::fs::FsError;
use crate::fs::api::{Caller, Change, FileKind, FileRef};
use crate::fs::committer::Batch;
use crate::fs::key;
use crate::fs::moment::Moment;
use crate::fs::node::Node;
use crate::fs::permission;
use crate::fs::row::Inode;
use crate::types::EntryName;
use std::sync::Arc;

/// Which of the two calls it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Anything but a directory.
    File,
    /// An empty directory.
    Directory,
}

impl Names {
    pub async fn remove(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Removal,
        turn: &First,
    ) -> Result<Outcome<Change>, FsError> {
        let dir = self.directory(dir).await?;
        permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
        for _ in 0..TRIES {
            let (_, child) = self.child(&dir, name).await?.ok_or(FsError::NotFound)?;
            let _locks = lock_all(&[&dir, &child]).await;
            match self.resolve(&dir, name).await?.at {
                Some(place) if place.ino == child.file.ino => {
                    return self.remove_locked(caller, (&dir, name, place), &child, what, turn);
                }
                // Another object has the name by now.
                _ => {}
            }
        }
        Err(FsError::Busy("the name changes faster than it can be removed"))
    }

    fn remove_locked(
        &self,
        caller: &Caller,
        (dir, name, place): (&Arc<Node>, &EntryName, Place),
        child: &Arc<Node>,
        what: Removal,
        turn: &First,
    ) -> Result<Outcome<Change>, FsError> {
        let mut edit = DirEdit::new(dir)?;
        let row = super::alive(child)?;
        permission::may_remove(caller, &edit.row, &row)?;
        match (what, row.kind) {
            (Removal::File, FileKind::Directory) => return Err(FsError::IsDirectory),
            (Removal::Directory, FileKind::Directory) if row.size > 0 => {
                return Err(FsError::NotEmpty);
            }
            (Removal::Directory, kind) if kind != FileKind::Directory => {
                return Err(FsError::NotDirectory);
            }
            _ => {}
        }
        let now = self.now();
        let mut batch = Batch::default();
        edit.count(-1, row.kind)?;
        edit.put(now, &mut batch);
        let hash = self.hash(name);
        batch.delete(key::dir_entry(dir.file.ino, hash, place.n));
        let row = self.unlink(child, row, now, &mut batch)?;
        let ticket = self.submit(batch, turn, None, &[dir, child])?;
        if let Some(entries) = &dir.entries {
            self.table.count_entries(dir, entries.change(hash, place.n, None));
        }
        self.unlinked(child, row);
        Ok(Outcome { answer: edit.publish(), ticket: Some(ticket) })
    }

    /// Takes one link from an object, in its row and in the batch. With the last one the object
    /// goes: its data is queued for reclaim (R5).
    pub(super) fn unlink(
        &self,
        node: &Node,
        mut row: Inode,
        now: Moment,
        batch: &mut Batch,
    ) -> Result<Inode, FsError> {
        row.ctime = now.ctime(row.ctime);
        row.nlink = if row.kind == FileKind::Directory { 0 } else { row.nlink.saturating_sub(1) };
        if row.nlink > 0 {
            batch.put(key::inode(node.file.ino), &node.stored(&row));
            return Ok(row);
        }
        if row.kind == FileKind::Regular {
            self.contents.discard(node, &row, batch);
        }
        batch.inodes -= 1;
        batch.delete(key::inode(node.file.ino));
        Ok(row)
    }

    /// After the batch was submitted (only now is buffered data dropped: a batch that is refused
    /// must lose nothing) and the directory's entries were changed (see [`Names::child`]).
    pub(super) fn unlinked(&self, node: &Node, row: Inode) {
        let (gone, regular) = (row.nlink == 0, row.kind == FileKind::Regular);
        *node.row.write() = row;
        if gone {
            if regular {
                self.contents.discarded(node);
            }
            self.table.forget(node.file.ino);
        }
    }
}
