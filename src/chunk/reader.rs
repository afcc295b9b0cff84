//! Reads chunks: from memory, from the disk cache, from the bucket; each only once at a time.
//!
//! A request runs in a task of its own: a caller that goes away does not disturb the others that
//! share the request.

use super::blocks::Blocks;
use super::cache::{ChunkCache, count};
use super::coder::{Backing, Coder};
use super::disk::DiskCache;
use super::pack::HEADER_BYTES;
use super::plan::{Fetch, plan, range_of};
use super::relocated::{self, Generation, LocationCache, PackLocation};
use super::{CHUNK_BYTES_MAX, ChunkError, ChunkRef, cpu};
use crate::bucket::{Bucket, BucketError};
use crate::crypto::Sealer;
use crate::types::{FamilyId, PackId};
use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinHandle;

type Outcome = Result<Bytes, ChunkError>;
pub(super) type InFlightRead = watch::Receiver<Option<Outcome>>;

/// Reads from the disk cache at once, per read.
const DISK_READS_MAX: usize = 8;
/// The most rewrites of a pack that one read follows while it looks for the newest generation.
const RELOCATIONS_MAX: u32 = 4;

pub(super) struct Reader {
    pub(super) family: FamilyId,
    pub(super) bucket: Bucket,
    pub(super) coder: Arc<Coder>,
    pub(super) cache: ChunkCache,
    /// By the whole reference: a second one to the same data must not fail because the first is
    /// broken.
    pub(super) in_flight_reads: Mutex<HashMap<ChunkRef, InFlightRead>>,
    /// Locations in packs that were rewritten.
    pub(super) locations: Mutex<LocationCache>,
    /// Parts of packs that small chunks were missed in.
    pub(super) blocks: Mutex<Blocks>,
}

/// The obligation to complete one in-flight read, whatever its outcome.
pub(super) struct Completion {
    reader: Arc<Reader>,
    pub(super) chunk: ChunkRef,
    waiters: watch::Sender<Option<Outcome>>,
}

impl Completion {
    pub(super) fn complete(self, outcome: Outcome) {
        if let Ok(data) = &outcome {
            self.reader.cache.0.insert(self.chunk.hash, data.clone());
        }
        self.waiters.send_replace(Some(outcome));
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.reader.in_flight_reads.lock().remove(&self.chunk);
    }
}

