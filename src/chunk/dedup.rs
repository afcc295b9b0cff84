//! The deduplication index of the process: a bounded map of chunks that are stored already. A miss
//! only costs space.

use super::{ChunkRef, Codec};
use crate::types::{ChunkHash, PackId};
use std::collections::HashMap;

/// Memory per chunk: 36 bytes and a control byte, in a table that is on average two thirds full. 8
/// MiB index 150,000 chunks, or 9 GiB of 64 KiB each; all chunks of a TiB would take 900 MiB.
const CHUNK_BYTES: usize = 56;
/// Memory per pack with an indexed chunk: twice 40 bytes, in a vector and a table.
const PACK_BYTES: usize = 140;

/// The packer that a chunk belongs to. Chunks that another dataset has stored are of no use (R10).
pub(super) type WriterId = u64;

/// Half a hash, mixed with the writer's id. Two chunks of one dataset do not agree in 128 bits by
/// chance; a user who constructs two that do (2^64 work) damages only a file of their own, and its
/// reader gets an error, because a read verifies the whole hash.
type Key = [u8; 16];

/// A [`ChunkRef`] without its hash, which the caller has.
struct ChunkLocation {
    /// Index in the generation's packs.
    pack: u32,
    offset: u32,
    stored_len: u32,
    raw_len: u32,
    codec: Codec,
}

#[derive(Default)]
struct ChunkTable {
    locations: HashMap<Key, ChunkLocation>,
    packs: Vec<(WriterId, PackId)>,
    indexes: HashMap<(WriterId, PackId), u32>,
}

impl ChunkTable {
    fn bytes(&self) -> usize {
        self.locations.len() * CHUNK_BYTES + self.packs.len() * PACK_BYTES
    }

    fn get(&self, writer: WriterId, hash: &ChunkHash) -> Option<ChunkRef> {
        let location = self.locations.get(&key(writer, hash))?;
        let (owner, pack) = *self.packs.get(location.pack as usize)?;
        let ChunkLocation { offset, stored_len, raw_len, codec, .. } = *location;
        (owner == writer).then_some(ChunkRef {
            hash: *hash,
            pack,
            offset,
            stored_len,
            raw_len,
            codec,
        })
    }

    fn insert(&mut self, writer: WriterId, chunk: ChunkRef) {
        let ChunkRef { hash, pack, offset, stored_len, raw_len, codec } = chunk;
        let pack = *self.indexes.entry((writer, pack)).or_insert_with(|| {
            self.packs.push((writer, pack));
            // Bounded by the memory for all.
            self.packs.len() as u32 - 1
        });
        self.locations
            .insert(key(writer, &hash), ChunkLocation { pack, offset, stored_len, raw_len, codec });
    }
}

fn key(writer: WriterId, hash: &ChunkHash) -> Key {
    let mut key = [0; 16];
    key.copy_from_slice(&hash.0[..16]);
    let mixed = writer.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    key.iter_mut().zip(mixed).for_each(|(byte, mix)| *byte ^= mix);
    key
}

/// The most recently used chunks, in two generations, so that lookup and eviction are O(1) without
/// links between entries. Takes between half and all of its memory. Entries of packers that are
/// gone age out.
pub(super) struct DedupIndex {
    young: ChunkTable,
    old: ChunkTable,
    bytes_max: usize,
}

impl DedupIndex {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            young: ChunkTable::default(),
            old: ChunkTable::default(),
            bytes_max: usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }

    /// The number of chunks that can be inserted together without evicting one of them.
    pub(super) fn chunks_at_once(&self) -> usize {
        self.bytes_max / 2 / CHUNK_BYTES
    }

    pub(super) fn get(&mut self, writer: WriterId, hash: &ChunkHash) -> Option<ChunkRef> {
        if let Some(chunk) = self.young.get(writer, hash) {
            return Some(chunk);
        }
        let chunk = self.old.get(writer, hash)?;
        self.old.locations.remove(&key(writer, hash));
        self.insert(writer, chunk);
        Some(chunk)
    }

    pub(super) fn insert(&mut self, writer: WriterId, chunk: ChunkRef) {
        if self.young.bytes() >= self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(writer, chunk);
    }

    /// Evicts exactly this reference; one into another pack that has replaced it stays.
    pub(super) fn evict(&mut self, writer: WriterId, chunk: &ChunkRef) {
        for generation in [&mut self.young, &mut self.old] {
            if generation.get(writer, &chunk.hash) == Some(*chunk) {
                generation.locations.remove(&key(writer, &chunk.hash));
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
        let mut index = DedupIndex::new(max as u64);
        for n in 0..10_000 {
            index.insert(1, chunk(n));
            assert_eq!(index.get(1, &chunk(0).hash), Some(chunk(0)), "used at every step");
            assert!(
                index.young.bytes() + index.old.bytes() <= max + 2 * (CHUNK_BYTES + PACK_BYTES)
            );
        }
        assert_eq!(index.get(1, &chunk(9_999).hash), Some(chunk(9_999)));
        assert_eq!(index.get(1, &chunk(5_000).hash), None);
    }

    #[test]
    fn a_chunk_a_pack_stays_bounded_as_well() {
        let max = 100 * CHUNK_BYTES;
        let mut index = DedupIndex::new(max as u64);
        for n in 0..10_000 {
            index.insert(1, in_pack(n, u64::from(n)));
            assert_eq!(index.get(1, &chunk(n).hash), Some(in_pack(n, u64::from(n))));
            assert!(
                index.young.bytes() + index.old.bytes() <= max + 2 * (CHUNK_BYTES + PACK_BYTES)
            );
        }
        assert_eq!(index.young.indexes.len(), index.young.packs.len());
    }

    #[test]
    fn a_table_takes_no_more_than_is_counted() {
        // The standard library's table has a slot and a control byte per entry, and at least 7/16
        // of them in use unless it is small.
        assert!(size_of::<(Key, ChunkLocation)>() < CHUNK_BYTES * 2 / 3);
        assert!(
            size_of::<(WriterId, PackId)>() + size_of::<((WriterId, PackId), u32)>()
                <= PACK_BYTES * 2 / 3
        );
    }

    #[test]
    fn what_is_known_comes_back_whole_and_to_its_packer_alone() {
        let mut index = DedupIndex::new(100 * CHUNK_BYTES as u64);
        let full = ChunkRef {
            hash: ChunkHash([7; 32]),
            stored_len: 77,
            raw_len: 1 << 20,
            codec: Codec::Lz4,
            ..in_pack(9, 3)
        };
        index.insert(1, full);
        index.insert(2, in_pack(9, 4));
        assert_eq!(index.get(1, &full.hash), Some(full));
        assert_eq!(index.get(2, &full.hash), None);
        assert_eq!(index.get(1, &in_pack(9, 4).hash), None);
    }

    #[test]
    fn only_the_very_reference_is_forgotten() {
        let mut index = DedupIndex::new(10 * CHUNK_BYTES as u64 + 10 * PACK_BYTES as u64);
        let newer = in_pack(1, 2);
        index.insert(1, newer);
        index.evict(1, &chunk(1));
        assert_eq!(index.get(1, &newer.hash), Some(newer));
        index.evict(2, &newer);
        assert_eq!(index.get(1, &newer.hash), Some(newer), "another writer's");
        index.evict(1, &newer);
        assert_eq!(index.get(1, &newer.hash), None);
    }
}
