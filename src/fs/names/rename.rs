//! RENAME.
//!
//! Order of checks and errors as in Linux' `do_renameat2` and `vfs_rename`.

use super::edit::{DirEdit, NameSlot, Old};
use super::{Names, Outcome, TRIES, alive, lock_all};
use crate::fs::FsError;
use crate::fs::api::{Caller, Change, FileKind, FileRef};
use crate::fs::committer::{Batch, Ticket};
use crate::fs::inode::Node;
use crate::fs::inode::{EntryRef, Resolved};
use crate::fs::key::{self, NameHash};
use crate::fs::permission;
use crate::fs::replies::{Done, ReplySlot};
use crate::fs::row::Inode;
use crate::types::{EntryName, InodeNo};
use std::sync::Arc;

/// Deepest directory into which another may be moved; deeper means a cycle, and that means
/// corruption.
const DEPTH_MAX: usize = 1 << 20;

/// One end of a rename: a name and the directory that holds it.
#[derive(Clone, Copy)]
struct End<'a> {
    dir: &'a Arc<Node>,
    name: &'a EntryName,
    hash: NameHash,
}

/// The objects that the two names lead to, with everything locked.
struct Endpoints<'a> {
    from: EntryRef,
    to: Resolved,
    source: &'a Arc<Node>,
    target: Option<&'a Arc<Node>>,
}

/// Checks whether `source` may replace `target`, whatever the caller's rights.
fn legal(source: FileKind, target: &Inode) -> Result<(), FsError> {
    match (source, target.kind) {
        (FileKind::Directory, FileKind::Directory) if target.size > 0 => Err(FsError::NotEmpty),
        (FileKind::Directory, FileKind::Directory) => Ok(()),
        (FileKind::Directory, _) => Err(FsError::NotDirectory),
        (_, FileKind::Directory) => Err(FsError::IsDirectory),
        _ => Ok(()),
    }
}

impl Names {
    pub async fn rename(
        &self,
        caller: &Caller,
        from: (FileRef, &EntryName),
        to: (FileRef, &EntryName),
        slot: &ReplySlot,
    ) -> Result<Outcome<(Change, Change)>, FsError> {
        let (from_dir, to_dir) =
            (self.inodes.directory(from.0).await?, self.inodes.directory(to.0).await?);
        for dir in [&from_dir, &to_dir] {
            permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
        }
        let from = End { dir: &from_dir, name: from.1, hash: self.hash(from.1) };
        let to = End { dir: &to_dir, name: to.1, hash: self.hash(to.1) };
        for _ in 0..TRIES {
            let (_, source) = self.child(from.dir, from.name).await?.ok_or(FsError::NotFound)?;
            let target = self.child(to.dir, to.name).await?.map(|(_, node)| node);
            let moves_directory = source.entries.is_some() && from_dir.file != to_dir.file;
            let _volume = if moves_directory { Some(self.rename.lock().await) } else { None };
            let mut nodes = vec![from.dir, to.dir, &source];
            nodes.extend(&target);
            let _locks = lock_all(&nodes).await;
            let now_from = self.resolve(from.dir, from.name).await?.at;
            let now_to = self.resolve(to.dir, to.name).await?;
            let ino = |node: &Arc<Node>| node.file.ino;
            let Some(entry) = now_from.filter(|entry| entry.ino == source.file.ino) else {
                continue;
            };
            if now_to.at.map(|entry| entry.ino) != target.as_ref().map(ino) {
                continue;
            }
            if moves_directory {
                self.check_ancestry(&source, to.dir).await?;
            }
            let found =
                Endpoints { from: entry, to: now_to, source: &source, target: target.as_ref() };
            return self.rename_locked(caller, from, to, &found, slot);
        }
        Err(FsError::Busy("the names change faster than they can be renamed"))
    }

