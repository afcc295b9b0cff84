//! Locations of chunks whose packs were rewritten (R12). References continue to name the first
//! object of a pack; a reader that misses it finds the chunk by its hash, through the footer of the
//! newest generation.
//!
//! ```text
//! packs/<family>/<creator>/<epoch>-<seq>                          as the packer wrote it
//! packs/<family>/<creator>/rewritten/<epoch>-<seq>/<generation>   the chunks still in use
//! ```

use super::ChunkRef;
use super::pack::PackEntry;
use crate::types::{ChunkHash, FamilyId, PackId};
use std::collections::HashMap;
use std::sync::Arc;

/// Counts the times that a pack was rewritten; 0: as the packer wrote it.
pub type Generation = u32;

/// Chunks whose locations are cached: about 100 bytes each.
const CHUNKS_MAX: usize = 32 << 10;

pub fn key(family: FamilyId, pack: PackId, generation: Generation) -> String {
    match generation {
        0 => format!("packs/{family}/{pack}"),
        later => format!("{}{later:08x}", folder(family, pack)),
    }
}

/// Holds all generations of a pack but the first.
pub(super) fn folder(family: FamilyId, pack: PackId) -> String {
    format!("packs/{family}/{}/rewritten/{:016x}-{:016x}/", pack.creator, pack.epoch.0, pack.seq)
}

/// Parses the key of a pack's object after its family; `None` if it names no pack.
pub fn parse(name: &str) -> Option<(PackId, Generation)> {
    let Some((creator, rest)) = name.split_once("/rewritten/") else {
        return Some((name.parse().ok()?, 0));
    };
    let (numbers, generation) = rest.split_once('/')?;
    let pack = format!("{creator}/{numbers}").parse().ok()?;
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    let generation = (generation.len() == 8 && generation.bytes().all(hex))
        .then(|| Generation::from_str_radix(generation, 16))?;
    generation.ok().filter(|generation| *generation > 0).map(|generation| (pack, generation))
}

/// The newest generation of a pack.
pub(super) struct PackLocation {
    pub(super) generation: Generation,
    chunks: HashMap<ChunkHash, PackEntry>,
}

impl PackLocation {
    pub(super) fn new(generation: Generation, chunks: &[ChunkRef]) -> Self {
        let entry = |c: &ChunkRef| {
            (
                c.hash,
                PackEntry {
                    hash: c.hash,
                    offset: c.offset,
                    stored_len: c.stored_len,
                    raw_len: c.raw_len,
                    codec: c.codec,
                },
            )
        };
        Self { generation, chunks: chunks.iter().map(entry).collect() }
    }

    /// The same chunk at its location in this generation.
    pub(super) fn of(&self, chunk: &ChunkRef) -> Option<ChunkRef> {
        let entry = self.chunks.get(&chunk.hash)?;
        Some(ChunkRef {
            offset: entry.offset,
            stored_len: entry.stored_len,
            raw_len: entry.raw_len,
            codec: entry.codec,
            ..*chunk
        })
    }
}

/// The locations used last, in two generations of a map, so that lookup and eviction are O(1).
#[derive(Default)]
pub(super) struct LocationCache {
    young: HashMap<PackId, Arc<PackLocation>>,
    old: HashMap<PackId, Arc<PackLocation>>,
    young_chunks: usize,
}

impl LocationCache {
    pub(super) fn get(&mut self, pack: PackId) -> Option<Arc<PackLocation>> {
        if let Some(location) = self.young.get(&pack) {
            return Some(location.clone());
        }
        let location = self.old.remove(&pack)?;
        self.insert(pack, location.clone());
        Some(location)
    }

    pub(super) fn insert(&mut self, pack: PackId, location: Arc<PackLocation>) {
        if self.young_chunks + location.chunks.len() > CHUNKS_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_chunks = 0;
        }
        self.young_chunks += location.chunks.len();
        self.young.insert(pack, location);
    }

    pub(super) fn evict(&mut self, pack: PackId) {
        self.young.remove(&pack);
        self.old.remove(&pack);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Incarnation};

    #[test]
    fn names_parse_back_and_nothing_else_does() {
        let (family, pack) = (
            FamilyId::from_bytes([1; 16]),
            PackId { creator: Incarnation::from_bytes([2; 16]), epoch: Epoch(3), seq: 4 },
        );
        for generation in [0, 1, 0xabc, Generation::MAX] {
            let key = key(family, pack, generation);
            let name = key.strip_prefix(&format!("packs/{family}/")).unwrap();
            assert_eq!(parse(name), Some((pack, generation)), "{name}");
        }
        let creator = pack.creator;
        let bad = [
            "rewritten/0000000000000003-0000000000000004/00000000",
            "rewritten/0000000000000003-0000000000000004/1",
            "rewritten/3-4/00000001",
            "x",
        ];
        for name in bad {
            assert_eq!(parse(&format!("{creator}/{name}")), None, "{name}");
        }
    }

    #[test]
    fn places_stay_bounded_and_those_in_use_stay() {
        let pack = |seq| PackId { creator: Incarnation::from_bytes([2; 16]), epoch: Epoch(3), seq };
        let chunks: Vec<ChunkRef> = (0..1000_u32)
            .map(|n| {
                let mut hash = [0; 32];
                hash[..4].copy_from_slice(&n.to_le_bytes());
                ChunkRef {
                    hash: ChunkHash(hash),
                    pack: pack(0),
                    offset: n,
                    stored_len: 1,
                    raw_len: 1,
                    codec: crate::chunk::Codec::None,
                }
            })
            .collect();
        let mut locations = LocationCache::default();
        locations.insert(pack(0), Arc::new(PackLocation::new(1, &chunks)));
        for seq in 1..200 {
            locations.insert(pack(seq), Arc::new(PackLocation::new(1, &chunks)));
            assert!(locations.get(pack(0)).is_some(), "used at every step");
            assert!((locations.young.len() + locations.old.len()) * 1000 <= CHUNKS_MAX + 1000);
        }
        assert!(locations.get(pack(100)).is_none());
        locations.evict(pack(0));
        assert!(locations.get(pack(0)).is_none());
    }
}
