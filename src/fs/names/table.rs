//! The inode table: at most one [`Node`] of an inode in this process, found by number, and the rows
//! of inodes without one ([`super::rested`]).
//!
//! Bounded: a clock per shard evicts unused nodes, and keeps their rows a while longer. A node that
//! is in use, or whose content waits to be flushed, stays: a second node of the same inode would
//! lose its changes.

use super::entries::{Entries, Forget};
use super::memory::{NamesMemory, Part};
use super::rested::{ROW_BYTES, Rested, Resting};
use crate::fs::api::{Attr, FileRef};
use crate::fs::committer::Ticket;
use crate::fs::node::{Node, attr};
use crate::fs::row::Inode;
use crate::types::InodeNo;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

const SHARDS: usize = 32;
/// Nodes that one insertion looks at to find some to drop.
const CLOCK_STEPS: usize = 8;
/// Approximate memory of a node: the row, the content's bookkeeping, the table's own.
pub const NODE_BYTES: u64 = 1024;
/// Approximate memory of a cached directory entry.
pub const ENTRY_BYTES: u64 = 128;

/// Inode numbers are counted up: they need no hashing beyond spreading over the map's upper bits.
#[derive(Default)]
pub struct Spread(u64);

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
    /// Being loaded under the claim of this number. The token is cancelled when the load has ended,
    /// well or not.
    Loading {
        claim: u64,
        ended: CancellationToken,
    },
}

struct Shard {
    slots: HashMap<u64, Slot, BuildHasherDefault<Spread>>,
    clock: VecDeque<u64>,
    rested: Rested,
}

pub struct Table {
    shards: Vec<Mutex<Shard>>,
    memory: Part,
    claims: AtomicU64,
    askers: AtomicU64,
    nodes: AtomicUsize,
    /// Directory entries known, over all directories.
    entries: AtomicUsize,
}

/// What a volume has whatever others take: enough for the paths that a program walks. It is 34 KiB
/// with the rows, less than the even part of 256 volumes of the default memory.
const NODES_MIN: usize = 16;
const SHARD_ROWS_MIN: usize = 1;
const ENTRIES_MIN: usize = 64;

/// The result of looking up an inode.
pub enum Slotted {
    Ready(Arc<Node>),
    /// The caller loads it.
    Mine(Claim),
    /// Somebody loads it; ask again when this is cancelled.
    Wait(CancellationToken),
}

/// The right to load an inode. If it is dropped before it is [filled](Self::fill), another may load
/// the inode.
///
/// The claim ends silently when the inode is created meanwhile: an old handle may name a number
/// that was lost with its node and is given out again (R7). Then the created node is the inode's,
/// and what the claim has loaded does not count.
pub struct Claim {
    table: Arc<Table>,
    ino: InodeNo,
    number: u64,
    ended: CancellationToken,
    filled: bool,
}

/// The result of loading a node.
pub enum Filled {
    Ready(Arc<Node>),
    /// The inode was made, or made and removed, since the load began: ask again.
    Overtaken,
}

impl Claim {
    /// Puts the loaded node in its place.
    pub fn fill(mut self, node: Node) -> Filled {
        let excess = self.table.excess_nodes();
        let filled = self.table.change(self.ino, |shard| {
            shard.is_claimed(self.ino, self.number).then(|| shard.insert(node, excess))
        });
        let Some((node, dropped)) = filled else { return Filled::Overtaken };
        self.filled = true;
        self.table.left(&dropped);
        Filled::Ready(node)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.filled {
            self.table.change(self.ino, |shard| {
                if shard.is_claimed(self.ino, self.number) {
                    shard.slots.remove(&self.ino.0);
                }
            });
        }
        self.ended.cancel();
    }
}

/// The part of an inode that a listing returns.
pub struct Shown {
    /// Absent: the inode no longer exists.
    pub attr: Option<Attr>,
    /// The last batch that changed it, where no node tells (R15).
    pub last: Ticket,
}

