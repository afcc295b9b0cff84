//! The chunks of one family: stored through a [`Packer`], read back verified.

use super::{ChunkRef, Codec};
use crate::bucket::{Bucket, BucketError};
use crate::crypto::Keyring;
use crate::types::{ChunkHash, Class, Classify, Epoch, FamilyId, Incarnation, PackId};
use bytes::Bytes;

#[derive(Debug, Clone, thiserror::Error)]
pub enum ChunkError {
    #[error("{doing} pack {pack}")]
    Bucket {
        doing: &'static str,
        pack: PackId,
        #[source]
        source: BucketError,
    },
    #[error("chunk {hash} in pack {pack} is corrupt: {why}")]
    Corrupt { hash: ChunkHash, pack: PackId, why: String },
    #[error("pack {pack} is corrupt: {why}")]
    CorruptPack { pack: PackId, why: String },
}

impl Classify for ChunkError {
    fn class(&self) -> Class {
        match self {
            Self::Bucket { source, .. } => source.class(),
            Self::Corrupt { .. } | Self::CorruptPack { .. } => Class::Corrupt,
        }
    }
}

/// The chunks of one family. Cheap to clone; all clones share caches.
#[derive(Clone)]
pub struct ChunkStore {}

impl ChunkStore {
    /// Does no request.
    pub fn new(_bucket: Bucket, _family: FamilyId, _keyring: &Keyring) -> Self {
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

/// Fills packs. Several callers add at once; a pack is closed and stored when it is full or when someone waits for it.
#[derive(Clone)]
pub struct Packer {}

/// Chunks that were handed to a packer. `refs` are where they are, or will be.
pub struct Packing {
    pub refs: Vec<ChunkRef>,
}

impl Packing {
    /// Waits until the packs that hold the chunks are stored. Nothing may refer to them before (R10).
    pub async fn stored(self) -> Result<Vec<ChunkRef>, ChunkError> {
        todo!()
    }
}

impl Packer {
    /// Hashes, looks up among known chunks of the family, compresses, seals and appends. Runs the CPU work off the async threads.
    /// Waits when too many packs are on their way.
    pub async fn add(&self, _raw: Vec<Bytes>) -> Result<Packing, ChunkError> {
        todo!()
    }

    /// The caller has committed a batch with every reference it will ever make out of this packing, or given up: when all of a pack's
    /// packings have said so, the pack is settled.
    pub fn settle(&self, _packs: &[PackId]) {
        todo!()
    }

    /// Every pack of this packer up to this number is referenced by what was committed, or never will be (R9).
    pub fn settled(&self) -> u64 {
        todo!()
    }

    /// Tells the packer of chunks that the dataset refers to already, for deduplication.
    pub fn known(&self, _chunks: &[ChunkRef]) {
        todo!()
    }
}
