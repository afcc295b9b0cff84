//! Changing one inode's attributes, its size included.

use super::FsError;
use super::api::{Before, Caller, Change, FILE_BYTES_MAX, FileKind, FileRef, SetAttr, SetTime};
use super::committer::Batch;
use super::key;
use super::names::{First, Names, Outcome};
use super::node::{Node, attr};
use super::permission;
use super::row::Inode;
use crate::types::Timestamp;
use std::sync::Arc;

/// How often a truncation flushes a file that somebody keeps writing to, before it goes ahead.
const FLUSHES_MAX: usize = 8;

fn changes_nothing(set: &SetAttr) -> bool {
    let SetAttr { mode, uid, gid, size, atime, mtime } = set;
    mode.is_none() && uid.is_none() && gid.is_none() && size.is_none() && *atime == SetTime::Keep && *mtime == SetTime::Keep
}

impl Names {
    /// `guard`: the ctime that the object must still have (RFC 1813 §3.3.2).
    pub async fn setattr(
        &self,
        caller: &Caller,
        file: FileRef,
        set: SetAttr,
        guard: Option<Timestamp>,
        turn: First,
    ) -> Result<Outcome<Change>, FsError> {
        let node = self.node(file).await?;
        if set.size.is_some() {
            permission::resizable(node.row.read().kind)?;
        }
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(FsError::TooBig);
        }
        let _lock = if set.size.is_some() { self.lock_flushed(&node).await? } else { node.lock.lock().await };
        let old = node.row.read().clone();
        if old.nlink == 0 {
            return Err(FsError::Stale);
        }
        if guard.is_some_and(|ctime| ctime != old.ctime) {
            return Err(FsError::NotSync);
        }
        let before = Some(Before::from(&attr(file, &old)));
        if changes_nothing(&set) {
            return Ok(Outcome { answer: Change { before, after: attr(file, &old) }, ticket: None });
        }
        let now = self.committer.ctime(old.ctime)?;
        let mut row = old;
        permission::apply(caller, &mut row, &set, now)?;
        let mut batch = Batch::default();
        if let Some(size) = set.size.filter(|_| row.kind == FileKind::Regular) {
            self.contents.truncate(&node, &mut row, size, &mut batch).await?;
        }
        batch.put(key::inode(file.ino), &node.stored(&row));
        let after = attr(file, &row);
        let ticket = self.change_row(&node, batch, row, turn)?;
        Ok(Outcome { answer: Change { before, after }, ticket: Some(ticket) })
    }

    /// Locks a file with nothing waiting to be flushed, so that a new size is not ahead of older data.
    async fn lock_flushed<'a>(&self, node: &'a Arc<Node>) -> Result<tokio::sync::MutexGuard<'a, ()>, FsError> {
        for _ in 0..FLUSHES_MAX {
            if node.content.is_dirty() {
                self.contents.flush(node).await?;
            }
            let lock = node.lock.lock().await;
            if !node.content.is_dirty() {
                return Ok(lock);
            }
        }
        Ok(node.lock.lock().await)
    }
}

/// The attributes around a change that was made elsewhere.
pub fn around(file: FileRef, before: &Inode, after: &Inode) -> Change {
    Change { before: Some(Before::from(&attr(file, before))), after: attr(file, after) }
}
