//! An object that is made as it shall be, at once, and where there is one already in its place:
//! what a restore does.

use super::create::HASH_FULL;
use super::entries::Entry;
use super::ring::First;
use super::{DirEdit, Names, TRIES, alive, lock_all};
use crate::fs::FsError;
use crate::fs::api::{FileKind, FileRef, LINKS_MAX};
use crate::fs::committer::{Batch, Ticket};
use crate::fs::content::Copied;
use crate::fs::key::{self, DataId, NameHash};
use crate::fs::node::Node;
use crate::fs::row::{DirEntryRow, Inode};
use crate::types::EntryName;
use std::sync::Arc;

/// The treatment of an existing object of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Nothing.
    Refuse,
    /// Anything but a directory.
    Replace,
}

/// Bytes that go with the removal of one name.
pub fn given_back(row: &Inode) -> u64 {
    if row.kind == FileKind::Regular && row.nlink == 1 { row.allocated } else { 0 }
}

impl Names {
    /// Makes an object with the attributes of `like`, except inode, generation and ctime, in one
    /// batch with the removal of the object that has the name.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::IsDirectory`] for an existing object that may not be
    /// replaced.
    pub async fn place(
        &self,
        dir: FileRef,
        name: &EntryName,
        like: &Inode,
        mut content: Option<Copied>,
        overwrite: Overwrite,
    ) -> Result<FileRef, FsError> {
        let dir = self.directory(dir).await?;
        for _ in 0..TRIES {
            let there = self.way(&dir, name, overwrite).await?;
            let mut nodes = vec![&dir];
            nodes.extend(&there);
            let _locks = lock_all(&nodes).await;
            let resolved = self.resolve(&dir, name).await?;
            if resolved.at.map(|place| place.ino) != there.as_ref().map(|node| node.file.ino) {
                continue;
            }
            let n = resolved.at.map(|place| place.n).or(resolved.next).ok_or(HASH_FULL)?;
            return self.place_locked(&dir, (name, n), like, content.as_mut(), there.as_ref());
        }
        Err(FsError::Busy("the name changes faster than it can be replaced"))
    }

