//! Fills packs and tracks which of them may still get new references (R9, R10).

use super::pack::APPEND_BYTES_MAX;
use super::pack_writer::{PackHolds, PackWriter, PreparedChunk, Urgency};
use super::{CHUNK_BYTES_MAX, ChunkError, ChunkRef, Codec, cpu};
use crate::crypto::Sealer;
use crate::types::{ChunkHash, PackId};
use bytes::Bytes;
use futures::future::join_all;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Data that one CPU job takes, before it is sealed: long enough to be worth handing over, short
/// enough that an add uses all cores.
const JOB_BYTES: usize = 1 << 20;
/// Jobs of one add at once. Their chunks are appended together, so that they lie side by side in
/// the pack whatever else is added meanwhile.
const JOBS_MAX: usize = APPEND_BYTES_MAX / JOB_BYTES;
/// The time that a pack waits for more data under [`Packing::stored_in_background`].
const LINGER: Duration = Duration::from_millis(200);

/// Fills packs for one writable open of a dataset. Several callers add at once; a pack is closed
/// and stored when it is full or when a caller waits for it.
///
/// Chunks known for deduplication are kept per packer and not per family: what a sibling dataset
/// has stored is of no use here, because this dataset holds no `U` on it (R10).
#[derive(Clone)]
pub struct Packer(pub(super) Arc<PackWriter>);

/// Chunks that were handed to a packer. Nothing may refer to them yet. Dropping this abandons them.
#[must_use = "dropping it gives the chunks up"]
pub struct Packing {
    refs: Vec<ChunkRef>,
    holds: PackHolds,
}

/// Chunks whose packs are in the bucket. While it lives, the packs that it touches are not settled
/// (R9): keep it until the batch that refers to its chunks is submitted to the committer, then
/// [`Self::settle`] or drop it. Dropping it earlier promises that no batch will ever refer to these
/// chunks through it.
#[must_use = "dropping it before the batch is submitted lets the collector sweep the chunks"]
pub struct Stored {
    refs: Vec<ChunkRef>,
    _holds: PackHolds,
}

impl Packing {
    /// References to the chunks, in the order they were added.
    pub fn refs(&self) -> &[ChunkRef] {
        &self.refs
    }

    /// Closes the packs that hold the chunks and waits until they are stored: for COMMIT and other
    /// callers that wait for an answer.
    pub async fn stored(mut self) -> Result<Stored, ChunkError> {
        self.holds.hurry(Urgency::Now);
        self.holds.stored().await?;
        Ok(Stored { refs: self.refs, _holds: self.holds })
    }

    /// Waits until the packs are stored. One that is not full is closed as soon as nothing else is
    /// in flight: for large flushes, which fill packs by themselves, and where writers wait for the
    /// memory.
    pub async fn stored_soon(mut self) -> Result<Stored, ChunkError> {
        self.holds.hurry(Urgency::Background);
        self.holds.stored().await?;
        Ok(Stored { refs: self.refs, _holds: self.holds })
    }

    /// Waits until the packs are stored. One that is not full is closed only after a short while,
    /// and when nothing else is in flight: for flushes in the background, so that a long sequential
    /// write makes full packs.
    pub async fn stored_in_background(mut self) -> Result<Stored, ChunkError> {
        match tokio::time::timeout(LINGER, self.holds.stored()).await {
            Ok(stored) => stored?,
            Err(_) => {
                self.holds.hurry(Urgency::Background);
                self.holds.stored().await?;
            }
        }
        Ok(Stored { refs: self.refs, _holds: self.holds })
    }
}

impl Stored {
    pub fn refs(&self) -> &[ChunkRef] {
        &self.refs
    }

    /// Every batch that will ever refer to these chunks through this value has been submitted.
    pub fn settle(self) {}
}

impl Packer {
    /// Hashes, looks up among known chunks of the dataset, compresses, seals and appends. Runs the
    /// CPU work off the async threads. Waits when too many bytes are in flight. When
    /// [`Packing::stored`] fails, the caller may add the same data again.
    pub async fn add(&self, raw: Vec<Bytes>) -> Result<Packing, ChunkError> {
        if let Some(bytes) = raw.iter().map(Bytes::len).find(|len| *len > CHUNK_BYTES_MAX) {
            return Err(ChunkError::TooLarge { bytes, max: CHUNK_BYTES_MAX });
        }
        let mut packing =
            Packing { refs: Vec::with_capacity(raw.len()), holds: PackHolds::new(self.0.clone()) };
        for jobs in jobs(raw).chunks(JOBS_MAX) {
            self.pack(jobs, &mut packing).await?;
        }
        Ok(packing)
    }

