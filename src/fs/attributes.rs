//! Changing one inode's attributes, its size included.

use super::FsError;
use super::api::{Before, Caller, Change, FILE_BYTES_MAX, FileKind, FileRef, SetAttr, SetTime};
use super::committer::{Batch, Ticket};
use super::inode::attr;
use super::key;
use super::names::{Names, Outcome};
use super::permission;
use super::replies::{Done, ReplySlot};
use super::row::Inode;
use crate::types::Timestamp;

fn changes_nothing(set: &SetAttr) -> bool {
    let SetAttr { mode, uid, gid, size, atime, mtime } = set;
    mode.is_none()
        && uid.is_none()
        && gid.is_none()
        && size.is_none()
        && *atime == SetTime::Keep
        && *mtime == SetTime::Keep
}

impl Names {
    /// `guard`: the ctime that the object must still have (RFC 1813 §3.3.2).
    pub async fn setattr(
        &self,
        caller: &Caller,
        file: FileRef,
        set: SetAttr,
        guard: Option<Timestamp>,
        slot: &ReplySlot,
    ) -> Result<Outcome<Change>, FsError> {
        permission::check(&set)?;
        let node = self.inodes.node(file).await?;
        if set.size.is_some() {
            permission::resizable(node.row.read().kind)?;
        }
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(FsError::TooBig);
        }
        let _lock = match set.size {
            // Buffered data is discarded with the rest.
            None | Some(0) => node.lock.lock().await,
            Some(_) => self.contents.lock_flushed(&node).await?,
        };
        let old = node.row.read().clone();
        if old.nlink == 0 {
            return Err(FsError::Stale);
        }
        if guard.is_some_and(|ctime| ctime != old.ctime) {
            return Err(FsError::NotSync);
        }
        let before = Some(Before::from(&attr(file, &old)));
        if changes_nothing(&set) {
            slot.unchanged(Done { ticket: Ticket::default(), object: Some(file) });
            return Ok(Outcome {
                answer: Change { before, after: attr(file, &old) },
                ticket: None,
            });
        }
        let mut row = old;
        permission::apply(caller, &mut row, &set, self.now())?;
        let mut batch = Batch::default();
        let resize = match set.size.filter(|_| row.kind == FileKind::Regular) {
            Some(size) => self.contents.truncate(&node, &mut row, size, &mut batch).await?,
            None => None,
        };
        let stored =
            resize.as_ref().map_or_else(|| node.stored(&row), |resize| resize.stored(&row));
        batch.put(key::inode(file.ino), &stored);
        let ticket = self.change_row(&node, batch, row, resize, slot)?;
        Ok(Outcome { answer: Change { before, after: node.attr() }, ticket: Some(ticket) })
    }
}

/// The attributes before and after a change that was made elsewhere.
pub fn around(file: FileRef, before: &Inode, after: &Inode) -> Change {
    Change { before: Some(Before::from(&attr(file, before))), after: attr(file, after) }
}