impl Reader {
    pub(super) async fn read(
        self: &Arc<Self>,
        chunks: &[ChunkRef],
    ) -> Result<Vec<Bytes>, ChunkError> {
        let mut data = Vec::with_capacity(chunks.len());
        let mut missing = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let hit = self.in_memory(chunk)?;
            if hit.is_none() {
                missing.push((index, *chunk));
            }
            data.push(hit.unwrap_or_default());
        }
        if !missing.is_empty() {
            missing = self.read_in_place(missing, &mut data).await;
        }
        if missing.is_empty() {
            return Ok(data);
        }
        let in_flight_reads = self.join(&missing);
        for ((index, _), mut in_flight_read) in missing.into_iter().zip(in_flight_reads) {
            let outcome = match in_flight_read.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None,
            };
            let completed =
                outcome.unwrap_or(Err(ChunkError::CutOff { doing: "reading a pack" }))?;
            if let Some(slot) = data.get_mut(index) {
                *slot = completed;
            }
        }
        Ok(data)
    }

    /// The disk cache. A pool in a folder needs no copies of its files.
    pub(super) fn disk(&self) -> Option<&Arc<DiskCache>> {
        self.cache.0.disk.as_ref().filter(|_| !self.bucket.is_local())
    }

    fn in_memory(&self, chunk: &ChunkRef) -> Result<Option<Bytes>, ChunkError> {
        let counts = &self.cache.0.counts;
        let Some(data) = self.cache.0.get(&chunk.hash) else {
            count(&counts.memory_misses);
            return check(chunk).map(|()| None);
        };
        count(&counts.memory_hits);
        if data.len() != chunk.raw_len as usize {
            return Err(corrupt(
                chunk,
                format!("it has {} bytes, its reference says {}", data.len(), chunk.raw_len),
            ));
        }
        Ok(Some(data))
    }

    /// An in-flight read for each chunk: one that has begun already, or a new one.
    fn join(self: &Arc<Self>, chunks: &[(usize, ChunkRef)]) -> Vec<InFlightRead> {
        let mut in_flight_reads = self.in_flight_reads.lock();
        let mut completions = Vec::new();
        let joined = chunks
            .iter()
            .map(|(_, chunk)| self.join_or_begin(&mut in_flight_reads, chunk, &mut completions))
            .collect();
        drop(in_flight_reads);
        if self.disk().is_some() {
            tokio::spawn(self.clone().read_disk_then_bucket(completions));
        } else {
            self.read_bucket(completions);
        }
        joined
    }

    pub(super) fn join_or_begin(
        self: &Arc<Self>,
        in_flight_reads: &mut HashMap<ChunkRef, InFlightRead>,
        chunk: &ChunkRef,
        completions: &mut Vec<Completion>,
    ) -> InFlightRead {
        if let Some(in_flight_read) = in_flight_reads.get(chunk) {
            return in_flight_read.clone();
        }
        let waiters = watch::Sender::new(None);
        let in_flight_read = waiters.subscribe();
        // Another read may have completed between the memory lookup and the lock.
        if let Some(data) =
            self.cache.0.get(&chunk.hash).filter(|data| data.len() == chunk.raw_len as usize)
        {
            waiters.send_replace(Some(Ok(data)));
            return in_flight_read;
        }
        in_flight_reads.insert(*chunk, in_flight_read.clone());
        completions.push(Completion { reader: self.clone(), chunk: *chunk, waiters });
        in_flight_read
    }

    async fn read_disk_then_bucket(self: Arc<Self>, completions: Vec<Completion>) {
        let missed = self.try_disk(completions).await;
        self.read_bucket(missed);
    }

    /// Returns the completions that the disk cannot serve.
    pub(super) async fn try_disk(&self, completions: Vec<Completion>) -> Vec<Completion> {
        stream::iter(completions)
            .map(|completion| self.try_disk_one(completion))
            .buffer_unordered(DISK_READS_MAX)
            .filter_map(|missed| async { missed })
            .collect()
            .await
    }

    async fn try_disk_one(&self, completion: Completion) -> Option<Completion> {
        let (shared, chunk) = (&self.cache.0, completion.chunk);
        let Some(disk) = self.disk() else { return Some(completion) };
        let (generation, located) = self.located(&chunk);
        let key = relocated::key(self.family, chunk.pack, generation);
        let Some(stored) = disk.read(key, range_of(&located)).await else {
            return Some(completion);
        };
        let coder = self.coder.clone();
        let opened =
            cpu::run(stored.len(), move || coder.decode(&located, stored, Backing::Whole)).await?;
        match opened {
            Ok(data) => {
                count(&shared.counts.disk_hits);
                completion.complete(Ok(data));
                None
            }
            Err(_) => {
                count(&shared.counts.disk_misses);
                Some(completion)
            }
        }
    }

    /// Where a chunk is, as far as that is known without a request.
    pub(super) fn located(&self, chunk: &ChunkRef) -> (Generation, ChunkRef) {
        let location = self.locations.lock().get(chunk.pack);
        location
            .and_then(|location| Some((location.generation, location.of(chunk)?)))
            .unwrap_or((0, *chunk))
    }

    fn read_bucket(self: &Arc<Self>, completions: Vec<Completion>) {
        let mut completions: HashMap<ChunkRef, Completion> =
            completions.into_iter().map(|completion| (completion.chunk, completion)).collect();
        for fetch in plan(completions.keys().copied().collect()) {
            let completions =
                fetch.chunks.iter().filter_map(|chunk| completions.remove(chunk)).collect();
            match self.block_of(&fetch) {
                Some(block) => tokio::spawn(self.clone().fetch_block(block, fetch, completions)),
                None => tokio::spawn(self.clone().fetch(fetch, completions, None)),
            };
        }
    }

    pub(super) async fn fetch(
        self: Arc<Self>,
        fetch: Fetch,
        completions: Vec<Completion>,
        room: Option<OwnedSemaphorePermit>,
    ) {
        let shared = &self.cache.0;
        // Neither semaphore is ever closed.
        let _slot = shared.reads.acquire().await;
        let _room = match room {
            Some(room) => Some(room),
            None => shared.read_budget.clone().acquire_many_owned(weight(&fetch)).await.ok(),
        };
        let Some(pack) = fetch.chunks.first().map(|chunk| chunk.pack) else { return };
        if self.locations.lock().get(pack).is_some() {
            return self.fetch_relocated(pack, completions).await;
        }
        let bytes = match self.get(pack, 0, &fetch).await {
            Ok(bytes) => bytes,
            Err(ChunkError::Missing { .. }) => {
                return self.fetch_relocated(pack, completions).await;
            }
            Err(error) => return fail(completions, &error),
        };
        let key = relocated::key(self.family, pack, 0);
        let completions = completions.into_iter().map(|own| (own.chunk, own)).collect();
        // The disk is written while the next requests are on their way.
        let _writing = self.complete(key, fetch.range.start, bytes, completions).await;
    }

    /// Completes reads from the bytes of a pack that begin at `at`, and keeps these on the disk.
    pub(super) async fn complete(
        &self,
        key: String,
        at: u64,
        bytes: Bytes,
        completions: Vec<(ChunkRef, Completion)>,
    ) -> Option<JoinHandle<()>> {
        let disk = self.disk().filter(|_| !bytes.is_empty());
        let fill = disk.and_then(|disk| Some((disk, disk.fill()?)));
        let kept = bytes.clone();
        let opened = cpu::run(bytes.len(), move || {
            for (located, completion) in completions {
                let outcome = completion.reader.open(at, &bytes, &located);
                completion.complete(outcome);
            }
        });
        opened.await?;
        let (disk, fill) = fill?;
        disk.write(fill, key, at, kept).await
    }

    /// Fetches chunks from the newest generation of a pack that was rewritten (R12).
    pub(super) async fn fetch_relocated(&self, pack: PackId, mut completions: Vec<Completion>) {
        for _ in 0..RELOCATIONS_MAX {
            let location = match self.location(pack).await {
                Ok(location) => location,
                Err(error) => return fail(completions, &error),
            };
            match self.fetch_at(pack, &location, completions).await {
                None => return,
                Some(left) => completions = left,
            }
            // The pack was rewritten once more.
            self.locations.lock().evict(pack);
        }
        fail(completions, &ChunkError::Missing { pack });
    }

    async fn location(&self, pack: PackId) -> Result<Arc<PackLocation>, ChunkError> {
        if let Some(location) = self.locations.lock().get(pack) {
            return Ok(location);
        }
        for _ in 0..RELOCATIONS_MAX {
            match self.find_location(pack).await {
                Ok(Some(location)) => {
                    let location = Arc::new(location);
                    self.locations.lock().insert(pack, location.clone());
                    return Ok(location);
                }
                // Deleted between the listing and the reading: a newer one exists.
                Err(ChunkError::Missing { .. }) => {}
                Ok(None) => break,
                Err(error) => return Err(error),
            }
        }
        Err(ChunkError::Missing { pack })
    }

    /// Returns the completions that are left if the generation is gone meanwhile.
    async fn fetch_at(
        &self,
        pack: PackId,
        location: &PackLocation,
        completions: Vec<Completion>,
    ) -> Option<Vec<Completion>> {
        let mut waiting: HashMap<ChunkRef, Vec<Completion>> = HashMap::new();
        for completion in completions {
            match location.of(&completion.chunk) {
                Some(moved) => waiting.entry(moved).or_default().push(completion),
                None => {
                    count(&self.cache.0.counts.bucket_corrupt);
                    let why = "its pack was rewritten without it".to_owned();
                    let chunk = completion.chunk;
                    completion.complete(Err(corrupt(&chunk, why)));
                }
            }
        }
        for fetch in plan(waiting.keys().copied().collect()) {
            let bytes = match self.get(pack, location.generation, &fetch).await {
                Ok(bytes) => bytes,
                Err(ChunkError::Missing { .. }) => {
                    return Some(waiting.into_values().flatten().collect());
                }
                Err(error) => {
                    let failed = fetch
                        .chunks
                        .iter()
                        .filter_map(|chunk| waiting.remove(chunk))
                        .flatten()
                        .collect();
                    fail(failed, &error);
                    continue;
                }
            };
            let completed = fetch
                .chunks
                .iter()
                .filter_map(|moved| Some((*moved, waiting.remove(moved)?)))
                .flat_map(|(moved, own)| own.into_iter().map(move |own| (moved, own)))
                .collect();
            let key = relocated::key(self.family, pack, location.generation);
            let _writing = self.complete(key, fetch.range.start, bytes, completed).await;
        }
        None
    }

    async fn get(
        &self,
        pack: PackId,
        generation: Generation,
        fetch: &Fetch,
    ) -> Result<Bytes, ChunkError> {
        if fetch.range.is_empty() {
            return Ok(Bytes::new());
        }
        let key = relocated::key(self.family, pack, generation);
        self.bucket
            .get_range(&key, fetch.range.clone())
            .await
            .map_err(|source| reading(pack, source))
    }

    /// One chunk out of the bytes of its pack that begin at `at`, verified.
    fn open(&self, at: u64, bytes: &Bytes, chunk: &ChunkRef) -> Outcome {
        let counts = &self.cache.0.counts;
        let broken = |why: String| {
            count(&counts.bucket_corrupt);
            corrupt(chunk, why)
        };
        let range = range_of(chunk);
        let (Some(start), end) = (range.start.checked_sub(at), range.end.saturating_sub(at)) else {
            return Err(broken("it begins before what was read".to_owned()));
        };
        if end > bytes.len() as u64 {
            return Err(broken("the pack ends before it".to_owned()));
        }
        let stored = bytes.slice(start as usize..end as usize);
        let backing = if stored.len() == bytes.len() { Backing::Whole } else { Backing::Part };
        self.coder.decode(chunk, stored, backing).map_err(broken)
    }
}

