//! The row cache: rows of inodes that have no node in memory. Listings answer from it, and a node
//! that is loaded again starts from it.
//!
//! A node takes five times the memory of its row, and a listing needs rows only. So the row of a
//! node that is evicted from the table enters the cache, and so does the row that a listing read; a
//! listing makes no nodes. Where there is a node, it alone counts: its row leaves the cache when
//! the node is loaded.
//!
//! The fill protocol. A row that was read from the database may be stale when it arrives: the node
//! may have been loaded, changed and evicted in between. So a reader marks the inode before it
//! reads ([`RowCache::begin_fill`]), a node that is loaded removes the mark, and a row enters the
//! cache only under the mark of its own read ([`RowCache::fill`]).

use super::spread::Spread;
use crate::fs::committer::Ticket;
use crate::fs::row::Inode;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

/// Approximate memory of a cached row: the row, the batch, its entry in the map and in the queue.
pub const ROW_BYTES: u64 = 320;

/// Numbers the reads of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedRow {
    pub row: Inode,
    /// The last batch that changed it, from the node (R15).
    pub last: Ticket,
}

enum RowEntry {
    Row(CachedRow),
    /// The read in progress that may fill it.
    Filling(FillId),
}

/// The cached rows of one shard of the table, under its lock. Bounded: first in, first out.
pub struct RowCache {
    rows: HashMap<u64, RowEntry, BuildHasherDefault<Spread>>,
    queue: VecDeque<u64>,
    max: usize,
}

impl RowCache {
    pub fn new(max: usize) -> Self {
        Self { rows: HashMap::default(), queue: VecDeque::new(), max: max.max(1) }
    }

    pub fn get(&self, ino: u64) -> Option<&CachedRow> {
        match self.rows.get(&ino) {
            Some(RowEntry::Row(cached)) => Some(cached),
            _ => None,
        }
    }

    /// Called when a node is loaded, or the inode removed: a row that was read, or is being read,
    /// is void.
    pub fn take(&mut self, ino: u64) -> Option<CachedRow> {
        match self.rows.remove(&ino) {
            Some(RowEntry::Row(cached)) => Some(cached),
            _ => None,
        }
    }

    /// Caches the row of a node that is evicted.
    pub fn insert(&mut self, ino: u64, cached: CachedRow) {
        self.put(ino, RowEntry::Row(cached));
    }

    /// Announces that the row is about to be read. `false`: it is cached.
    pub fn begin_fill(&mut self, ino: u64, fill: FillId) -> bool {
        if self.get(ino).is_some() {
            return false;
        }
        self.put(ino, RowEntry::Filling(fill));
        true
    }

    /// Caches a row that was read, if it cannot have changed since that read began.
    pub fn fill(&mut self, ino: u64, fill: FillId, cached: CachedRow) {
        if let Some(entry) = self.rows.get_mut(&ino)
            && matches!(entry, RowEntry::Filling(by) if *by == fill)
        {
            *entry = RowEntry::Row(cached);
        }
    }

    /// Sets the limit of rows; rows beyond it are evicted as others are added.
    pub fn set_max(&mut self, max: usize) {
        self.max = max.max(1);
    }

    /// Drops every row, and those that are being read.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.queue.clear();
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    fn put(&mut self, ino: u64, entry: RowEntry) {
        if self.rows.insert(ino, entry).is_some() {
            return;
        }
        self.queue.push_back(ino);
        // The queue still names rows that were taken: such numbers are dropped here, or when they
        // are too many.
        while self.rows.len() > self.max {
            let Some(first) = self.queue.pop_front() else { break };
            self.rows.remove(&first);
        }
        if self.queue.len() > 2 * self.max {
            let rows = &self.rows;
            self.queue.retain(|ino| rows.contains_key(ino));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::api::FileKind;
    use crate::fs::inode::Node;
    use crate::fs::key::DataId;
    use crate::types::{InodeNo, Timestamp};

    fn row(size: u64) -> CachedRow {
        let now = Timestamp::default();
        let row = Inode {
            kind: FileKind::Regular,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            size,
            allocated: 0,
            rdev: (0, 0),
            atime: now,
            mtime: now,
            ctime: now,
            generation: 1,
            parent: InodeNo(1),
            data: DataId(1),
            record_bits: 12,
            truncations: 0,
            masks: Vec::new(),
            exclusive: None,
            fs_group_epoch: 0,
            target: None,
        };
        CachedRow { row, last: Ticket(size) }
    }

    #[test]
    fn a_row_is_cached_until_its_node_is_loaded() {
        let mut cache = RowCache::new(4);
        cache.insert(7, row(1));
        assert_eq!(cache.get(7), Some(&row(1)));
        assert!(!cache.begin_fill(7, FillId(1)), "it is here");
        assert_eq!(cache.take(7), Some(row(1)));
        assert_eq!(cache.get(7), None);
        assert_eq!(cache.take(7), None);
    }

    #[test]
    fn what_was_read_while_a_node_came_is_not_kept() {
        let mut cache = RowCache::new(4);
        assert!(cache.begin_fill(7, FillId(1)));
        cache.fill(7, FillId(1), row(1));
        assert_eq!(cache.take(7), Some(row(1)));
        assert!(cache.begin_fill(7, FillId(2)));
        assert_eq!(cache.take(7), None);
        cache.fill(7, FillId(2), row(1));
        assert_eq!(cache.get(7), None, "the node came and may have changed it");
        cache.begin_fill(7, FillId(3));
        cache.insert(7, row(5));
        cache.fill(7, FillId(3), row(1));
        assert_eq!(cache.get(7), Some(&row(5)), "what the node left is newer");
        cache.begin_fill(8, FillId(4));
        cache.begin_fill(8, FillId(5));
        cache.fill(8, FillId(4), row(1));
        assert_eq!(cache.get(8), None);
    }

    #[test]
    fn it_is_bounded_whatever_is_asked_and_taken() {
        let mut cache = RowCache::new(4);
        for n in 0..1000 {
            cache.insert(n, row(n));
            cache.begin_fill(n + 5000, FillId(n));
            if n % 3 == 0 {
                cache.take(n);
            }
            assert!(
                cache.len() <= 4 && cache.queue.len() <= 9,
                "{} {}",
                cache.len(),
                cache.queue.len()
            );
        }
        assert!(cache.get(999).is_none() && cache.get(998).is_some());
    }

    #[test]
    fn memory_is_estimated_high_enough() {
        let entry = size_of::<(u64, RowEntry)>() * 8 / 7 + 1;
        assert!(entry + 2 * size_of::<u64>() <= ROW_BYTES as usize, "{entry}");
        assert!(
            size_of::<Node>() + 64 <= super::super::table::NODE_BYTES as usize,
            "{}",
            size_of::<Node>()
        );
    }
}
