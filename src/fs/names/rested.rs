//! Rows of inodes that have no node in memory: listings read them, and a node that is loaded again
//! starts from them.
//!
//! A node takes five times the memory of its row, and a listing needs rows only. So the row of a
//! node that leaves the table is cached here, and so is the row that a listing read; a listing
//! makes no nodes. Where there is a node, it alone counts: its row is dropped when the node is
//! loaded.
//!
//! A row that was read from the database may be stale by the time it arrives: another task may have
//! loaded the node, changed it, and released it. So a reader announces its read first
//! ([`Rested::ask`]), any node that is loaded in between removes the mark, and only a marked row is
//! cached.

use super::table::Spread;
use crate::fs::committer::Ticket;
use crate::fs::row::Inode;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

/// Approximate memory of a cached row: the row, the batch, its place in the map and in the queue.
pub const ROW_BYTES: u64 = 320;

/// A row at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resting {
    pub row: Inode,
    /// The last batch that changed it, as the node knew (R15).
    pub last: Ticket,
}

enum Place {
    Row(Resting),
    /// The number of the task that is reading it from the database.
    Asked(u64),
}

/// The cached rows of one shard of the table, under its lock. Bounded: first in, first out.
pub struct Rested {
    places: HashMap<u64, Place, BuildHasherDefault<Spread>>,
    queue: VecDeque<u64>,
    max: usize,
}

impl Rested {
    pub fn new(max: usize) -> Self {
        Self { places: HashMap::default(), queue: VecDeque::new(), max: max.max(1) }
    }

    pub fn get(&self, ino: u64) -> Option<&Resting> {
        match self.places.get(&ino) {
            Some(Place::Row(resting)) => Some(resting),
            _ => None,
        }
    }

    /// Called when a node is loaded, or the inode removed: no row that was read or is being read
    /// counts after that.
    pub fn take(&mut self, ino: u64) -> Option<Resting> {
        match self.places.remove(&ino) {
            Some(Place::Row(resting)) => Some(resting),
            _ => None,
        }
    }

    /// A node goes.
    pub fn rest(&mut self, ino: u64, resting: Resting) {
        self.put(ino, Place::Row(resting));
    }

    /// The row is about to be read by `asker`. `false`: it is here.
    pub fn ask(&mut self, ino: u64, asker: u64) -> bool {
        if self.get(ino).is_some() {
            return false;
        }
        self.put(ino, Place::Asked(asker));
        true
    }

    /// The row was read. Kept if it cannot have changed since `asker` asked.
    pub fn answer(&mut self, ino: u64, asker: u64, resting: Resting) {
        if let Some(place) = self.places.get_mut(&ino)
            && matches!(place, Place::Asked(by) if *by == asker)
        {
            *place = Place::Row(resting);
        }
    }

    /// Most rows from now on; they leave as others come.
    pub fn bound(&mut self, max: usize) {
        self.max = max.max(1);
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    fn put(&mut self, ino: u64, place: Place) {
        if self.places.insert(ino, place).is_some() {
            return;
        }
        self.queue.push_back(ino);
        // The queue still names what was taken: such numbers fall out here, or when they are too
        // many.
        while self.places.len() > self.max {
            let Some(first) = self.queue.pop_front() else { break };
            self.places.remove(&first);
        }
        if self.queue.len() > 2 * self.max {
            let places = &self.places;
            self.queue.retain(|ino| places.contains_key(ino));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::api::FileKind;
    use crate::fs::key::DataId;
    use crate::fs::node::Node;
    use crate::types::{InodeNo, Timestamp};

    fn row(size: u64) -> Resting {
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
            cut: 0,
            masks: Vec::new(),
            exclusive: None,
            fs_group_epoch: 0,
            target: None,
        };
        Resting { row, last: Ticket(size) }
    }

    #[test]
    fn a_row_rests_until_its_node_comes() {
        let mut rested = Rested::new(4);
        rested.rest(7, row(1));
        assert_eq!(rested.get(7), Some(&row(1)));
        assert!(!rested.ask(7, 1), "it is here");
        assert_eq!(rested.take(7), Some(row(1)));
        assert_eq!(rested.get(7), None);
        assert_eq!(rested.take(7), None);
    }

    #[test]
    fn what_was_read_while_a_node_came_is_not_kept() {
        let mut rested = Rested::new(4);
        assert!(rested.ask(7, 1));
        rested.answer(7, 1, row(1));
        assert_eq!(rested.take(7), Some(row(1)));
        assert!(rested.ask(7, 2));
        assert_eq!(rested.take(7), None);
        rested.answer(7, 2, row(1));
        assert_eq!(rested.get(7), None, "the node came and may have changed it");
        rested.ask(7, 3);
        rested.rest(7, row(5));
        rested.answer(7, 3, row(1));
        assert_eq!(rested.get(7), Some(&row(5)), "what the node left is newer");
        rested.ask(8, 4);
        rested.ask(8, 5);
        rested.answer(8, 4, row(1));
        assert_eq!(rested.get(8), None);
    }

    #[test]
    fn it_is_bounded_whatever_is_asked_and_taken() {
        let mut rested = Rested::new(4);
        for n in 0..1000 {
            rested.rest(n, row(n));
            rested.ask(n + 5000, n);
            if n % 3 == 0 {
                rested.take(n);
            }
            assert!(
                rested.len() <= 4 && rested.queue.len() <= 9,
                "{} {}",
                rested.len(),
                rested.queue.len()
            );
        }
        assert!(rested.get(999).is_none() && rested.get(998).is_some());
    }

    #[test]
    fn memory_is_estimated_high_enough() {
        let places = size_of::<(u64, Place)>() * 8 / 7 + 1;
        assert!(places + 2 * size_of::<u64>() <= ROW_BYTES as usize, "{places}");
        assert!(
            size_of::<Node>() + 64 <= super::super::table::NODE_BYTES as usize,
            "{}",
            size_of::<Node>()
        );
    }
}
