//! REMOVE and RMDIR.

use super::edit::{DirEdit, NameSlot, Old};
use super::{Names, Outcome, TRIES, lock_all};
use crate::fs::FsError;
use crate::fs::api::{Caller, Change, FileKind, FileRef};
use crate::fs::committer::Batch;
use crate::fs::inode::EntryRef;
use crate::fs::inode::Node;
use crate::fs::permission;
use crate::fs::replies::ReplySlot;
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
        slot: &ReplySlot,
    ) -> Result<Outcome<Change>, FsError> {
        let dir = self.inodes.directory(dir).await?;
        permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
        for _ in 0..TRIES {
            let (_, child) = self.child(&dir, name).await?.ok_or(FsError::NotFound)?;
            let _locks = lock_all(&[&dir, &child]).await;
            match self.resolve(&dir, name).await?.at {
                Some(entry) if entry.ino == child.file.ino => {
                    return self.remove_locked(caller, (&dir, name, entry), &child, what, slot);
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
        (dir, name, entry): (&Arc<Node>, &EntryName, EntryRef),
        child: &Arc<Node>,
        what: Removal,
        slot: &ReplySlot,
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
        let at = NameSlot { name, hash: self.hash(name), n: entry.n };
        let edited =
            self.edit_name(&mut edit, at, Old::Unlinked(child, row), None, now, &mut batch)?;
        edit.put(now, &mut batch);
        let ticket = self.submit(batch, slot, None, &[dir, child])?;
        self.show_name(edited);
        Ok(Outcome { answer: edit.publish(), ticket: Some(ticket) })
    }
}
