//! LINK.

use super::create::HASH_FULL;
use super::entries::Entry;
use super::ring::First;
use super::{DirEdit, Names, Outcome, alive, lock_all};
use crate::fs::FsError;
use crate::fs::api::{Attr, Caller, Change, FileKind, FileRef, LINKS_MAX};
use crate::fs::committer::Batch;
use crate::fs::key;
use crate::fs::permission;
use crate::fs::row::DirEntryRow;
use crate::types::EntryName;

impl Names {
    pub async fn link(
        &self,
        caller: &Caller,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
        turn: &First,
    ) -> Result<Outcome<(Attr, Change)>, FsError> {
        let (node, dir) = (self.node(file).await?, self.directory(dir).await?);
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
        let n = resolved.next.ok_or(HASH_FULL)?;
        let now = self.now();
        row.nlink += 1;
        row.ctime = now.ctime(row.ctime);
        edit.count(1, FileKind::Regular)?;
        let mut batch = Batch::default();
        edit.put(now, &mut batch);
        batch.put(key::inode(file.ino), &node.stored(&row));
        let (hash, kind) = (self.hash(name), row.kind);
        batch.put(
            key::dir_entry(dir.file.ino, hash, n),
            &DirEntryRow { ino: file.ino, kind, name: name.clone() },
        );
        let ticket = self.submit(batch, turn, Some(file), &[&node, &dir])?;
        if let Some(entries) = &dir.entries {
            let entry = Entry { n, name: name.clone(), ino: file.ino, kind };
            self.table.count_entries(&dir, entries.change(hash, n, Some(entry)));
        }
        *node.row.write() = row;
        Ok(Outcome { answer: (node.attr(), edit.publish()), ticket: Some(ticket) })
    }
}