pub(super) fn fail(completions: Vec<Completion>, error: &ChunkError) {
    completions.into_iter().for_each(|completion| completion.complete(Err(error.clone())));
}

/// Memory that a request takes, at most: both limits of a range are well below 4 GiB.
pub(super) fn weight(fetch: &Fetch) -> u32 {
    fetch.raw_bytes.max(fetch.range.end - fetch.range.start) as u32
}

pub(super) fn dedup(mut chunks: Vec<ChunkRef>) -> Vec<ChunkRef> {
    let mut seen = std::collections::HashSet::new();
    chunks.retain(|chunk| seen.insert(*chunk));
    chunks
}

pub(super) fn reading(pack: PackId, source: BucketError) -> ChunkError {
    match source {
        BucketError::NotFound { .. } => ChunkError::Missing { pack },
        BucketError::Short { bytes, wanted, .. } => ChunkError::CorruptPack {
            pack,
            why: format!("it ends after {bytes} bytes, {wanted} are needed"),
        },
        source => ChunkError::Bucket { doing: "reading", pack, source },
    }
}

fn corrupt(chunk: &ChunkRef, why: String) -> ChunkError {
    ChunkError::Corrupt { hash: chunk.hash, pack: chunk.pack, why }
}

/// References come from the database, which is on the bucket too: an impossible one is not
/// requested.
pub(super) fn check(chunk: &ChunkRef) -> Result<(), ChunkError> {
    let (raw, stored) = (chunk.raw_len as usize, chunk.stored_len as usize);
    if chunk.offset < HEADER_BYTES || raw > CHUNK_BYTES_MAX || stored > raw + Sealer::OVERHEAD {
        return Err(corrupt(chunk, "its reference is invalid".to_owned()));
    }
    Ok(())
}
