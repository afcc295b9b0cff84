//! Fills packs and keeps the books of who may still refer to them (R9, R10).

use super::{ChunkError, ChunkRef};
use crate::types::PackId;
use bytes::Bytes;
use std::sync::Arc;

/// Fills packs for one writable open of a dataset. Several callers add at once; a pack is closed and stored when it is full or when someone
/// waits for it.
#[derive(Clone)]
pub struct Packer {}

/// Chunks that were handed to a packer. Nothing may refer to them yet. Dropping it gives them up.
#[must_use = "dropping it gives the chunks up"]
pub struct Packing {}

/// Chunks whose packs are in the bucket. While it lives, the packs that it touches are not settled (R9): keep it until the batch that refers to
/// its chunks is submitted to the committer, then [`Self::settle`] or drop it. To drop it before is to promise that nothing will ever refer to
/// these chunks through it.
#[must_use = "dropping it before the batch is submitted lets the collector sweep the chunks"]
pub struct Stored {}

impl Packing {
    /// Where the chunks will be, in the order they were added.
    pub fn refs(&self) -> &[ChunkRef] {
        todo!()
    }

    /// Closes the packs that hold the chunks and waits until they are stored: for COMMIT and whoever waits for an answer.
    pub async fn stored(self) -> Result<Stored, ChunkError> {
        todo!()
    }

    /// Waits until the packs are stored without closing them before they are full, for at most a short while: for flushes in the background,
    /// so that a long sequential write makes full packs.
    pub async fn stored_unhurried(self) -> Result<Stored, ChunkError> {
        todo!()
    }
}

impl Stored {
    pub fn refs(&self) -> &[ChunkRef] {
        todo!()
    }

    /// Every batch that will ever refer to these chunks through this value has been submitted.
    pub fn settle(self) {}
}

impl Packer {
    /// Hashes, looks up among known chunks of the dataset, compresses, seals and appends. Runs the CPU work off the async threads.
    /// Waits when too many bytes are on their way. When [`Packing::stored`] fails, the caller may add the same data again.
    pub async fn add(&self, _raw: Vec<Bytes>) -> Result<Packing, ChunkError> {
        todo!()
    }

    /// Every pack of this packer up to this number is referenced by the batches submitted so far, or never will be (R9). The committer reads it
    /// *before* it takes the batches that it writes together with the superblock: a pack may be called settled by no state that lacks the batch
    /// which refers to it.
    pub fn settled(&self) -> u64 {
        todo!()
    }

    /// Whether `pack` is of this packer and not settled. At submit the committer refuses a new reference into a pack unless this holds, or
    /// `U` of the pack is above 0 and it is not sealed (R10); the caller then adds the data again.
    pub fn is_unsettled(&self, _pack: PackId) -> bool {
        todo!()
    }

    /// Sets who says whether the dataset may make new references into a settled pack, or one of another creator or epoch: `U` above 0 and not
    /// sealed (R10). Until it is set, deduplication finds only chunks in this packer's own unsettled packs. It is called at every such hit,
    /// with no lock held; hold the committer by a `Weak` in it.
    pub fn deduplicate_into(&self, _may_refer: Arc<dyn Fn(PackId) -> bool + Send + Sync>) {
        todo!()
    }

    /// Tells the packer of chunks that the dataset refers to already, for deduplication.
    pub fn known(&self, _chunks: &[ChunkRef]) {
        todo!()
    }
}