    /// A directory must not move into itself. Under the volume's rename lock no directory changes
    /// its parent meanwhile.
    async fn check_ancestry(&self, source: &Node, to: &Arc<Node>) -> Result<(), FsError> {
        let mut at = to.clone();
        for _ in 0..DEPTH_MAX {
            if at.file.ino == source.file.ino {
                return Err(FsError::Invalid("a directory cannot move into itself"));
            }
            if at.file.ino == InodeNo::ROOT {
                return Ok(());
            }
            at = self.parent(&at).await?;
        }
        Err(FsError::Corrupt(format!("the parents of directory {} lead in a circle", to.file.ino)))
    }

    fn rename_locked<'a>(
        &self,
        caller: &Caller,
        from: End<'a>,
        to: End<'a>,
        found: &Endpoints<'a>,
        slot: &ReplySlot,
    ) -> Result<Outcome<(Change, Change)>, FsError> {
        let (from_edit, to_edit) = (DirEdit::new(from.dir)?, DirEdit::new(to.dir)?);
        let source = alive(found.source)?;
        if found.target.is_some_and(|target| target.file == found.source.file) {
            slot.unchanged(Done { ticket: Ticket::default(), object: None });
            return Ok(Outcome {
                answer: (from_edit.unchanged(), to_edit.unchanged()),
                ticket: None,
            });
        }
        permission::may_remove(caller, &from_edit.row, &source)?;
        let target = found.target.map(|target| alive(target)).transpose()?;
        match &target {
            Some(target) => permission::may_remove(caller, &to_edit.row, target)?,
            None => permission::may_add(caller, &to_edit.row)?,
        }
        if let Some(target) = &target {
            legal(source.kind, target)?;
        }
        if source.kind == FileKind::Directory && from.dir.file != to.dir.file {
            // Its `..` changes.
            permission::require(caller, &source, permission::WRITE)?;
        }
        self.rename_rows(from, to, (from_edit, to_edit), found, (source, target), slot)
    }

    fn rename_rows<'a>(
        &self,
        from: End<'a>,
        to: End<'a>,
        (mut from_edit, mut to_edit): (DirEdit<'a>, DirEdit<'a>),
        found: &Endpoints<'a>,
        (mut source, target): (Inode, Option<Inode>),
        slot: &ReplySlot,
    ) -> Result<Outcome<(Change, Change)>, FsError> {
        let same_dir = from.dir.file == to.dir.file;
        let now = self.now();
        let mut batch = Batch::default();
        let (ino, kind) = (found.source.file.ino, source.kind);
        let from_slot = NameSlot { name: from.name, hash: from.hash, n: found.from.n };
        let to_slot = NameSlot::of(to.name, to.hash, found.to)?;
        let left =
            self.edit_name(&mut from_edit, from_slot, Old::Moved(kind), None, now, &mut batch)?;
        let mut nodes: Vec<&Node> = vec![from.dir, to.dir, found.source];
        let old = match (found.target, target) {
            (Some(node), Some(row)) => {
                nodes.push(node);
                Old::Unlinked(node, row)
            }
            _ => Old::None,
        };
        let edit = if same_dir { &mut from_edit } else { &mut to_edit };
        let taken = self.edit_name(edit, to_slot, old, Some((ino, kind)), now, &mut batch)?;
        from_edit.put(now, &mut batch);
        if !same_dir {
            to_edit.put(now, &mut batch);
        }
        source.ctime = now.ctime(source.ctime);
        if kind == FileKind::Directory {
            source.parent = to.dir.file.ino;
        }
        batch.put(key::inode(ino), &found.source.stored(&source));
        let ticket = self.submit(batch, slot, Some(found.source.file), &nodes)?;
        *found.source.row.write() = source;
        self.show_name(left);
        self.show_name(taken);
        let from_change = from_edit.publish();
        let to_change = if same_dir { from_change } else { to_edit.publish() };
        Ok(Outcome { answer: (from_change, to_change), ticket: Some(ticket) })
    }
}
