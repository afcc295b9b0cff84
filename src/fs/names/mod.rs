//! The name space of a dataset: inodes by number, directories by name, and every operation that
//! changes either.
//!
//! Nouns: a *node* is an inode in memory, one at most of each ([`table`]), a *resting* row one of
//! an inode without a node ([`rested`]); an *entry* leads from a directory and a name to an inode,
//! and is kept under the name's keyed hash and a number `n` that tells names of one hash apart
//! (R21, [`entries`]); a *turn* is the right to do a call that must not be done twice (R20,
//! [`ring`]).
//!
//! Every operation goes the same way: look names up without locks; lock all nodes it changes, in
//! ascending order of inode number; look again ([`Names::resolve`] answers from memory now) and
//! start over if a name leads elsewhere; check permissions; build one batch; submit it; change rows
//! and entries in memory; release the locks. From the submission to the change in memory nothing
//! waits, so that a call that is dropped half way has happened wholly or not at all. Waiting for
//! durability is the caller's ([`super::dataset`]), without locks.
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
mod entries;
mod link;
mod list;
mod lookup;
mod memory;
mod place;
mod remove;
mod rename;
mod rested;
mod ring;
mod table;
#[cfg(test)]
mod tests;

pub use entries::{Entries, Entry};
pub use list::{Listed, Page, clusters};
pub use lookup::{NameHasher, decode_entry, entry_name};
pub use memory::NamesMemory;
pub use place::{Overwrite, given_back};
pub use remove::Removal;
pub use ring::{Done, First, Ring, Turn};
pub use table::Table;

use super::FsError;
use super::api::{Before, Change, FileKind, FileRef};
use super::committer::{Batch, Committer, Ticket};
use super::content::{Contents, NodeSource, Resize};
use super::key;
use super::moment::Moment;
use super::node::{Node, attr};
use super::row::{Inode, Row};
use crate::types::{InodeNo, WallClock};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use table::{Filled, Slotted};

/// Attempts of an operation, which starts over when a name leads elsewhere once its nodes are
/// locked.
const TRIES: usize = 64;

/// An operation's answer, and the batch it submitted: none when there was nothing to change.
pub struct Outcome<T> {
    pub answer: T,
    pub ticket: Option<Ticket>,
}

