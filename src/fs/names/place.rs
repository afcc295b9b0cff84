//! Places an object with all its attributes in one step, replacing an existing one, for a restore.

use super::edit::{DirEdit, NameSlot, Old};
use super::{Names, TRIES, alive, lock_all};
use crate::fs::FsError;
use crate::fs::api::{FileKind, FileRef, LINKS_MAX};
use crate::fs::committer::{Batch, Ticket};
use crate::fs::content::Copied;
use crate::fs::inode::Node;
use crate::fs::key::{self, DataId};
use crate::fs::replies::ReplySlot;
use crate::fs::row::Inode;
use crate::types::EntryName;
use std::sync::Arc;

/// The objects that may lose their name to one that is placed. A directory never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaceable {
    None,
    Any,
    /// That one, whatever else has the name by now; without one, none: the name was free.
    Only(Option<FileRef>),
}

/// Bytes that the removal of one name frees.
pub fn given_back(row: &Inode) -> u64 {
    if row.kind == FileKind::Regular && row.nlink == 1 { row.allocated } else { 0 }
}

impl Names {
    /// Makes an object with the attributes of `like`, except inode, generation and ctime, in one
    /// batch with the removal of the object that has the name.
    ///
    /// `None`: another object than the only one that may be replaced has the name.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::IsDirectory`] for an object that may not be replaced.
    pub async fn place(
        &self,
        dir: FileRef,
        name: &EntryName,
        like: &Inode,
        mut content: Option<&mut Copied>,
        replaceable: Replaceable,
    ) -> Result<Option<FileRef>, FsError> {
        let dir = self.inodes.directory(dir).await?;
        for _ in 0..TRIES {
            let Some(there) = self.replaced(&dir, name, replaceable).await? else {
                return Ok(None);
            };
            let mut nodes = vec![&dir];
            nodes.extend(&there);
            let _locks = lock_all(&nodes).await;
            let resolved = self.resolve(&dir, name).await?;
            if resolved.at.map(|entry| entry.ino) != there.as_ref().map(|node| node.file.ino) {
                continue;
            }
            let at = NameSlot::of(name, self.hash(name), resolved)?;
            let content = content.as_deref_mut();
            return self.place_locked(&dir, at, like, content, there.as_ref()).map(Some);
        }
        Err(FsError::Busy("the name changes faster than it can be replaced"))
    }

    /// Gives an existing object another name, in one batch with the removal of the object that has
    /// the name: the name never leads to nothing. `None`: as [`Self::place`].
    ///
    /// # Errors
    /// As [`Self::place`].
    pub async fn place_link(
        &self,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
        replaceable: Replaceable,
    ) -> Result<Option<()>, FsError> {
        let (node, dir) = (self.inodes.node(file).await?, self.inodes.directory(dir).await?);
        if node.entries.is_some() {
            return Err(FsError::NotOwner);
        }
        for _ in 0..TRIES {
            let Some(there) = self.replaced(&dir, name, replaceable).await? else {
                return Ok(None);
            };
            if there.as_ref().is_some_and(|there| there.file == node.file) {
                return Ok(Some(()));
            }
            let mut nodes = vec![&node, &dir];
            nodes.extend(&there);
            let _locks = lock_all(&nodes).await;
            let resolved = self.resolve(&dir, name).await?;
            if resolved.at.map(|entry| entry.ino) != there.as_ref().map(|node| node.file.ino) {
                continue;
            }
            let at = NameSlot::of(name, self.hash(name), resolved)?;
            return self.place_link_locked(&node, &dir, at, there.as_ref()).map(Some);
        }
        Err(FsError::Busy("the name changes faster than it can be replaced"))
    }

    /// The object that has the name, if any; `None`: another than the only replaceable one has it.
    async fn replaced(
        &self,
        dir: &Node,
        name: &EntryName,
        replaceable: Replaceable,
    ) -> Result<Option<Option<Arc<Node>>>, FsError> {
        let Some((_, there)) = self.child(dir, name).await? else { return Ok(Some(None)) };
        if there.entries.is_some() {
            return Err(FsError::IsDirectory);
        }
        match replaceable {
            Replaceable::None => Err(FsError::Exists),
            Replaceable::Only(only) if only != Some(there.file) => Ok(None),
            Replaceable::Only(_) | Replaceable::Any => Ok(Some(Some(there))),
        }
    }

    /// The caller holds the locks of the object, of the directory and of the replaced object.
    fn place_link_locked(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        at: NameSlot<'_>,
        there: Option<&Arc<Node>>,
    ) -> Result<(), FsError> {
        let (mut row, mut edit) = (alive(node)?, DirEdit::new(dir)?);
        if row.nlink >= LINKS_MAX {
            return Err(FsError::TooManyLinks);
        }
        let (old, now) = (Old::replaced(there)?, self.now());
        row.nlink += 1;
        row.ctime = now.ctime(row.ctime);
        let mut batch = Batch::default();
        let new = Some((node.file.ino, row.kind));
        let edited = self.edit_name(&mut edit, at, old, new, now, &mut batch)?;
        edit.put(now, &mut batch);
        batch.put(key::inode(node.file.ino), &node.stored(&row));
        let mut changed: Vec<&Node> = vec![node, dir];
        changed.extend(there.map(|there| &**there));
        self.submit(batch, &ReplySlot::unrepeated(), Some(node.file), &changed)?;
        *node.row.write() = row;
        self.show_name(edited);
        edit.publish();
        Ok(())
    }

    /// The caller holds the locks of the directory and of the replaced object.
    fn place_locked(
        &self,
        dir: &Arc<Node>,
        at: NameSlot<'_>,
        like: &Inode,
        mut content: Option<&mut Copied>,
        there: Option<&Arc<Node>>,
    ) -> Result<FileRef, FsError> {
        let mut edit = DirEdit::new(dir)?;
        let (old, now) = (Old::replaced(there)?, self.now());
        if let Some(content) = &mut content {
            content.cover(old.row().map_or(0, given_back))?;
        }
        let mut batch = Batch { inodes: 1, ..Batch::default() };
        let (data, allocated) =
            content.as_mut().map_or((DataId(0), 0), |content| content.finish(&mut batch));
        let (ino, generation) = self.committer.new_inode()?;
        let row = Inode {
            nlink: 1,
            allocated,
            ctime: now.time(),
            generation,
            parent: dir.file.ino,
            data,
            truncations: 0,
            masks: Vec::new(),
            exclusive: None,
            // Presented as long as it is older than the mount group (R28).
            fs_group_epoch: like.fs_group_epoch.min(self.committer.superblock().fs_group_epoch),
            ..like.clone()
        };
        let new = Some((ino, row.kind));
        let edited = self.edit_name(&mut edit, at, old, new, now, &mut batch)?;
        edit.put(now, &mut batch);
        batch.put(key::inode(ino), &row);
        let mut others: Vec<&Node> = vec![dir];
        others.extend(there.map(|there| &**there));
        let node = Node::new(ino, row, Ticket::default());
        let (node, _) = self.publish_new(batch, &ReplySlot::unrepeated(), node, &others)?;
        if let Some(content) = content {
            content.placed();
        }
        self.show_name(edited);
        edit.publish();
        Ok(node.file)
    }
}
