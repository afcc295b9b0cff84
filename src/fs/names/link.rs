//! LINK.

use super::edit::{DirEdit, NameSlot, Old};
use super::{Names, Outcome, alive, lock_all};
use crate::fs::FsError;
use crate::fs::api::{Attr, Caller, Change, FileRef, LINKS_MAX};
use crate::fs::committer::Batch;
use crate::fs::key;
use crate::fs::permission;
use crate::fs::replies::ReplySlot;
use crate::types::EntryName;

impl Names {
    pub async fn link(
        &self,
        caller: &Caller,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
        slot: &ReplySlot,
    ) -> Result<Outcome<(Attr, Change)>, FsError> {
        let (node, dir) = (self.inodes.node(file).await?, self.inodes.directory(dir).await?);
        permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
        if node.entries.is_some() {
            return Err(FsError::NotOwner);
        }
        let _locks = lock_all(&[&node, &dir]).await;
        let resolved = self.resolve(&dir, name).await?;
        let (mut row, mut edit) = (alive(&node)?, DirEdit::new(&dir)?);
        if resolved.at.is_some() {
            return Err(FsError::Exists);
        }
        permission::may_add(caller, &edit.row)?;
        if row.nlink >= LINKS_MAX {
            return Err(FsError::TooManyLinks);
        }
        let now = self.now();
        row.nlink += 1;
        row.ctime = now.ctime(row.ctime);
        let mut batch = Batch::default();
        let at = NameSlot::of(name, self.hash(name), resolved)?;
        let new = Some((file.ino, row.kind));
        let edited = self.edit_name(&mut edit, at, Old::None, new, now, &mut batch)?;
        edit.put(now, &mut batch);
        batch.put(key::inode(file.ino), &node.stored(&row));
        let ticket = self.submit(batch, slot, Some(file), &[&node, &dir])?;
        self.show_name(edited);
        *node.row.write() = row;
        Ok(Outcome { answer: (node.attr(), edit.publish()), ticket: Some(ticket) })
    }
}