/// The inodes and directories of one open dataset.
pub struct Names {
    pub committer: Arc<Committer>,
    pub contents: Arc<Contents>,
    pub table: Arc<Table>,
    hasher: NameHasher,
    clock: WallClock,
    /// For new files (R6).
    record_bits: u8,
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
        contents: Arc<Contents>,
        clock: WallClock,
        memory: Arc<NamesMemory>,
        record_bits: u8,
        inodes: Option<u64>,
    ) -> Self {
        let hasher = NameHasher::new(committer.superblock().name_key);
        Self {
            committer,
            contents,
            table: Arc::new(Table::new(memory)),
            hasher,
            clock,
            record_bits,
            rename: tokio::sync::Mutex::default(),
            quota_inodes: Mutex::new(inodes),
            shows_snapshots: AtomicBool::new(false),
        }
    }

    /// See [`crate::fs::Fs::show_snapshots`].
    pub fn show_snapshots(&self) {
        self.shows_snapshots.store(true, Ordering::Relaxed);
    }

    pub(super) fn shows_snapshots(&self) -> bool {
        self.shows_snapshots.load(Ordering::Relaxed)
    }

    pub fn set_quota_inodes(&self, inodes: Option<u64>) {
        *self.quota_inodes.lock() = inodes;
    }

    pub fn quota_inodes(&self) -> Option<u64> {
        *self.quota_inodes.lock()
    }

    /// The node of an inode; `None` when there is no such inode.
    pub async fn load(&self, ino: InodeNo) -> Result<Option<Arc<Node>>, FsError> {
        loop {
            match self.table.slot(ino) {
                Slotted::Ready(node) => return Ok(Some(node)),
                Slotted::Wait(ended) => ended.cancelled().await,
                Slotted::Mine(claim) => {
                    let Some(row) = self.committer.get(&key::inode(ino)).await? else {
                        return Ok(None);
                    };
                    // Every change of the inode has been submitted by now.
                    let last = self.committer.last();
                    if let Filled::Ready(node) =
                        claim.fill(Node::new(ino, Inode::decode(&row)?, last))
                    {
                        return Ok(Some(node));
                    }
                }
            }
        }
    }

    /// The node that a handle names. One hit in memory where the node is there.
    pub async fn node(&self, file: FileRef) -> Result<Arc<Node>, FsError> {
        let node = match self.table.peek(file.ino) {
            Some(node) => node,
            None => self.load(file.ino).await?.ok_or(FsError::Stale)?,
        };
        if node.file != file || node.row.read().nlink == 0 { Err(FsError::Stale) } else { Ok(node) }
    }

    /// The directory that a handle names.
    pub async fn directory(&self, file: FileRef) -> Result<Arc<Node>, FsError> {
        let node = self.node(file).await?;
        if node.entries.is_some() { Ok(node) } else { Err(FsError::NotDirectory) }
    }

    /// Submits an operation's batch with its answer for the duplicate-reply ring, and marks the
    /// nodes that it changes. Nothing happened if it fails.
    fn submit(
        &self,
        mut batch: Batch,
        turn: &First,
        object: Option<FileRef>,
        nodes: &[&Node],
    ) -> Result<Ticket, FsError> {
        let seq = turn.record(&mut batch, object);
        let ticket = self.submit_counted(batch)?;
        nodes.iter().for_each(|node| node.submitted(ticket));
        turn.done(seq, Done { ticket, object });
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
        turn: &First,
    ) -> Result<Ticket, FsError> {
        let ticket = self.submit(batch, turn, Some(node.file), &[node])?;
        match resize {
            Some(resize) => self.contents.resized(node, row, resize),
            None => *node.row.write() = row,
        }
        Ok(ticket)
    }
}

#[async_trait::async_trait]
impl NodeSource for Names {
    async fn node(&self, ino: InodeNo) -> Result<Option<Arc<Node>>, FsError> {
        let node = self.load(ino).await?;
        Ok(node.filter(|node| node.row.read().nlink > 0))
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

/// A directory's row being changed by an operation that holds its lock.
struct DirEdit<'a> {
    node: &'a Node,
    before: Before,
    row: Inode,
}

impl<'a> DirEdit<'a> {
    fn new(node: &'a Node) -> Result<Self, FsError> {
        let row = alive(node)?;
        if row.kind != FileKind::Directory {
            return Err(FsError::NotDirectory);
        }
        Ok(Self { node, before: Before::from(&attr(node.file, &row)), row })
    }

    /// An entry more or less, for an object of this kind.
    fn count(&mut self, entries: i64, kind: FileKind) -> Result<(), FsError> {
        let what = || {
            FsError::Corrupt(format!(
                "directory {} counts fewer entries than it has",
                self.node.file.ino
            ))
        };
        self.row.size = self.row.size.checked_add_signed(entries).ok_or_else(what)?;
        if kind == FileKind::Directory {
            let links = i64::from(self.row.nlink) + entries;
            self.row.nlink =
                u32::try_from(links).ok().filter(|links| *links >= 2).ok_or_else(what)?;
        }
        Ok(())
    }

    fn put(&mut self, now: Moment, batch: &mut Batch) {
        self.row.mtime = now.time();
        self.row.ctime = now.ctime(self.row.ctime);
        batch.put(key::inode(self.node.file.ino), &self.row);
    }

    /// After the batch was submitted.
    fn publish(self) -> Change {
        let after = attr(self.node.file, &self.row);
        *self.node.row.write() = self.row;
        Change { before: Some(self.before), after }
    }

    /// Returns the result of a call that changed nothing.
    fn unchanged(&self) -> Change {
        Change { before: Some(self.before), after: attr(self.node.file, &self.row) }
    }
}