    async fn pack(&self, jobs: &[Vec<Bytes>], packing: &mut Packing) -> Result<(), ChunkError> {
        let bytes = |job: &Vec<Bytes>| job.iter().map(|raw| raw.len() + Sealer::OVERHEAD).sum();
        let total: usize = jobs.iter().map(bytes).sum();
        // For all of them at once: two adds that each waited with half of theirs would wait for
        // each other. They have some MiB.
        let mut room = self.0.cache.0.write_budget.take(total as u32).await;
        let encoding = jobs.iter().map(|job| {
            let (writer, job, bytes) = (self.0.clone(), job.clone(), bytes(job));
            cpu::run(bytes, move || encode(&writer, &job))
        });
        let mut encoded = Vec::with_capacity(jobs.len());
        for job in join_all(encoding).await {
            let (chunks, holds) = job.ok_or(ChunkError::CutOff { doing: "packing" })?;
            packing.holds.absorb(holds);
            encoded.push(chunks);
        }
        packing.refs.extend(self.0.append(encoded, &mut room, &mut packing.holds));
        Ok(())
    }

    /// Every pack of this packer up to this number is referenced by the batches submitted so far,
    /// or never will be (R9). The committer reads it *before* it takes the batches that it writes
    /// together with the superblock: a pack may be called settled by no state that lacks the batch
    /// which refers to it.
    pub fn settled(&self) -> u64 {
        self.0.settled()
    }

    /// True if `pack` is this packer's, stored, and not settled. At submit the committer refuses a
    /// new reference into a pack unless this holds, or `U` of the pack is above 0 and it is not
    /// sealed (R10); the caller then adds the data again.
    pub fn is_unsettled(&self, pack: PackId) -> bool {
        self.0.is_unsettled(pack)
    }

    /// Sets the function that decides whether the dataset may make new references into a settled
    /// pack, or one of another creator or epoch: `U` above 0 and not sealed (R10). Until it is set,
    /// deduplication finds only chunks in this packer's own unsettled packs. It is called at every
    /// such hit, with no lock held; hold the committer by a `Weak` in it.
    pub fn deduplicate_into(&self, may_refer: Arc<dyn Fn(PackId) -> bool + Send + Sync>) {
        *self.0.may_refer.write() = Some(may_refer);
    }

    /// Sets the codec of chunks that are added from now on.
    pub fn set_codec(&self, codec: Codec) {
        *self.0.codec.write() = codec;
    }

    /// Inserts chunks that the dataset refers to already into the deduplication index.
    pub fn learn(&self, chunks: &[ChunkRef]) {
        self.0.learn(chunks);
    }

    /// The number of chunks that [`Self::learn`] takes at once without evicting some of them. The
    /// memory is the process's.
    pub fn learnable_at_once(&self) -> usize {
        self.0.learnable_at_once()
    }

    /// True if this packer wrote or will write the pack.
    pub fn makes(&self, pack: PackId) -> bool {
        self.0.is_own(pack)
    }
}

/// Cuts the added chunks into jobs: a step of read-ahead is [`JOBS_MAX`] of them.
fn jobs(raw: Vec<Bytes>) -> Vec<Vec<Bytes>> {
    let mut jobs: Vec<Vec<Bytes>> = Vec::new();
    let mut bytes = 0;
    for raw in raw {
        bytes += raw.len();
        match jobs.last_mut() {
            Some(job) if bytes <= JOB_BYTES => job.push(raw),
            _ => {
                bytes = raw.len();
                jobs.push(vec![raw]);
            }
        }
    }
    jobs
}

/// The CPU work on some chunks.
fn encode(writer: &Arc<PackWriter>, job: &[Bytes]) -> (Vec<PreparedChunk>, PackHolds) {
    let mut holds = PackHolds::new(writer.clone());
    let mut chunks = Vec::with_capacity(job.len());
    let codec = *writer.codec.read();
    let mut firsts: HashMap<ChunkHash, usize> = HashMap::with_capacity(job.len());
    for raw in job {
        let hash = writer.coder.hash(raw);
        let first = *firsts.entry(hash).or_insert(chunks.len());
        chunks.push(if first < chunks.len() {
            PreparedChunk::SameAs(first)
        } else if let Some(chunk) = writer.find(&hash, &mut holds) {
            PreparedChunk::Stored(chunk)
        } else {
            let stored = writer.coder.encode(raw, &hash, codec);
            writer.cache.0.insert_written(hash, raw);
            // At most CHUNK_BYTES_MAX.
            PreparedChunk::New { hash, raw_len: raw.len() as u32, stored }
        });
    }
    (chunks, holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_read_ahead_is_appended_at_once() {
        for chunk in [4 << 10, 64 << 10, 256 << 10, 1 << 20] {
            let step = vec![Bytes::from(vec![0; chunk]); APPEND_BYTES_MAX / chunk];
            let jobs = jobs(step);
            assert_eq!(jobs.len(), JOBS_MAX, "chunks of {chunk} bytes");
            assert!(jobs.iter().all(|job| job.iter().map(Bytes::len).sum::<usize>() <= JOB_BYTES));
        }
        assert_eq!(jobs(vec![]).len(), 0);
        let uneven = [700 << 10, 400 << 10, 300 << 10, 1 << 20, 1];
        let jobs = jobs(uneven.map(|len| Bytes::from(vec![0; len])).into());
        assert_eq!(jobs.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 1, 1]);
    }
}
