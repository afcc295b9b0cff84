//! The inode table: at most one [`Node`] of an inode in this process, found by number.
//!
//! Bounded: a clock per shard drops nodes that nobody uses. A node that somebody holds, or whose content waits to be flushed, stays: a second
//! node of the same inode would lose its changes.

use super::entries::Forget;
use crate::fs::node::Node;
use crate::types::InodeNo;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

const SHARDS: usize = 32;
/// Nodes that one insertion looks at to find some to drop.
const CLOCK_STEPS: usize = 8;
/// What a node takes in memory, about: the row, the content's bookkeeping, the table's own.
pub const NODE_BYTES: u64 = 1024;
/// What a known directory entry takes in memory, about.
pub const ENTRY_BYTES: u64 = 128;

/// Inode numbers are counted up: they need no hashing beyond spreading over the map's upper bits.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = (self.0 << 8) ^ u64::from(*b));
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

enum Slot {
    Ready {
        node: Arc<Node>,
        used: bool,
    },
    /// Cancelled when the load has ended, well or not.
    Loading(CancellationToken),
}

#[derive(Default)]
struct Shard {
    slots: HashMap<u64, Slot, BuildHasherDefault<Spread>>,
    clock: VecDeque<u64>,
}

pub struct Table {
    shards: Vec<Mutex<Shard>>,
    shard_nodes_max: usize,
    /// Directory entries known, over all directories.
    entries: AtomicUsize,
    entries_max: usize,
}

/// What asking for an inode tells.
pub enum Slotted {
    Ready(Arc<Node>),
    /// The caller loads it.
    Mine(Claim),
    /// Somebody loads it; ask again when this is cancelled.
    Wait(CancellationToken),
}

/// The right to load inodes. What was not [filled](Self::fill) when it is dropped is free to be loaded by another.
pub struct Claim {
    table: Arc<Table>,
    inos: HashSet<InodeNo>,
    ended: CancellationToken,
}

impl Claim {
    /// Puts a loaded node in its place.
    pub fn fill(&mut self, node: Node) -> Arc<Node> {
        self.inos.remove(&node.file.ino);
        self.table.insert(node)
    }

    /// What is still to be loaded, in ascending order.
    pub fn inos(&self) -> Vec<InodeNo> {
        let mut inos: Vec<_> = self.inos.iter().copied().collect();
        inos.sort_unstable();
        inos
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for ino in &self.inos {
            self.table.shard(*ino).lock().slots.remove(&ino.0);
        }
        self.ended.cancel();
    }
}

