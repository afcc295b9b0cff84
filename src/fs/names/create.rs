//! New objects: CREATE, MKDIR, SYMLINK, MKNOD.

use super::edit::{DirEdit, NameSlot, Old};
use super::{Names, Outcome, TRIES};
use crate::fs::FsError;
use crate::fs::api::*;
use crate::fs::committer::{Batch, Ticket};
use crate::fs::inode::Node;
use crate::fs::key::{self, DataId};
use crate::fs::moment::Moment;
use crate::fs::permission::{self, ownership};
use crate::fs::replies::{Done, ReplySlot};
use crate::fs::row::Inode;
use crate::types::{EntryName, InodeNo};
use std::sync::Arc;

/// Modes where the caller gives none. An EXCLUSIVE create's attributes arrive with a SETATTR right
/// after it (RFC 1813 §3.3.8), so until then only the owner has access.
const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;
const EXCLUSIVE_MODE: u32 = 0o600;
/// The mode of a symbolic link has no meaning and is this one everywhere.
const LINK_MODE: u32 = 0o777;

/// The attributes of a new object that its kind and its caller decide.
struct New {
    kind: FileKind,
    set: SetAttr,
    default_mode: u32,
    rdev: (u32, u32),
    target: Option<Vec<u8>>,
    exclusive: Option<[u8; 8]>,
}

impl New {
    fn of(kind: FileKind, set: SetAttr, default_mode: u32) -> Self {
        Self { kind, set, default_mode, rdev: (0, 0), target: None, exclusive: None }
    }
}

