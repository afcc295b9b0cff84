//! The inode table: at most one [`Node`] of an inode in this process, found by number, and the rows
//! of inodes without one ([`super::row_cache`]).
//!
//! Bounded: a clock per shard evicts unused nodes, and keeps their rows a while longer. A node that
//! is in use, or whose content waits to be flushed, stays: a second node of the same inode would
//! lose its changes.

use super::entries::{Entries, Evicted};
use super::memory::{InodeMemory, MemoryShare};
use super::node::{Node, attr};
use super::row_cache::{CachedRow, FillId, ROW_BYTES, RowCache};
use crate::fs::FsError;
use crate::fs::api::{Attr, FileRef};
use crate::fs::committer::{Committer, Ticket};
use crate::fs::key;
use crate::fs::mount_group::MountGroup;
use crate::fs::row::{Inode, Row};
use crate::types::InodeNo;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

mod shard;

use shard::{NodeState, Shard};

const SHARDS: usize = 32;
/// Approximate memory of a node: the row, the content's bookkeeping, the table's own.
pub const NODE_BYTES: u64 = 1024;
/// Approximate memory of a cached directory entry.
pub const ENTRY_BYTES: u64 = 128;

/// The inodes of one open dataset.
pub struct Inodes {
    committer: Arc<Committer>,
    shards: Vec<Mutex<Shard>>,
    memory: MemoryShare,
    loads: AtomicU64,
    fills: AtomicU64,
    nodes: AtomicUsize,
    /// Directory entries known, over all directories.
    entries: AtomicUsize,
}

/// Minimum of a volume, whatever others take: enough for the paths that a program walks. It
/// is 34 KiB with the rows, less than the even part of 256 volumes of the default memory.
const NODES_MIN: usize = 16;
const SHARD_ROWS_MIN: usize = 1;
const ENTRIES_MIN: usize = 64;

/// The result of looking up an inode.
pub enum Lookup {
    Loaded(Arc<Node>),
    /// The caller loads it.
    Missing(Load),
    /// Another task loads it; look again when this is cancelled.
    Loading(CancellationToken),
}

/// The right to load an inode. If it is dropped before it has [ended](Self::finish), another may
/// load the inode.
///
/// The load ends silently when the inode is created meanwhile: an old handle may name a number that
/// was lost with its node and is given out again (R7). Then the created node is the inode's, and
/// the loaded one is dropped.
pub struct Load {
    inodes: Arc<Inodes>,
    ino: InodeNo,
    number: u64,
    ended: CancellationToken,
    finished: bool,
}

/// The outcome of a load.
pub enum Loaded {
    Node(Arc<Node>),
    /// The inode was made, or made and removed, since the load began: look again.
    Overtaken,
}

impl Load {
    /// Enters the loaded node.
    pub fn finish(mut self, node: Node) -> Loaded {
        let excess = self.inodes.excess_nodes();
        let entered = self.inodes.change(self.ino, |shard| {
            if !shard.is_loading(self.ino, self.number) {
                return None;
            }
            // Under the shard's lock: a group that is set later finds the node in the table.
            self.inodes.present(&mut node.row.write());
            Some(shard.insert(node.into(), excess))
        });
        let Some((node, dropped)) = entered else { return Loaded::Overtaken };
        self.finished = true;
        self.inodes.evicted(&dropped);
        Loaded::Node(node)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !self.finished {
            self.inodes.change(self.ino, |shard| {
                if shard.is_loading(self.ino, self.number) {
                    shard.nodes.remove(&self.ino.0);
                }
            });
        }
        self.ended.cancel();
    }
}

/// An inode's cached attributes.
pub struct CachedAttr {
    /// Absent: the inode was removed.
    pub attr: Option<Attr>,
    /// The last batch that changed it, where there is no node (R15).
    pub last: Ticket,
}