impl Table {
    /// Half of `bytes` for nodes, half for directory entries.
    pub fn new(bytes: u64) -> Self {
        let count = |bytes: u64, each: u64| usize::try_from(bytes / each).unwrap_or(usize::MAX);
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_nodes_max: (count(bytes / 2, NODE_BYTES) / SHARDS).max(16),
            entries: AtomicUsize::new(0),
            entries_max: count(bytes / 2, ENTRY_BYTES).max(1024),
        }
    }

    fn shard(&self, ino: InodeNo) -> &Mutex<Shard> {
        &self.shards[(ino.0 % SHARDS as u64) as usize]
    }

    /// The node if it is in memory.
    pub fn peek(&self, ino: InodeNo) -> Option<Arc<Node>> {
        match self.shard(ino).lock().slots.get_mut(&ino.0) {
            Some(Slot::Ready { node, used }) => {
                *used = true;
                Some(node.clone())
            }
            _ => None,
        }
    }

    /// The node, or the right or the wait for loading it.
    pub fn slot(self: &Arc<Self>, ino: InodeNo) -> Slotted {
        let mut shard = self.shard(ino).lock();
        match shard.slots.get_mut(&ino.0) {
            Some(Slot::Ready { node, used }) => {
                *used = true;
                Slotted::Ready(node.clone())
            }
            Some(Slot::Loading(ended)) => Slotted::Wait(ended.clone()),
            None => {
                let ended = CancellationToken::new();
                shard.slots.insert(ino.0, Slot::Loading(ended.clone()));
                Slotted::Mine(Claim { table: self.clone(), inos: HashSet::from([ino]), ended })
            }
        }
    }

    /// Claims those of the inodes that are neither in memory nor being loaded.
    pub fn claim(self: &Arc<Self>, inos: impl Iterator<Item = InodeNo>) -> Claim {
        let mut claim = Claim { table: self.clone(), inos: HashSet::new(), ended: CancellationToken::new() };
        for ino in inos {
            let mut shard = self.shard(ino).lock();
            if let std::collections::hash_map::Entry::Vacant(slot) = shard.slots.entry(ino.0) {
                slot.insert(Slot::Loading(claim.ended.clone()));
                claim.inos.insert(ino);
            }
        }
        claim
    }

    /// Adds a node that is new or was claimed.
    pub fn insert(&self, node: Node) -> Arc<Node> {
        let node = Arc::new(node);
        let ino = node.file.ino.0;
        let mut shard = self.shard(node.file.ino).lock();
        let dropped = shard.make_room(self.shard_nodes_max);
        shard.slots.insert(ino, Slot::Ready { node: node.clone(), used: false });
        shard.clock.push_back(ino);
        shard.prune_clock();
        drop(shard);
        dropped.iter().for_each(|node| self.left(node));
        node
    }

    /// The inode is no more. Its number may still be asked for; the database then says that it does not exist.
    pub fn forget(&self, ino: InodeNo) {
        let mut shard = self.shard(ino).lock();
        if let Some(Slot::Ready { node, .. }) = shard.slots.remove(&ino.0) {
            drop(shard);
            self.left(&node);
        }
    }

    fn left(&self, node: &Node) {
        if let Some(entries) = &node.entries {
            self.entries.fetch_sub(entries.forget(Forget::Gone), Ordering::Relaxed);
        }
    }

    /// Counts directory entries learnt or forgotten in `dir`, and makes room when there are too many.
    pub fn count_entries(&self, dir: &Node, grown: isize) {
        let before = if grown >= 0 {
            self.entries.fetch_add(grown.unsigned_abs(), Ordering::Relaxed)
        } else {
            self.entries.fetch_sub(grown.unsigned_abs(), Ordering::Relaxed)
        };
        if grown <= 0 || before.saturating_add_signed(grown) <= self.entries_max {
            return;
        }
        // A directory that is most of it does not throw out the others.
        if let Some(entries) = dir.entries.as_ref().filter(|e| e.len() > self.entries_max / 2) {
            self.entries.fetch_sub(entries.forget(Forget::ForRoom), Ordering::Relaxed);
            return;
        }
        // Twice: the first pass takes the used marks off.
        for _ in 0..2 {
            self.sweep(dir);
        }
    }

    /// Forgets the entries of directories not used since the last sweep, down to three quarters of the limit. Looks at all nodes, but only
    /// once in a quarter of the limit's insertions.
    fn sweep(&self, except: &Node) {
        for shard in &self.shards {
            let shard = shard.lock();
            for slot in shard.slots.values() {
                if self.entries.load(Ordering::Relaxed) <= self.entries_max / 4 * 3 {
                    return;
                }
                let Slot::Ready { node, .. } = slot else { continue };
                if let Some(entries) = node.entries.as_ref().filter(|e| node.file != except.file && !e.take_used()) {
                    self.entries.fetch_sub(entries.forget(Forget::ForRoom), Ordering::Relaxed);
                }
            }
        }
    }

    /// The largest directory that is kept completely, in entries.
    pub fn directory_max(&self) -> usize {
        self.entries_max / 2
    }
}

impl Shard {
    /// The clock keeps the numbers of what was forgotten until it comes by; where much is made and removed, that is too late.
    fn prune_clock(&mut self) {
        if self.clock.len() > 2 * self.slots.len() + CLOCK_STEPS {
            let slots = &self.slots;
            self.clock.retain(|ino| slots.contains_key(ino));
        }
    }

    /// Takes out nodes that nobody uses until there is room for one more, or for now too many are in use.
    fn make_room(&mut self, max: usize) -> Vec<Arc<Node>> {
        let mut dropped = Vec::new();
        for _ in 0..CLOCK_STEPS {
            if self.slots.len() < max {
                break;
            }
            let Some(ino) = self.clock.pop_front() else { break };
            // The clock may still name what was forgotten.
            let Some(Slot::Ready { node, used }) = self.slots.get_mut(&ino) else { continue };
            // Clones are made under this shard's lock only, so that a count of one is final.
            if std::mem::take(used) || Arc::strong_count(node) > 1 || node.content.is_dirty() {
                self.clock.push_back(ino);
            } else if let Some(Slot::Ready { node, .. }) = self.slots.remove(&ino) {
                dropped.push(node);
            }
        }
        dropped
    }
}