    /// Gives an existing object another name, in one batch with the removal of the object that has
    /// the name: the name never leads to nothing.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub async fn place_link(
        &self,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
        overwrite: Overwrite,
    ) -> Result<(), FsError> {
        let (node, dir) = (self.node(file).await?, self.directory(dir).await?);
        if node.entries.is_some() {
            return Err(FsError::NotOwner);
        }
        for _ in 0..TRIES {
            let there = self.way(&dir, name, overwrite).await?;
            if there.as_ref().is_some_and(|there| there.file == node.file) {
                return Ok(());
            }
            let mut nodes = vec![&node, &dir];
            nodes.extend(&there);
            let _locks = lock_all(&nodes).await;
            let resolved = self.resolve(&dir, name).await?;
            if resolved.at.map(|place| place.ino) != there.as_ref().map(|node| node.file.ino) {
                continue;
            }
            let n = resolved.at.map(|place| place.n).or(resolved.next).ok_or(HASH_FULL)?;
            return self.place_link_locked(&node, &dir, (name, n), there.as_ref());
        }
        Err(FsError::Busy("the name changes faster than it can be replaced"))
    }

    /// Finds the object that has the name, if it may be replaced.
    async fn way(
        &self,
        dir: &Node,
        name: &EntryName,
        overwrite: Overwrite,
    ) -> Result<Option<Arc<Node>>, FsError> {
        match self.child(dir, name).await?.map(|(_, node)| node) {
            Some(there) if there.entries.is_some() => Err(FsError::IsDirectory),
            Some(_) if overwrite == Overwrite::Refuse => Err(FsError::Exists),
            there => Ok(there),
        }
    }

    /// The caller holds the locks of the object, of the directory and of the replaced object.
    fn place_link_locked(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        (name, n): (&EntryName, u16),
        there: Option<&Arc<Node>>,
    ) -> Result<(), FsError> {
        let (mut row, mut edit) = (alive(node)?, DirEdit::new(dir)?);
        if row.nlink >= LINKS_MAX {
            return Err(FsError::TooManyLinks);
        }
        let old = there.map(|node| alive(node)).transpose()?;
        let now = self.now();
        row.nlink += 1;
        row.ctime = now.ctime(row.ctime);
        if let Some(old) = &old {
            edit.count(-1, old.kind)?;
        }
        edit.count(1, FileKind::Regular)?;
        let mut batch = Batch::default();
        edit.put(now, &mut batch);
        let (hash, kind, ino) = (self.hash(name), row.kind, node.file.ino);
        batch.put(key::inode(ino), &node.stored(&row));
        batch.put(
            key::dir_entry(dir.file.ino, hash, n),
            &DirEntryRow { ino, kind, name: name.clone() },
        );
        let mut gone = None;
        if let (Some(there), Some(old)) = (there, old) {
            gone = Some((there, self.unlink(there, old, now, &mut batch)?));
        }
        let mut changed: Vec<&Node> = vec![node, dir];
        changed.extend(there.map(|there| &**there));
        self.submit(batch, &First::unrepeated(), Some(node.file), &changed)?;
        *node.row.write() = row;
        self.has_name(dir, edit, (hash, Entry { n, name: name.clone(), ino, kind }), gone);
        Ok(())
    }

    /// The caller holds the locks of the directory and of the replaced object.
    fn place_locked(
        &self,
        dir: &Arc<Node>,
        (name, n): (&EntryName, u16),
        like: &Inode,
        mut content: Option<&mut Copied>,
        there: Option<&Arc<Node>>,
    ) -> Result<FileRef, FsError> {
        let mut edit = DirEdit::new(dir)?;
        let old = there.map(|node| alive(node)).transpose()?;
        let now = self.now();
        if let Some(content) = &mut content {
            content.cover(old.as_ref().map_or(0, given_back))?;
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
            cut: 0,
            masks: Vec::new(),
            exclusive: None,
            fs_group_epoch: self.committer.superblock().fs_group_epoch,
            ..like.clone()
        };
        if let Some(old) = &old {
            edit.count(-1, old.kind)?;
        }
        edit.count(1, FileKind::Regular)?;
        edit.put(now, &mut batch);
        let (hash, kind) = (self.hash(name), row.kind);
        batch.put(key::inode(ino), &row);
        batch.put(
            key::dir_entry(dir.file.ino, hash, n),
            &DirEntryRow { ino, kind, name: name.clone() },
        );
        let mut gone = None;
        if let (Some(node), Some(old)) = (there, old) {
            gone = Some((node, self.unlink(node, old, now, &mut batch)?));
        }
        // In the table before anybody can find its row, or there might be two of it.
        let node = self.table.insert(Node::new(ino, row, Ticket::default()));
        let mut changed: Vec<&Node> = vec![&node, dir];
        changed.extend(there.map(|node| &**node));
        if let Err(error) = self.submit(batch, &First::unrepeated(), Some(node.file), &changed) {
            self.table.forget(ino);
            return Err(error);
        }
        if let Some(content) = content {
            content.placed();
        }
        self.has_name(dir, edit, (hash, Entry { n, name: name.clone(), ino, kind }), gone);
        Ok(node.file)
    }

    /// Updates memory after the write: the new entry, and the object that it replaced.
    fn has_name(
        &self,
        dir: &Arc<Node>,
        edit: DirEdit<'_>,
        (hash, entry): (NameHash, Entry),
        gone: Option<(&Arc<Node>, Inode)>,
    ) {
        if let Some(entries) = &dir.entries {
            self.table.count_entries(dir, entries.change(hash, entry.n, Some(entry)));
        }
        if let Some((node, row)) = gone {
            self.unlinked(node, row);
        }
        edit.publish();
    }
}
