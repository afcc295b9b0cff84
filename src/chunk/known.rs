//! Which chunks are known to be stored already: a bounded map for deduplication, one for the process. A miss only costs space.

use super::ChunkRef;
use crate::types::ChunkHash;
use std::collections::HashMap;

/// What one entry takes: key and reference are 120 bytes, in tables that are on average two thirds full.
const ENTRY_BYTES: u64 = 180;

/// Whose chunk it is: a packer's number. What another dataset has stored is of no use (R10).
pub(super) type Packer = u64;

/// The most recently used chunks: two generations, so that using and forgetting are O(1) without links between entries. Holds between `max / 2`
/// and `max` of them. Those of packers that are gone grow old.
pub(super) struct Known {
    young: HashMap<(Packer, ChunkHash), ChunkRef>,
    old: HashMap<(Packer, ChunkHash), ChunkRef>,
    max: usize,
}

impl Known {
    pub(super) fn new(bytes: u64) -> Self {
        let max = usize::try_from(bytes / ENTRY_BYTES).unwrap_or(usize::MAX);
        Self { young: HashMap::new(), old: HashMap::new(), max }
    }

    pub(super) fn get(&mut self, packer: Packer, hash: &ChunkHash) -> Option<ChunkRef> {
        if let Some(chunk) = self.young.get(&(packer, *hash)) {
            return Some(*chunk);
        }
        let chunk = self.old.remove(&(packer, *hash))?;
        self.insert(packer, chunk);
        Some(chunk)
    }

    pub(super) fn insert(&mut self, packer: Packer, chunk: ChunkRef) {
        if self.young.len() >= self.max.div_ceil(2) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert((packer, chunk.hash), chunk);
    }

    /// Forgets this very reference; one into another pack that has replaced it stays.
    pub(super) fn forget(&mut self, packer: Packer, chunk: &ChunkRef) {
        for generation in [&mut self.young, &mut self.old] {
            if generation.get(&(packer, chunk.hash)) == Some(chunk) {
                generation.remove(&(packer, chunk.hash));
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
        let mut known = Known::new(100 * ENTRY_BYTES);
        for n in 0..10_000 {
            known.insert(1, chunk(n));
            assert_eq!(known.get(1, &chunk(0).hash), Some(chunk(0)), "used at every step");
            assert!(known.young.len() + known.old.len() <= 102);
        }
        assert_eq!(known.get(1, &chunk(9_999).hash), Some(chunk(9_999)));
        assert_eq!(known.get(1, &chunk(5_000).hash), None);
    }

    #[test]
    fn only_the_very_reference_is_forgotten() {
        let mut known = Known::new(10 * ENTRY_BYTES);
        let mut newer = chunk(1);
        newer.pack.seq = 2;
        known.insert(1, newer);
        known.forget(1, &chunk(1));
        assert_eq!(known.get(1, &newer.hash), Some(newer));
        known.forget(2, &newer);
        assert_eq!(known.get(1, &newer.hash), Some(newer), "another packer's");
        known.forget(1, &newer);
        assert_eq!(known.get(1, &newer.hash), None);
    }
}