impl Inodes {
    /// Divides its share of the memory: half for directory entries, a quarter for nodes, a quarter
    /// for rows without one.
    pub fn new(committer: Arc<Committer>, memory: Arc<InodeMemory>) -> Self {
        let memory = MemoryShare::of(memory);
        let shard = || Shard {
            nodes: HashMap::default(),
            clock: VecDeque::new(),
            rows: RowCache::new(SHARD_ROWS_MIN),
        };
        Self {
            committer,
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            memory,
            loads: AtomicU64::new(0),
            fills: AtomicU64::new(0),
            nodes: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
        }
    }

    /// The number of items of `each` bytes that fit into one of `parts` parts of the memory.
    fn count(&self, parts: u64, each: u64) -> usize {
        usize::try_from(self.memory.max() / parts / each).unwrap_or(usize::MAX)
    }

    /// Most unused nodes that an insertion evicts.
    fn excess_nodes(&self) -> usize {
        let max = self.count(4, NODE_BYTES).max(NODES_MIN);
        (self.nodes.load(Ordering::Relaxed) + 1).saturating_sub(max)
    }

    fn shard_rows_max(&self) -> usize {
        (self.count(4, ROW_BYTES) / SHARDS).max(SHARD_ROWS_MIN)
    }

    fn entries_max(&self) -> usize {
        self.count(2, ENTRY_BYTES).max(ENTRIES_MIN)
    }

    /// Changes a shard and accounts for its memory.
    fn change<T>(&self, ino: InodeNo, work: impl FnOnce(&mut Shard) -> T) -> T {
        let rows_max = self.shard_rows_max();
        let mut shard = self.shard(ino).lock();
        let (before, nodes) = (shard.bytes(), shard.nodes.len());
        shard.rows.set_max(rows_max);
        let done = work(&mut shard);
        self.memory.change(before, shard.bytes());
        match shard.nodes.len().checked_sub(nodes) {
            Some(0) => {}
            Some(more) => drop(self.nodes.fetch_add(more, Ordering::Relaxed)),
            None => drop(self.nodes.fetch_sub(nodes - shard.nodes.len(), Ordering::Relaxed)),
        }
        done
    }

    /// Subtracts directory entries that were evicted.
    fn uncount_entries(&self, count: usize) {
        self.entries.fetch_sub(count, Ordering::Relaxed);
        self.memory.change(count as u64 * ENTRY_BYTES, 0);
    }

    fn shard(&self, ino: InodeNo) -> &Mutex<Shard> {
        &self.shards[(ino.0 % SHARDS as u64) as usize]
    }

    /// Gives a row that was read the mount group, if it is older (R28).
    pub fn present(&self, row: &mut Inode) {
        if let Some(group) = MountGroup::of(&self.committer.superblock()) {
            group.present(row);
        }
    }

    /// Gives what is in memory a mount group that was set just now.
    pub async fn present_all(&self) {
        for shard in 0..SHARDS as u64 {
            let nodes: Vec<Arc<Node>> = self.change(InodeNo(shard), |shard| {
                shard.rows.clear();
                shard.nodes.values().filter_map(NodeState::loaded).cloned().collect()
            });
            for node in nodes {
                let _changing = node.lock.lock().await;
                self.present(&mut node.row.write());
            }
        }
    }

    /// The node of an inode; `None` when there is no such inode.
    pub async fn load(self: &Arc<Self>, ino: InodeNo) -> Result<Option<Arc<Node>>, FsError> {
        loop {
            match self.lookup(ino) {
                Lookup::Loaded(node) => return Ok(Some(node)),
                Lookup::Loading(ended) => ended.cancelled().await,
                Lookup::Missing(load) => {
                    let Some(row) = self.committer.get(&key::inode(ino)).await? else {
                        return Ok(None);
                    };
                    // The batch that changed it has been submitted by now.
                    let last = self.committer.last();
                    if let Loaded::Node(node) =
                        load.finish(Node::new(ino, Inode::decode(&row)?, last))
                    {
                        return Ok(Some(node));
                    }
                }
            }
        }
    }

