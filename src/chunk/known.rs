//! Which chunks are known to be stored already: a bounded map for deduplication, one for the
//! process. A miss only costs space.

use super::{ChunkRef, Codec};
use crate::types::{ChunkHash, PackId};
use std::collections::HashMap;

/// What a chunk takes: 36 bytes and a control byte, in a table that is on average two thirds full.
/// So 8 MiB know 150,000 chunks, which are 9 GiB of 64 KiB each; all chunks of a TiB would take 900
/// MiB.
const CHUNK_BYTES: usize = 56;
/// What a pack takes of which a chunk is known: twice 40 bytes, in a vector and a table.
const PACK_BYTES: usize = 140;

/// Whose chunk it is: a packer's number. What another dataset has stored is of no use (R10).
pub(super) type Packer = u64;

/// Half a hash, mixed with the packer. Two chunks of one dataset that agree in 128 bits do not come
/// about by chance; who would make them (2^64 work) spoils a file of their own, and its reader is
/// told, because a read verifies the whole hash.
type Key = [u8; 16];

/// A chunk, but for its hash, which who asks has.
struct Place {
    /// Index in the generation's packs.
    pack: u32,
    offset: u32,
    stored_len: u32,
    raw_len: u32,
    codec: Codec,
}

#[derive(Default)]
struct Generation {
    places: HashMap<Key, Place>,
    packs: Vec<(Packer, PackId)>,
    indexes: HashMap<(Packer, PackId), u32>,
}

impl Generation {
    fn bytes(&self) -> usize {
        self.places.len() * CHUNK_BYTES + self.packs.len() * PACK_BYTES
    }

    fn get(&self, packer: Packer, hash: &ChunkHash) -> Option<ChunkRef> {
        let place = self.places.get(&key(packer, hash))?;
        let (owner, pack) = *self.packs.get(place.pack as usize)?;
        let Place { offset, stored_len, raw_len, codec, .. } = *place;
        (owner == packer).then_some(ChunkRef {
            hash: *hash,
            pack,
            offset,
            stored_len,
            raw_len,
            codec,
        })
    }

    fn insert(&mut self, packer: Packer, chunk: ChunkRef) {
        let ChunkRef { hash, pack, offset, stored_len, raw_len, codec } = chunk;
        let pack = *self.indexes.entry((packer, pack)).or_insert_with(|| {
            self.packs.push((packer, pack));
            // Bounded by the memory for all.
            self.packs.len() as u32 - 1
        });
        self.places.insert(key(packer, &hash), Place { pack, offset, stored_len, raw_len, codec });
    }
}

fn key(packer: Packer, hash: &ChunkHash) -> Key {
    let mut key = [0; 16];
    key.copy_from_slice(&hash.0[..16]);
    let mixed = packer.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    key.iter_mut().zip(mixed).for_each(|(byte, mix)| *byte ^= mix);
    key
}

/// The most recently used chunks: two generations, so that using and forgetting are O(1) without
/// links between entries. Takes between half and all of its memory. What packers know that are gone
/// grows old.
pub(super) struct Known {
    young: Generation,
    old: Generation,
    bytes_max: usize,
}

impl Known {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            young: Generation::default(),
            old: Generation::default(),
            bytes_max: usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }

    /// How many chunks may be told without forgetting one that was told with them.
    pub(super) fn chunks_at_once(&self) -> usize {
        self.bytes_max / 2 / CHUNK_BYTES
    }

    pub(super) fn get(&mut self, packer: Packer, hash: &ChunkHash) -> Option<ChunkRef> {
        if let Some(chunk) = self.young.get(packer, hash) {
            return Some(chunk);
        }
        let chunk = self.old.get(packer, hash)?;
        self.old.places.remove(&key(packer, hash));
        self.insert(packer, chunk);
        Some(chunk)
    }

    pub(super) fn insert(&mut self, packer: Packer, chunk: ChunkRef) {
        if self.young.bytes() >= self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(packer, chunk);
    }

    /// Forgets this very reference; one into another pack that has replaced it stays.
    pub(super) fn forget(&mut self, packer: Packer, chunk: &ChunkRef) {
        for generation in [&mut self.young, &mut self.old] {
            if generation.get(packer, &chunk.hash) == Some(*chunk) {
                generation.places.remove(&key(packer, &chunk.hash));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Incarnation};

    fn in_pack(n: u32, seq: u64) -> ChunkRef {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&n.to_le_bytes());
        let pack = PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq };
        ChunkRef {
            hash: ChunkHash(hash),
            pack,
            offset: n,
            stored_len: 1,
            raw_len: 1,
            codec: Codec::None,
        }
    }

    fn chunk(n: u32) -> ChunkRef {
        in_pack(n, 1)
    }

    #[test]
    fn it_stays_bounded_and_keeps_what_is_used() {
        let max = 100 * CHUNK_BYTES;
        let mut known = Known::new(max as u64);
        for n in 0..10_000 {
            known.insert(1, chunk(n));
            assert_eq!(known.get(1, &chunk(0).hash), Some(chunk(0)), "used at every step");
            assert!(
                known.young.bytes() + known.old.bytes() <= max + 2 * (CHUNK_BYTES + PACK_BYTES)
            );
        }
        assert_eq!(known.get(1, &chunk(9_999).hash), Some(chunk(9_999)));
        assert_eq!(known.get(1, &chunk(5_000).hash), None);
    }

    #[test]
    fn a_chunk_a_pack_stays_bounded_as_well() {
        let max = 100 * CHUNK_BYTES;
        let mut known = Known::new(max as u64);
        for n in 0..10_000 {
            known.insert(1, in_pack(n, u64::from(n)));
            assert_eq!(known.get(1, &chunk(n).hash), Some(in_pack(n, u64::from(n))));
            assert!(
                known.young.bytes() + known.old.bytes() <= max + 2 * (CHUNK_BYTES + PACK_BYTES)
            );
        }
        assert_eq!(known.young.indexes.len(), known.young.packs.len());
    }

    #[test]
    fn a_table_takes_no_more_than_is_counted() {
        // What the standard library's table takes: a slot and a control byte each, at least 7/16 of
        // them in use but for small ones.
        assert!(size_of::<(Key, Place)>() < CHUNK_BYTES * 2 / 3);
        assert!(
            size_of::<(Packer, PackId)>() + size_of::<((Packer, PackId), u32)>()
                <= PACK_BYTES * 2 / 3
        );
    }

    #[test]
    fn what_is_known_comes_back_whole_and_to_its_packer_alone() {
        let mut known = Known::new(100 * CHUNK_BYTES as u64);
        let full = ChunkRef {
            hash: ChunkHash([7; 32]),
            stored_len: 77,
            raw_len: 1 << 20,
            codec: Codec::Lz4,
            ..in_pack(9, 3)
        };
        known.insert(1, full);
        known.insert(2, in_pack(9, 4));
        assert_eq!(known.get(1, &full.hash), Some(full));
        assert_eq!(known.get(2, &full.hash), None);
        assert_eq!(known.get(1, &in_pack(9, 4).hash), None);
    }

    #[test]
    fn only_the_very_reference_is_forgotten() {
        let mut known = Known::new(10 * CHUNK_BYTES as u64 + 10 * PACK_BYTES as u64);
        let newer = in_pack(1, 2);
        known.insert(1, newer);
        known.forget(1, &chunk(1));
        assert_eq!(known.get(1, &newer.hash), Some(newer));
        known.forget(2, &newer);
        assert_eq!(known.get(1, &newer.hash), Some(newer), "another packer's");
        known.forget(1, &newer);
        assert_eq!(known.get(1, &newer.hash), None);
    }
}
