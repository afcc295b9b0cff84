//! The chunks of one family: stored through a [`Packer`], read back verified.

use super::{ChunkCache, ChunkError, ChunkRef, Codec, Packer};
use crate::bucket::Bucket;
use crate::crypto::Keyring;
use crate::types::{ChunkHash, Epoch, FamilyId, Incarnation, PackId};
use bytes::Bytes;

/// The chunks of one family. Cheap to clone; all clones share caches.
#[derive(Clone)]
pub struct ChunkStore {}

impl ChunkStore {
    /// Does no request.
    pub fn new(_bucket: Bucket, _family: FamilyId, _keyring: &Keyring, _cache: ChunkCache) -> Self {
        todo!()
    }

    /// The name that `raw` would be stored under.
    pub fn hash(&self, _raw: &[u8]) -> ChunkHash {
        todo!()
    }

    /// The chunks' data, verified, in the order asked for. Adjacent ones are fetched with one request.
    pub async fn read(&self, _chunks: &[ChunkRef]) -> Result<Vec<Bytes>, ChunkError> {
        todo!()
    }

    /// One chunk if it is in the memory cache: no request, no waiting.
    pub fn cached(&self, _hash: &ChunkHash) -> Option<Bytes> {
        todo!()
    }

    /// Starts fetching chunks that will be read soon into the cache. Bounded; errors show at the read.
    pub fn prefetch(&self, _chunks: Vec<ChunkRef>) {
        todo!()
    }

    /// A packer for one writable open of a dataset. `codec`: for new chunks.
    pub fn packer(&self, _creator: Incarnation, _epoch: Epoch, _codec: Codec) -> Packer {
        todo!()
    }

    /// Every pack of the family, by LIST.
    pub async fn list(&self) -> Result<Vec<PackSummary>, ChunkError> {
        todo!()
    }

    /// The footer of a pack: what chunks it holds.
    pub async fn contents(&self, _pack: PackId) -> Result<Vec<ChunkRef>, ChunkError> {
        todo!()
    }

    /// Removes packs. Absent ones count as removed.
    pub async fn delete(&self, _packs: &[PackId]) -> Result<(), ChunkError> {
        todo!()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackSummary {
    pub pack: PackId,
    pub bytes: u64,
}
