//! Which chunks are known to be stored already: a bounded map for deduplication. A miss only costs space.

use super::ChunkRef;
use crate::types::ChunkHash;
use std::collections::HashMap;

/// The most recently used chunks: two generations, so that using and forgetting are O(1) without links between entries. Holds between `max / 2`
/// and `max` of them, about 100 bytes each.
pub(super) struct Known {
    young: HashMap<ChunkHash, ChunkRef>,
    old: HashMap<ChunkHash, ChunkRef>,
    max: usize,
}

impl Known {
    pub(super) fn new(max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), max }
    }

    pub(super) fn get(&mut self, hash: &ChunkHash) -> Option<ChunkRef> {
        if let Some(chunk) = self.young.get(hash) {
            return Some(*chunk);
        }
        let chunk = self.old.remove(hash)?;
        self.insert(chunk);
        Some(chunk)
    }

    pub(super) fn insert(&mut self, chunk: ChunkRef) {
        if self.young.len() >= self.max.div_ceil(2) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(chunk.hash, chunk);
    }

    /// Forgets this very reference; one into another pack that has replaced it stays.
    pub(super) fn forget(&mut self, chunk: &ChunkRef) {
        for generation in [&mut self.young, &mut self.old] {
            if generation.get(&chunk.hash) == Some(chunk) {
                generation.remove(&chunk.hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Codec;
    use crate::types::{Epoch, Incarnation, PackId};

    fn chunk(n: u32) -> ChunkRef {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&n.to_le_bytes());
        let pack = PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq: 1 };
        ChunkRef { hash: ChunkHash(hash), pack, offset: n, stored_len: 1, raw_len: 1, codec: Codec::None }
    }

    #[test]
    fn it_stays_bounded_and_keeps_what_is_used() {
        let mut known = Known::new(100);
        for n in 0..10_000 {
            known.insert(chunk(n));
            assert_eq!(known.get(&chunk(0).hash), Some(chunk(0)), "used at every step");
            assert!(known.young.len() + known.old.len() <= 102);
        }
        assert_eq!(known.get(&chunk(9_999).hash), Some(chunk(9_999)));
        assert_eq!(known.get(&chunk(5_000).hash), None);
    }

    #[test]
    fn only_the_very_reference_is_forgotten() {
        let mut known = Known::new(10);
        let mut newer = chunk(1);
        newer.pack.seq = 2;
        known.insert(newer);
        known.forget(&chunk(1));
        assert_eq!(known.get(&newer.hash), Some(newer));
        known.forget(&newer);
        assert_eq!(known.get(&newer.hash), None);
    }
}