impl Table {
    /// Half of its part of the memory for directory entries, a quarter for nodes, a quarter for
    /// rows without one.
    pub fn new(memory: Arc<NamesMemory>) -> Self {
        let memory = Part::of(memory);
        let shard = || Shard {
            slots: HashMap::default(),
            clock: VecDeque::new(),
            rested: Rested::new(SHARD_ROWS_MIN),
        };
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            memory,
            claims: AtomicU64::new(0),
            askers: AtomicU64::new(0),
            nodes: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
        }
    }

    /// The number of items of `each` bytes that fit into one of `parts` parts of the memory.
    fn count(&self, parts: u64, each: u64) -> usize {
        usize::try_from(self.memory.max() / parts / each).unwrap_or(usize::MAX)
    }

    /// Nodes that an insertion drops, if it finds as many that nobody uses.
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

    /// Every change of a shard, so that the memory it takes is known.
    fn change<T>(&self, ino: InodeNo, work: impl FnOnce(&mut Shard) -> T) -> T {
        let rows_max = self.shard_rows_max();
        let mut shard = self.shard(ino).lock();
        let (before, nodes) = (shard.bytes(), shard.slots.len());
        shard.rested.bound(rows_max);
        let done = work(&mut shard);
        self.memory.change(before, shard.bytes());
        match shard.slots.len().checked_sub(nodes) {
            Some(0) => {}
            Some(more) => drop(self.nodes.fetch_add(more, Ordering::Relaxed)),
            None => drop(self.nodes.fetch_sub(nodes - shard.slots.len(), Ordering::Relaxed)),
        }
        done
    }

    /// Subtracts directory entries that are no longer cached.
    fn forget_entries(&self, count: usize) {
        self.entries.fetch_sub(count, Ordering::Relaxed);
        self.memory.change(count as u64 * ENTRY_BYTES, 0);
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

    /// The node, or the right or the wait for loading it. A row at rest becomes a node without a
    /// look at the database.
    pub fn slot(self: &Arc<Self>, ino: InodeNo) -> Slotted {
        if let Some(known) = self.shard(ino).lock().known(ino) {
            return known;
        }
        let excess = self.excess_nodes();
        let (slotted, dropped) = self.change(ino, |shard| {
            // Somebody may have been faster.
            if let Some(known) = shard.known(ino) {
                return (known, Vec::new());
            }
            if let Some(Resting { row, last }) = shard.rested.take(ino.0) {
                let (node, dropped) = shard.insert(Node::new(ino, row, last), excess);
                return (Slotted::Ready(node), dropped);
            }
            let (number, ended) =
                (self.claims.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
            shard.slots.insert(ino.0, Slot::Loading { claim: number, ended: ended.clone() });
            (
                Slotted::Mine(Claim { table: self.clone(), ino, number, ended, filled: false }),
                Vec::new(),
            )
        });
        self.left(&dropped);
        slotted
    }

    /// Returns the cached attributes of an inode without making a node of it; `None`: look at the
    /// database. Does not count as use: a long listing would otherwise evict the nodes in use.
    pub fn shown(&self, ino: InodeNo) -> Option<Shown> {
        let shard = self.shard(ino).lock();
        match shard.slots.get(&ino.0) {
            Some(Slot::Ready { node, .. }) => Some(Shown {
                attr: Some(node.attr()).filter(|attr| attr.nlink > 0),
                last: Ticket::default(),
            }),
            Some(Slot::Loading { .. }) => None,
            None => shard.rested.get(ino.0).map(|resting| Shown {
                attr: Some(row_attr(ino, &resting.row)),
                last: resting.last,
            }),
        }
    }

    /// Returns a number for a caller that is about to read rows for [`Self::rest`].
    pub fn asker(&self) -> u64 {
        self.askers.fetch_add(1, Ordering::Relaxed)
    }

    /// Before an inode's row is read by `asker`. `false`: it is in memory, or somebody loads it.
    pub fn ask(&self, ino: InodeNo, asker: u64) -> bool {
        self.change(ino, |shard| {
            !shard.slots.contains_key(&ino.0) && shard.rested.ask(ino.0, asker)
        })
    }

    /// Takes over a row that `asker` has read, if it is still what the inode is.
    pub fn rest(&self, ino: InodeNo, asker: u64, row: Inode, last: Ticket) {
        // As much as the mark that it takes the place of.
        self.shard(ino).lock().rested.answer(ino.0, asker, Resting { row, last });
    }

    /// Most rows that rest at a time.
    pub fn rows_max(&self) -> usize {
        self.shard_rows_max() * SHARDS
    }

    /// Adds a node that is new.
    pub fn insert(&self, node: Node) -> Arc<Node> {
        let excess = self.excess_nodes();
        let (node, dropped) = self.change(node.file.ino, |shard| shard.insert(node, excess));
        self.left(&dropped);
        node
    }

    /// Drops a removed inode. Its number may still be asked for; the database then shows that it
    /// does not exist.
    pub fn forget(&self, ino: InodeNo) {
        let removed = self.change(ino, |shard| {
            shard.rested.take(ino.0);
            shard.slots.remove(&ino.0)
        });
        if let Some(Slot::Ready { node, .. }) = removed
            && let Some(entries) = &node.entries
        {
            self.forget_entries(entries.forget(Forget::Gone));
        }
    }

    fn left(&self, directories: &[Entries]) {
        for entries in directories {
            self.forget_entries(entries.forget(Forget::Gone));
        }
    }

    /// Counts directory entries learnt or forgotten in `dir`, and makes room when there are too
    /// many.
    pub fn count_entries(&self, dir: &Node, grown: isize) {
        if grown <= 0 {
            return self.forget_entries(grown.unsigned_abs());
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
        // A directory that is most of it does not throw out the others.
        if let Some(entries) = dir.entries.as_ref().filter(|e| e.len() > max / 2) {
            return self.forget_entries(entries.forget(Forget::ForRoom));
        }
        // Twice: the first pass takes the used marks off.
        for _ in 0..2 {
            self.sweep(dir, max / 4 * 3);
        }
    }

    /// Forgets the entries of directories not used since the last sweep, down to three quarters of
    /// the limit. Looks at all nodes, but only once in a quarter of the limit's insertions.
    fn sweep(&self, except: &Node, wanted: usize) {
        for shard in &self.shards {
            let shard = shard.lock();
            for slot in shard.slots.values() {
                if self.entries.load(Ordering::Relaxed) <= wanted {
                    return;
                }
                let Slot::Ready { node, .. } = slot else { continue };
                if let Some(entries) =
                    node.entries.as_ref().filter(|e| node.file != except.file && !e.take_used())
                {
                    self.forget_entries(entries.forget(Forget::ForRoom));
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
        self.shards.iter().map(|s| s.lock().slots.len()).sum()
    }

    /// Rows at rest.
    #[cfg(test)]
    pub fn rows(&self) -> usize {
        self.shards.iter().map(|s| s.lock().rested.len()).sum()
    }
}

fn row_attr(ino: InodeNo, row: &Inode) -> Attr {
    attr(FileRef { ino, generation: row.generation }, row)
}

impl Shard {
    /// Approximate memory of the shard.
    fn bytes(&self) -> u64 {
        self.slots.len() as u64 * NODE_BYTES + self.rested.len() as u64 * ROW_BYTES
    }

    /// The node, or the wait for it; `None`: it is not in memory.
    fn known(&mut self, ino: InodeNo) -> Option<Slotted> {
        match self.slots.get_mut(&ino.0)? {
            Slot::Ready { node, used } => {
                *used = true;
                Some(Slotted::Ready(node.clone()))
            }
            Slot::Loading { ended, .. } => Some(Slotted::Wait(ended.clone())),
        }
    }

    fn is_claimed(&self, ino: InodeNo, number: u64) -> bool {
        matches!(self.slots.get(&ino.0), Some(Slot::Loading { claim, .. }) if *claim == number)
    }

    /// Answers the node, and what the nodes knew of directories that had to leave for it.
    fn insert(&mut self, node: Node, excess: usize) -> (Arc<Node>, Vec<Entries>) {
        let (ino, node) = (node.file.ino.0, Arc::new(node));
        let dropped = self.make_room(excess);
        self.rested.take(ino);
        self.slots.insert(ino, Slot::Ready { node: node.clone(), used: false });
        self.clock.push_back(ino);
        self.prune_clock();
        (node, dropped)
    }

    /// The clock keeps the numbers of what was forgotten until it comes by; where much is made and
    /// removed, that is too late.
    fn prune_clock(&mut self) {
        if self.clock.len() > 2 * self.slots.len() + CLOCK_STEPS {
            let slots = &self.slots;
            self.clock.retain(|ino| slots.contains_key(ino));
        }
    }

    /// Takes out nodes that nobody uses until there is room for one more, or for now too many are
    /// in use. Their rows stay.
    fn make_room(&mut self, mut excess: usize) -> Vec<Entries> {
        let mut directories = Vec::new();
        for _ in 0..CLOCK_STEPS.min(self.clock.len()) {
            if excess == 0 {
                break;
            }
            let Some(ino) = self.clock.pop_front() else { break };
            // The clock may still name what was forgotten.
            let Some(Slot::Ready { node, used }) = self.slots.get_mut(&ino) else { continue };
            // Clones are made under this shard's lock only, so that a count of one is final.
            if std::mem::take(used) || Arc::strong_count(node) > 1 || node.content.is_dirty() {
                self.clock.push_back(ino);
            } else if let Some(Slot::Ready { node, .. }) = self.slots.remove(&ino)
                && let Some(node) = Arc::into_inner(node)
            {
                excess -= 1;
                let (row, last, entries) = node.into_parts();
                self.rested.rest(ino, Resting { row, last });
                directories.extend(entries.map(|entries| *entries));
            }
        }
        directories
    }
}
