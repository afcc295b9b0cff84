//! New objects: CREATE, MKDIR, SYMLINK, MKNOD.

use super::entries::Entry;
use super::ring::{Done, First};
use super::{DirEdit, Names, Outcome, TRIES};
use crate::fs::FsError;
use crate::fs::api::*;
use crate::fs::committer::{Batch, Ticket};
use crate::fs::key::{self, DataId};
use crate::fs::moment::Moment;
use crate::fs::node::Node;
use crate::fs::permission::{self, ownership};
use crate::fs::row::{DirEntryRow, Inode};
use crate::types::{EntryName, InodeNo};
use std::sync::Arc;

/// Modes where the caller gives none. An EXCLUSIVE create's attributes arrive with a SETATTR right
/// after it (RFC 1813 §3.3.8), so until then only the owner has access.
const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;
const EXCLUSIVE_MODE: u32 = 0o600;
/// The mode of a symbolic link means nothing and is shown like this everywhere.
const LINK_MODE: u32 = 0o777;

/// Too many names of one hash in one directory: 65,536 names collided under a hash whose key is
/// secret.
pub(super) const HASH_FULL: FsError =
    FsError::Invalid("the directory holds 65,536 names of one hash: choose another name");

/// The object to make, beside the attributes that every object has.
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
        turn: &First,
    ) -> Result<Outcome<Created>, FsError> {
        let dir = self.directory(dir).await?;
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
                return self.existing(caller, &dir, &node, how, turn).await;
            }
            let lock = dir.lock.lock().await;
            if self.resolve(&dir, name).await?.at.is_none() {
                let outcome = self.make_locked(caller, &dir, name, new, turn).await;
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
        turn: &First,
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
                self.setattr(caller, node.file, set, None, turn).await?.ticket
            }
        };
        let dir = DirEdit::new(dir)?.unchanged();
        turn.unchanged(Done { ticket: ticket.unwrap_or_default(), object: Some(node.file) });
        Ok(Outcome { answer: Created { attr: node.attr(), dir }, ticket })
    }

    pub async fn mkdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        set: SetAttr,
        turn: &First,
    ) -> Result<Outcome<Created>, FsError> {
        let set = SetAttr { size: None, ..set };
        self.make_new(caller, dir, name, New::of(FileKind::Directory, set, DIR_MODE), turn).await
    }

    /// SYMLINK and MKNOD. Device nodes are the superuser's to make.
    pub async fn make(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Special,
        set: SetAttr,
        turn: &First,
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
        self.make_new(caller, dir, name, new, turn).await
    }

    async fn make_new(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        new: New,
        turn: &First,
    ) -> Result<Outcome<Created>, FsError> {
        permission::check(&new.set)?;
        let dir = self.directory(dir).await?;
        let _lock = dir.lock.lock().await;
        permission::require(caller, &dir.row.read(), permission::EXECUTE)?;
        self.make_locked(caller, &dir, name, new, turn).await
    }

    /// Makes an object. The caller holds the directory's lock.
    async fn make_locked(
        &self,
        caller: &Caller,
        dir: &Node,
        name: &EntryName,
        new: New,
        turn: &First,
    ) -> Result<Outcome<Created>, FsError> {
        let resolved = self.resolve(dir, name).await?;
        let mut edit = DirEdit::new(dir)?;
        if resolved.at.is_some() {
            return Err(FsError::Exists);
        }
        permission::may_add(caller, &edit.row)?;
        let n = resolved.next.ok_or(HASH_FULL)?;
        let kind = new.kind;
        edit.count(1, kind)?;
        let now = self.now();
        let (ino, row) = self.new_row(caller, &edit, new, now)?;
        let entry = Entry { n, name: name.clone(), ino, kind };
        let mut batch = Batch { inodes: 1, ..Batch::default() };
        edit.put(now, &mut batch);
        batch.put(key::inode(ino), &row);
        let hash = self.hash(name);
        batch.put(
            key::dir_entry(dir.file.ino, hash, n),
            &DirEntryRow { ino, kind, name: name.clone() },
        );
        let (node, ticket) =
            self.publish_new(batch, turn, Node::new(ino, row, Ticket::default()), dir)?;
        let grown = dir.entries.as_ref().map_or(0, |entries| entries.change(hash, n, Some(entry)));
        self.table.count_entries(dir, grown);
        Ok(Outcome {
            answer: Created { attr: node.attr(), dir: edit.publish() },
            ticket: Some(ticket),
        })
    }

    /// The node must be in the table before anybody can find its row in the database, or there
    /// might be two of it.
    fn publish_new(
        &self,
        batch: Batch,
        turn: &First,
        node: Node,
        dir: &Node,
    ) -> Result<(Arc<Node>, Ticket), FsError> {
        let node = self.table.insert(node);
        match self.submit(batch, turn, Some(node.file), &[&node, dir]) {
            Ok(ticket) => Ok((node, ticket)),
            Err(error) => {
                self.table.forget(node.file.ino);
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
            record_bits: self.record_bits,
            cut: 0,
            masks: Vec::new(),
            exclusive: new.exclusive,
            fs_group_epoch: self.committer.superblock().fs_group_epoch,
            target: new.target,
        };
        Ok((ino, row))
    }
}
