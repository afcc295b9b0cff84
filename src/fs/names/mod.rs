//! The name space of a dataset: every operation that looks up or changes names.
//!
//! Nouns: a *node* is an inode in memory ([`super::inode`]); an *entry* leads from a directory and
//! a name to an inode, and is stored under the name's keyed hash and a number `n` that
//! distinguishes names of one hash (R21); a *reply slot* is the right to do a call that must not be
//! done twice (R20, [`super::replies`]).
//!
//! Every operation takes the same steps: look names up without locks; lock all nodes it changes, in
//! ascending order of inode number; look again ([`Names::resolve`] answers from memory now) and
//! start over if a name leads elsewhere; check permissions; build one batch; submit it; change rows
//! and entries in memory; release the locks. There is no await between the submission and the
//! change in memory, so that a call that is dropped half way has happened wholly or not at all.
//! Waiting for durability is the caller's ([`super::dataset`]), without locks.
//!
//! Invariants: a directory's `nlink` is 2 plus its subdirectories, its `size` the number of its
//! entries; `parent` of a directory is the one directory with an entry for it; parents change
//! across directories only under the volume's rename lock, so that no directory can be moved into
//! its own subtree. ctime of every object that a change touches grows (R8).
//!
//! A crash leaves a prefix of the batches: each is one whole operation, so nothing is left half
//! done.
//!
//! Not done here: access times. Like a volume mounted with `noatime`, atime changes only when it is
//! set: every read would otherwise become a write to the object store, and part of every later
//! snapshot.

mod create;
mod edit;
mod link;
mod list;
mod lookup;
mod place;
mod remove;
mod rename;
#[cfg(test)]
mod tests;

pub use list::{Listed, Page, clusters};
pub use lookup::{NameHasher, decode_entry, entry_name};
pub use place::{Replaceable, given_back};
pub use remove::Removal;

use super::FsError;
use super::api::FileRef;
use super::committer::{Batch, Committer, Ticket};
use super::content::{Contents, Resize};
use super::inode::{Inodes, Node};
use super::moment::Moment;
use super::replies::{Done, ReplySlot};
use super::row::Inode;
use crate::types::WallClock;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Attempts of an operation, which starts over when a name leads elsewhere once its nodes are
/// locked.
const TRIES: usize = 64;

/// An operation's answer, and the batch that it submitted: none when there was nothing to change.
pub struct Outcome<T> {
    pub answer: T,
    pub ticket: Option<Ticket>,
}

/// The operations on names of one open dataset.
pub struct Names {
    pub(super) committer: Arc<Committer>,
    pub(super) inodes: Arc<Inodes>,
    pub(super) contents: Arc<Contents>,
    hasher: NameHasher,
    clock: WallClock,
    /// For new files (R6).
    record_bits: AtomicU8,
    /// Held while a directory moves to another parent: see the lock order at [`Node`].
    rename: tokio::sync::Mutex<()>,
    /// Held while a batch that adds inodes is counted and submitted, so that two together do not
    /// pass the quota.
    quota_inodes: Mutex<Option<u64>>,
    /// Set when the root lists `.snapshots`.
    shows_snapshots: AtomicBool,
}

impl Names {
    pub fn new(
        committer: Arc<Committer>,
        inodes: Arc<Inodes>,
        contents: Arc<Contents>,
        clock: WallClock,
        record_bits: u8,
        quota_inodes: Option<u64>,
    ) -> Self {
        let hasher = NameHasher::new(committer.superblock().name_key);
        Self {
            committer,
            inodes,
            contents,
            hasher,
            clock,
            record_bits: AtomicU8::new(record_bits),
            rename: tokio::sync::Mutex::default(),
            quota_inodes: Mutex::new(quota_inodes),
            shows_snapshots: AtomicBool::new(false),
        }
    }

    /// Sets whether the root lists `.snapshots`.
    pub fn show_snapshots(&self, shown: bool) {
        self.shows_snapshots.store(shown, Ordering::Relaxed);
    }

    pub(super) fn shows_snapshots(&self) -> bool {
        self.shows_snapshots.load(Ordering::Relaxed)
    }

    pub(super) fn record_bits(&self) -> u8 {
        self.record_bits.load(Ordering::Relaxed)
    }

    /// For files that are created from now on.
    pub fn set_record_bits(&self, bits: u8) {
        self.record_bits.store(bits, Ordering::Relaxed);
    }

    pub fn set_quota_inodes(&self, inodes: Option<u64>) {
        *self.quota_inodes.lock() = inodes;
    }

    pub fn quota_inodes(&self) -> Option<u64> {
        *self.quota_inodes.lock()
    }

    /// Submits an operation's batch with its answer for the reply cache, and marks the nodes that
    /// it changes. On an error nothing has happened.
    fn submit(
        &self,
        batch: Batch,
        slot: &ReplySlot,
        object: Option<FileRef>,
        nodes: &[&Node],
    ) -> Result<Ticket, FsError> {
        self.submit_marking(batch, slot, object, nodes.iter().copied())
    }

    /// As [`Self::submit`]. The nodes are marked before a retransmission of the call can be
    /// answered (R15).
    fn submit_marking<'a>(
        &self,
        mut batch: Batch,
        slot: &ReplySlot,
        object: Option<FileRef>,
        nodes: impl Iterator<Item = &'a Node>,
    ) -> Result<Ticket, FsError> {
        let recorded = slot.record(&mut batch, object);
        let ticket = self.submit_counted(batch)?;
        nodes.for_each(|node| node.submitted(ticket));
        slot.done(recorded, Done { ticket, object });
        Ok(ticket)
    }

    fn submit_counted(&self, batch: Batch) -> Result<Ticket, FsError> {
        if batch.inodes <= 0 {
            return self.committer.submit(batch);
        }
        let quota = self.quota_inodes.lock();
        let wanted = self.committer.totals().inodes.saturating_add_signed(batch.inodes);
        if quota.is_some_and(|quota| wanted > quota) {
            return Err(FsError::NoInodes);
        }
        self.committer.submit(batch)
    }

    /// Returns the time of a change that happens now. Each object that changes takes its own ctime
    /// from it (R8).
    pub fn now(&self) -> Moment {
        Moment::now(&self.clock)
    }

    /// A changed row of a node that is locked, for the operations on single inodes beside this
    /// module.
    pub fn change_row(
        &self,
        node: &Node,
        batch: Batch,
        row: Inode,
        resize: Option<Resize>,
        slot: &ReplySlot,
    ) -> Result<Ticket, FsError> {
        let ticket = self.submit(batch, slot, Some(node.file), &[node])?;
        match resize {
            Some(resize) => self.contents.resized(node, row, resize),
            None => *node.row.write() = row,
        }
        Ok(ticket)
    }
}

/// Locks nodes in ascending order of inode number, each once.
async fn lock_all<'a>(nodes: &[&'a Arc<Node>]) -> Vec<tokio::sync::MutexGuard<'a, ()>> {
    let mut nodes = nodes.to_vec();
    nodes.sort_unstable_by_key(|node| node.file.ino);
    nodes.dedup_by_key(|node| node.file.ino);
    let mut locks = Vec::with_capacity(nodes.len());
    for node in nodes {
        locks.push(node.lock.lock().await);
    }
    locks
}

/// A copy of a node's row to work on, under its lock.
fn alive(node: &Node) -> Result<Inode, FsError> {
    let row = node.row.read().clone();
    if row.nlink == 0 { Err(FsError::Stale) } else { Ok(row) }
}