impl Names {
    pub async fn create(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        how: CreateHow,
        slot: &ReplySlot,
    ) -> Result<Outcome<Created>, FsError> {
        let dir = self.inodes.directory(dir).await?;
        let (set, exclusive) = match how {
            CreateHow::Unchecked(set) | CreateHow::Guarded(set) => (set, None),
            CreateHow::Exclusive(verifier) => (SetAttr::default(), Some(verifier)),
        };
        permission::check(&set)?;
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(FsError::TooBig);
        }
        let default_mode = if exclusive.is_some() { EXCLUSIVE_MODE } else { FILE_MODE };
        let new = New { exclusive, ..New::of(FileKind::Regular, set, default_mode) };
        // The handling of an existing name must not hold the directory's lock; the name may be
        // removed again meanwhile.
        for _ in 0..TRIES {
            permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
            if let Some((_, node)) = self.child(&dir, name).await? {
                return self.existing(caller, &dir, &node, how, slot).await;
            }
            let lock = dir.lock.lock().await;
            if self.resolve(&dir, name).await?.at.is_none() {
                let outcome = self.make_locked(caller, &dir, name, new, slot).await;
                drop(lock);
                return outcome;
            }
        }
        Err(FsError::Busy("the name changes faster than it can be created"))
    }

    /// CREATE of a name that exists: success for UNCHECKED, and for EXCLUSIVE when it is the same
    /// call again (RFC 1813 §3.3.8).
    async fn existing(
        &self,
        caller: &Caller,
        dir: &Arc<Node>,
        node: &Arc<Node>,
        how: CreateHow,
        slot: &ReplySlot,
    ) -> Result<Outcome<Created>, FsError> {
        let ticket = match how {
            CreateHow::Guarded(_) => return Err(FsError::Exists),
            _ if node.row.read().kind != FileKind::Regular => return Err(FsError::Exists),
            CreateHow::Exclusive(verifier) if node.row.read().exclusive == Some(verifier) => {
                Some(node.last())
            }
            CreateHow::Exclusive(_) => return Err(FsError::Exists),
            CreateHow::Unchecked(SetAttr { size: None, .. }) => Some(node.last()),
            CreateHow::Unchecked(SetAttr { size, .. }) => {
                let set = SetAttr { size, ..SetAttr::default() };
                self.setattr(caller, node.file, set, None, slot).await?.ticket
            }
        };
        let dir = DirEdit::new(dir)?.unchanged();
        slot.unchanged(Done { ticket: ticket.unwrap_or_default(), object: Some(node.file) });
        Ok(Outcome { answer: Created { attr: node.attr(), dir }, ticket })
    }

    pub async fn mkdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        set: SetAttr,
        slot: &ReplySlot,
    ) -> Result<Outcome<Created>, FsError> {
        let set = SetAttr { size: None, ..set };
        self.make_new(caller, dir, name, New::of(FileKind::Directory, set, DIR_MODE), slot).await
    }

    /// SYMLINK and MKNOD. Only the superuser may make device nodes.
    pub async fn make(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Special,
        set: SetAttr,
        slot: &ReplySlot,
    ) -> Result<Outcome<Created>, FsError> {
        let set = SetAttr { size: None, ..set };
        let device =
            |kind, major, minor| New { rdev: (major, minor), ..New::of(kind, set, FILE_MODE) };
        let new = match what {
            Special::Symlink(target) if target.len() > SYMLINK_BYTES_MAX => {
                return Err(FsError::NameTooLong);
            }
            Special::Symlink(target) if target.is_empty() => {
                return Err(FsError::Invalid("a symbolic link must have a target"));
            }
            Special::Symlink(target) => {
                let set = SetAttr { mode: Some(LINK_MODE), ..set };
                New { target: Some(target.to_vec()), ..New::of(FileKind::Symlink, set, LINK_MODE) }
            }
            Special::BlockDevice(..) | Special::CharDevice(..) if !permission::is_root(caller) => {
                return Err(FsError::NotOwner);
            }
            Special::BlockDevice(major, minor) => device(FileKind::BlockDevice, major, minor),
            Special::CharDevice(major, minor) => device(FileKind::CharDevice, major, minor),
            Special::Fifo => New::of(FileKind::Fifo, set, FILE_MODE),
            Special::Socket => New::of(FileKind::Socket, set, FILE_MODE),
        };
        self.make_new(caller, dir, name, new, slot).await
    }

    async fn make_new(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        new: New,
        slot: &ReplySlot,
    ) -> Result<Outcome<Created>, FsError> {
        permission::check(&new.set)?;
        let dir = self.inodes.directory(dir).await?;
        let _lock = dir.lock.lock().await;
        permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
        self.make_locked(caller, &dir, name, new, slot).await
    }

    /// Makes an object. The caller holds the directory's lock.
    async fn make_locked(
        &self,
        caller: &Caller,
        dir: &Node,
        name: &EntryName,
        new: New,
        slot: &ReplySlot,
    ) -> Result<Outcome<Created>, FsError> {
        let resolved = self.resolve(dir, name).await?;
        let mut edit = DirEdit::new(dir)?;
        if resolved.at.is_some() {
            return Err(FsError::Exists);
        }
        permission::may_add(caller, &edit.row)?;
        let at = NameSlot::of(name, self.hash(name), resolved)?;
        let (kind, now) = (new.kind, self.now());
        let (ino, row) = self.new_row(caller, &edit, new, now)?;
        let mut batch = Batch { inodes: 1, ..Batch::default() };
        let new = Some((ino, kind));
        let edited = self.edit_name(&mut edit, at, Old::None, new, now, &mut batch)?;
        edit.put(now, &mut batch);
        batch.put(key::inode(ino), &row);
        let node = Node::new(ino, row, Ticket::default());
        let (node, ticket) = self.publish_new(batch, slot, node, &[dir])?;
        self.show_name(edited);
        Ok(Outcome {
            answer: Created { attr: node.attr(), dir: edit.publish() },
            ticket: Some(ticket),
        })
    }

    /// Submits the batch that makes a node, and changes the others. The node must be in the table
    /// before its row can be found in the database, or there might be two nodes.
    pub(super) fn publish_new(
        &self,
        batch: Batch,
        slot: &ReplySlot,
        node: Node,
        others: &[&Node],
    ) -> Result<(Arc<Node>, Ticket), FsError> {
        let node = self.inodes.insert(node);
        let changed = std::iter::once(&*node).chain(others.iter().copied());
        match self.submit_marking(batch, slot, Some(node.file), changed) {
            Ok(ticket) => Ok((node, ticket)),
            Err(error) => {
                self.inodes.forget(node.file.ino);
                Err(error)
            }
        }
    }

    fn new_row(
        &self,
        caller: &Caller,
        dir: &DirEdit<'_>,
        new: New,
        now: Moment,
    ) -> Result<(InodeNo, Inode), FsError> {
        let (ino, generation) = self.committer.new_inode()?;
        let (uid, gid, mode) = ownership(caller, &dir.row, new.kind, &new.set, new.default_mode);
        let target_bytes = new.target.as_ref().map_or(0, |target| target.len() as u64);
        let row = Inode {
            kind: new.kind,
            mode,
            uid,
            gid,
            nlink: if new.kind == FileKind::Directory { 2 } else { 1 },
            size: new.set.size.unwrap_or(target_bytes),
            allocated: 0,
            rdev: new.rdev,
            atime: permission::time(new.set.atime, now).unwrap_or(now.time()),
            mtime: permission::time(new.set.mtime, now).unwrap_or(now.time()),
            ctime: now.time(),
            generation,
            parent: dir.node.file.ino,
            data: if new.kind == FileKind::Regular {
                self.committer.new_data()?
            } else {
                DataId(0)
            },
            record_bits: self.record_bits(),
            truncations: 0,
            masks: Vec::new(),
            exclusive: new.exclusive,
            fs_group_epoch: self.committer.superblock().fs_group_epoch,
            target: new.target,
        };
        Ok((ino, row))
    }
}