    /// As [`Self::load`], for an inode that has a name.
    pub async fn load_linked(self: &Arc<Self>, ino: InodeNo) -> Result<Option<Arc<Node>>, FsError> {
        Ok(self.load(ino).await?.filter(|node| node.row.read().nlink > 0))
    }

    /// The node that a handle names. One hit in memory where the node is there.
    pub async fn node(self: &Arc<Self>, file: FileRef) -> Result<Arc<Node>, FsError> {
        let node = match self.peek(file.ino) {
            Some(node) => node,
            None => self.load(file.ino).await?.ok_or(FsError::Stale)?,
        };
        if node.file != file || node.row.read().nlink == 0 { Err(FsError::Stale) } else { Ok(node) }
    }

    /// The directory that a handle names.
    pub async fn directory(self: &Arc<Self>, file: FileRef) -> Result<Arc<Node>, FsError> {
        let node = self.node(file).await?;
        if node.entries.is_some() { Ok(node) } else { Err(FsError::NotDirectory) }
    }

    /// The node if it is in memory.
    pub fn peek(&self, ino: InodeNo) -> Option<Arc<Node>> {
        match self.shard(ino).lock().nodes.get_mut(&ino.0) {
            Some(NodeState::Loaded { node, used }) => {
                *used = true;
                Some(node.clone())
            }
            _ => None,
        }
    }

