//! The blocks of packs in which small chunks were missed, and those that are being fetched.

use crate::types::PackId;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A block: an aligned part of a pack.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;
/// Misses that are remembered.
const MISSES_MAX: usize = 256;

/// A pack, and the number of the block in it.
pub(super) type Block = (PackId, u64);

#[derive(Default)]
pub(super) struct Blocks {
    missed: VecDeque<Block>,
    /// Held by the task that fetches the block.
    fetching: HashMap<Block, Arc<tokio::sync::Mutex<()>>>,
}

impl Blocks {
    /// Notes a miss; returns whether the block was missed before.
    pub(super) fn miss(&mut self, block: Block) -> bool {
        if self.missed.contains(&block) {
            return true;
        }
        if self.missed.len() >= MISSES_MAX {
            self.missed.pop_front();
        }
        self.missed.push_back(block);
        false
    }

    pub(super) fn turn(&mut self, block: Block) -> Arc<tokio::sync::Mutex<()>> {
        self.fetching.entry(block).or_default().clone()
    }

    /// Drops a turn that nobody waits for.
    pub(super) fn done(&mut self, block: Block, turn: Arc<tokio::sync::Mutex<()>>) {
        drop(turn);
        if self.fetching.get(&block).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            self.fetching.remove(&block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Incarnation};

    #[test]
    fn a_second_miss_counts_and_what_is_remembered_is_bounded() {
        let pack = PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq: 0 };
        let mut blocks = Blocks::default();
        assert!(!blocks.miss((pack, 0)));
        assert!(blocks.miss((pack, 0)));
        for number in 1..=MISSES_MAX as u64 {
            assert!(!blocks.miss((pack, number)));
        }
        assert!(!blocks.miss((pack, 0)), "it is long ago");
        assert_eq!(blocks.missed.len(), MISSES_MAX);
        let (first, second) = (blocks.turn((pack, 1)), blocks.turn((pack, 1)));
        blocks.done((pack, 1), first);
        assert_eq!(blocks.fetching.len(), 1);
        blocks.done((pack, 1), second);
        assert!(blocks.fetching.is_empty());
    }
}
