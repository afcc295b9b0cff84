//! Groups of a chunk: pieces of 16 KiB whose own hashes are nodes of the tree that the chunk's
//! BLAKE3 hash is the root of. Once a whole chunk was verified, the hashes of its groups are as
//! good as its own, and a small read of it costs a group's reading and hashing, not a chunk's.

use super::ChunkRef;
use super::coder::Coder;
use crate::types::ChunkHash;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use std::collections::HashMap;
use std::ops::Range;

pub(super) const GROUP_BYTES: u32 = 16 << 10;

/// The hashes of a chunk's groups, two or more.
pub(super) type Groups = Box<[ChainingValue]>;

impl Coder {
    /// The hash of one group of a chunk that has several.
    pub(super) fn group(&self, index: usize, bytes: &[u8]) -> ChainingValue {
        let mut hasher = blake3::Hasher::new_keyed(self.hash_key());
        hasher.set_input_offset(index as u64 * u64::from(GROUP_BYTES));
        hasher.update(bytes).finalize_non_root()
    }

    /// The groups of a chunk's data, if it is the chunk.
    pub(super) fn verify_groups(&self, chunk: &ChunkRef, raw: &[u8]) -> Option<Groups> {
        if raw.len() != chunk.raw_len as usize || chunk.raw_len <= GROUP_BYTES {
            return None;
        }
        let groups: Groups = raw
            .chunks(GROUP_BYTES as usize)
            .enumerate()
            .map(|(index, bytes)| self.group(index, bytes))
            .collect();
        let mode = Mode::KeyedHash(self.hash_key());
        let (left, right) = halves(&groups, raw.len(), mode)?;
        let root = merge_subtrees_root(&left, &right, mode);
        // In constant time.
        (root == blake3::Hash::from_bytes(chunk.hash.0)).then_some(groups)
    }
}

/// The hashes of both halves of a tree over `len` bytes.
fn halves(
    groups: &[ChainingValue],
    len: usize,
    mode: Mode<'_>,
) -> Option<(ChainingValue, ChainingValue)> {
    let left = usize::try_from(left_subtree_len(len as u64)).ok()?;
    let (first, second) = groups.split_at_checked(left / GROUP_BYTES as usize)?;
    Some((subtree(first, left, mode)?, subtree(second, len - left, mode)?))
}

fn subtree(groups: &[ChainingValue], len: usize, mode: Mode<'_>) -> Option<ChainingValue> {
    match groups {
        [] => None,
        [one] => Some(*one),
        several => {
            let (left, right) = halves(several, len, mode)?;
            Some(merge_subtrees_non_root(&left, &right, mode))
        }
    }
}

/// Memory of an entry beside its hashes: a key and a pointer, in a table that is on average two
/// thirds full, and the allocator's.
const ENTRY_BYTES: usize = 96;

/// The groups of the chunks that were read last, in two generations of a map, so that lookup and
/// eviction are O(1). Each is of a chunk that was verified whole.
pub(super) struct GroupIndex {
    young: HashMap<ChunkHash, Groups>,
    old: HashMap<ChunkHash, Groups>,
    young_bytes: usize,
    bytes_max: usize,
}

impl GroupIndex {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            young: Default::default(),
            old: Default::default(),
            young_bytes: 0,
            bytes_max: usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }

    pub(super) fn get(&mut self, chunk: &ChunkHash, wanted: Range<usize>) -> Option<Groups> {
        if let Some(groups) = self.young.get(chunk) {
            return groups.get(wanted).map(Groups::from);
        }
        let groups = self.old.remove(chunk)?;
        let found = groups.get(wanted).map(Groups::from);
        self.insert(*chunk, groups);
        found
    }

    pub(super) fn insert(&mut self, chunk: ChunkHash, groups: Groups) {
        let bytes = ENTRY_BYTES + groups.len() * size_of::<ChainingValue>();
        if self.young_bytes + bytes > self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(chunk, groups).is_none() {
            self.young_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Codec;
    use crate::crypto::Keyring;
    use crate::types::{Epoch, FamilyId, Incarnation, PackId, PoolId};

    fn chunk(hash: ChunkHash, len: usize) -> ChunkRef {
        let pack = PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq: 0 };
        let (stored_len, raw_len) = (len as u32, len as u32);
        ChunkRef { hash, pack, offset: 8, stored_len, raw_len, codec: Codec::None }
    }

    #[test]
    fn groups_belong_to_the_chunks_hash_and_to_no_other() {
        let keyring = Keyring::plain(PoolId::from_bytes([1; 16]));
        let coder = Coder::new(&keyring, FamilyId::from_bytes([2; 16]));
        let group = GROUP_BYTES as usize;
        for len in [group + 1, 2 * group, 2 * group + 1, 3 * group, 64 << 10, 100_001, 1 << 20] {
            let mut raw: Vec<u8> = (0..len).map(|n| (n * n % 253) as u8).collect();
            let chunk = chunk(coder.hash(&raw), len);
            let groups = coder.verify_groups(&chunk, &raw).unwrap();
            for (index, bytes) in raw.chunks(group).enumerate() {
                assert_eq!(groups[index], coder.group(index, bytes), "group {index} of {len}");
            }
            assert_eq!(coder.verify_groups(&chunk, &raw[1..]), None);
            raw[len - 1] ^= 1;
            assert_eq!(coder.verify_groups(&chunk, &raw), None);
            let last = len.div_ceil(group) - 1;
            assert_ne!(groups[last], coder.group(last, &raw[last * group..]));
        }
        assert_eq!(coder.verify_groups(&chunk(coder.hash(&[7; 100]), 100), &[7; 100]), None);
    }

    #[test]
    fn it_stays_bounded_and_keeps_what_is_used() {
        let hash = |n: u32| {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&n.to_le_bytes());
            ChunkHash(hash)
        };
        let groups = |n: u8| Groups::from([[n; 32], [n + 1; 32]]);
        let mut index = GroupIndex::new(100 * (ENTRY_BYTES as u64 + 64));
        index.insert(hash(0), groups(0));
        for n in 1..10_000 {
            index.insert(hash(n), groups((n % 100) as u8));
            assert_eq!(index.get(&hash(0), 1..2), Some(Groups::from([[1; 32]])));
            assert!(index.young.len() + index.old.len() <= 102);
        }
        assert_eq!(index.get(&hash(0), 1..3), None, "it has two");
        assert_eq!(index.get(&hash(5000), 0..1), None);
    }
}