    /// Returns the node, or the right to load it, or a wait for another load. A cached row becomes
    /// a node without a read of the database.
    pub fn lookup(self: &Arc<Self>, ino: InodeNo) -> Lookup {
        if let Some(known) = self.shard(ino).lock().find(ino) {
            return known;
        }
        let excess = self.excess_nodes();
        let (found, dropped) = self.change(ino, |shard| {
            // Another task may have been faster.
            if let Some(known) = shard.find(ino) {
                return (known, Vec::new());
            }
            if let Some(CachedRow { row, last }) = shard.rows.take(ino.0) {
                let (node, dropped) = shard.insert(Node::new(ino, row, last).into(), excess);
                return (Lookup::Loaded(node), dropped);
            }
            let (number, ended) =
                (self.loads.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
            shard.nodes.insert(ino.0, NodeState::Loading { load: number, ended: ended.clone() });
            (
                Lookup::Missing(Load { inodes: self.clone(), ino, number, ended, finished: false }),
                Vec::new(),
            )
        });
        self.evicted(&dropped);
        found
    }

    /// Returns the cached attributes of an inode without making a node of it; `None`: look at the
    /// database. Does not count as use: a long listing would otherwise evict the nodes in use.
    pub fn cached_attr(&self, ino: InodeNo) -> Option<CachedAttr> {
        let shard = self.shard(ino).lock();
        match shard.nodes.get(&ino.0) {
            Some(NodeState::Loaded { node, .. }) => Some(CachedAttr {
                attr: Some(node.attr()).filter(|attr| attr.nlink > 0),
                last: Ticket::default(),
            }),
            Some(NodeState::Loading { .. }) => None,
            None => shard.rows.get(ino.0).map(|cached| CachedAttr {
                attr: Some(row_attr(ino, &cached.row)),
                last: cached.last,
            }),
        }
    }

    /// Returns a number for a task that is about to read rows for [`Self::fill_row`].
    pub fn new_fill(&self) -> FillId {
        FillId(self.fills.fetch_add(1, Ordering::Relaxed))
    }

    /// Announces that an inode's row is about to be read. `false`: it is in memory, or being
    /// loaded.
    pub fn begin_fill(&self, ino: InodeNo, fill: FillId) -> bool {
        self.change(ino, |shard| {
            !shard.nodes.contains_key(&ino.0) && shard.rows.begin_fill(ino.0, fill)
        })
    }

    /// Caches a row that was read, unless the inode may have changed since that read began.
    pub fn fill_row(&self, ino: InodeNo, fill: FillId, row: Inode, last: Ticket) {
        // The row takes as much memory as the mark in its place.
        self.shard(ino).lock().rows.fill(ino.0, fill, CachedRow { row, last });
    }

    /// Most rows that are cached at a time.
    pub fn rows_max(&self) -> usize {
        self.shard_rows_max() * SHARDS
    }

    /// Adds a node that is new.
    pub fn insert(&self, node: impl Into<Arc<Node>>) -> Arc<Node> {
        let (node, excess): (Arc<Node>, _) = (node.into(), self.excess_nodes());
        let (node, dropped) = self.change(node.file.ino, |shard| {
            // As in [`Load::finish`].
            self.present(&mut node.row.write());
            shard.insert(node, excess)
        });
        self.evicted(&dropped);
        node
    }

    /// Drops a removed inode. Its number may still be looked up; the database then shows that it
    /// does not exist.
    pub fn forget(&self, ino: InodeNo) {
        let removed = self.change(ino, |shard| {
            shard.rows.take(ino.0);
            shard.nodes.remove(&ino.0)
        });
        if let Some(NodeState::Loaded { node, .. }) = removed
            && let Some(entries) = &node.entries
        {
            self.uncount_entries(entries.forget(Evicted::Gone));
        }
    }

    fn evicted(&self, directories: &[Entries]) {
        for entries in directories {
            self.uncount_entries(entries.forget(Evicted::Gone));
        }
    }

    /// Counts directory entries that `dir` has cached or dropped, and makes room when there are too
    /// many.
    pub fn count_entries(&self, dir: &Node, grown: isize) {
        if grown <= 0 {
            return self.uncount_entries(grown.unsigned_abs());
        }
        let now = self
            .entries
            .fetch_add(grown.unsigned_abs(), Ordering::Relaxed)
            .saturating_add(grown.unsigned_abs());
        self.memory.change(0, grown.unsigned_abs() as u64 * ENTRY_BYTES);
        let max = self.entries_max();
        if now <= max {
            return;
        }
        // A directory that holds most of them does not evict the others.
        if let Some(entries) = dir.entries.as_ref().filter(|e| e.len() > max / 2) {
            return self.uncount_entries(entries.forget(Evicted::ForRoom));
        }
        // Two passes: the first clears the used marks.
        for _ in 0..2 {
            self.sweep(dir, max / 4 * 3);
        }
    }

    /// Evicts the entries of directories not used since the last sweep, down to three quarters of
    /// the limit. Looks at all nodes, but only once in a quarter of the limit's insertions.
    fn sweep(&self, except: &Node, wanted: usize) {
        for shard in &self.shards {
            let shard = shard.lock();
            for state in shard.nodes.values() {
                if self.entries.load(Ordering::Relaxed) <= wanted {
                    return;
                }
                let NodeState::Loaded { node, .. } = state else { continue };
                if let Some(entries) =
                    node.entries.as_ref().filter(|e| node.file != except.file && !e.take_used())
                {
                    self.uncount_entries(entries.forget(Evicted::ForRoom));
                }
            }
        }
    }

    /// The largest directory that is kept completely, in entries.
    pub fn directory_max(&self) -> usize {
        self.entries_max() / 2
    }

    /// Nodes in memory.
    #[cfg(test)]
    pub fn nodes(&self) -> usize {
        self.shards.iter().map(|s| s.lock().nodes.len()).sum()
    }

    /// Rows in the row cache.
    #[cfg(test)]
    pub fn rows(&self) -> usize {
        self.shards.iter().map(|s| s.lock().rows.len()).sum()
    }
}

fn row_attr(ino: InodeNo, row: &Inode) -> Attr {
    attr(FileRef { ino, generation: row.generation }, row)
}
