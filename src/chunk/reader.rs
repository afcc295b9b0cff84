//! Reads chunks: from memory, from the disk cache, from the bucket; each only once at a time.
//!
//! A request runs in a task of its own: a caller that goes away does not disturb the others that
//! share the request.

use super::cache::{ChunkCache, count};
use super::coder::{Backing, Coder};
use super::pack::HEADER_BYTES;
use super::plan::{Fetch, plan};
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

type Outcome = Result<Bytes, ChunkError>;
type InFlightRead = watch::Receiver<Option<Outcome>>;

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
}

/// The obligation to complete one in-flight read, whatever its outcome.
struct Completion {
    reader: Arc<Reader>,
    chunk: ChunkRef,
    waiters: watch::Sender<Option<Outcome>>,
}

impl Completion {
    fn complete(self, outcome: Outcome) {
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
        if self.cache.0.has_disk() {
            tokio::spawn(self.clone().read_disk_then_bucket(completions));
        } else {
            self.read_bucket(completions);
        }
        joined
    }

    fn join_or_begin(
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
        let tried = stream::iter(completions)
            .map(|completion| self.try_disk(completion))
            .buffer_unordered(DISK_READS_MAX);
        let missed: Vec<Completion> = tried.filter_map(|missed| async { missed }).collect().await;
        self.read_bucket(missed);
    }

    /// Returns the completion when the disk cannot serve it.
    async fn try_disk(&self, completion: Completion) -> Option<Completion> {
        let shared = &self.cache.0;
        let Some(stored) = shared.disk_get(&completion.chunk.hash).await else {
            return Some(completion);
        };
        let (coder, chunk) = (self.coder.clone(), completion.chunk);
        match cpu::run(stored.len(), move || coder.decode(&chunk, stored, Backing::Whole)).await {
            Some(Ok(data)) => {
                count(&shared.counts.disk_hits);
                completion.complete(Ok(data));
                None
            }
            Some(Err(why)) => {
                count(&shared.counts.disk_corrupt);
                tracing::debug!(
                    chunk = %chunk.hash,
                    why,
                    "the cache on disk returned a corrupt chunk; reading it from the bucket"
                );
                shared.disk_remove(&chunk.hash);
                Some(completion)
            }
            None => None,
        }
    }

    fn read_bucket(self: &Arc<Self>, completions: Vec<Completion>) {
        let mut completions: HashMap<ChunkRef, Completion> =
            completions.into_iter().map(|completion| (completion.chunk, completion)).collect();
        for fetch in plan(completions.keys().copied().collect()) {
            let completions =
                fetch.chunks.iter().filter_map(|chunk| completions.remove(chunk)).collect();
            tokio::spawn(self.clone().fetch(fetch, completions, None));
        }
    }

    /// Fetches chunks that are neither in memory nor in flight, as far as the read-ahead budget
    /// goes.
    pub(super) fn prefetch(self: &Arc<Self>, chunks: Vec<ChunkRef>) {
        let mut in_flight_reads = self.in_flight_reads.lock();
        let wanted = chunks
            .into_iter()
            .filter(|chunk| check(chunk).is_ok() && !in_flight_reads.contains_key(chunk));
        let wanted: Vec<ChunkRef> =
            wanted.filter(|chunk| self.cache.0.get(&chunk.hash).is_none()).collect();
        let mut begun = Vec::new();
        for fetch in plan(dedup(wanted)) {
            let Ok(room) =
                self.cache.0.read_ahead_budget.clone().try_acquire_many_owned(weight(&fetch))
            else {
                count(&self.cache.0.counts.ahead_dropped);
                break;
            };
            let mut completions = Vec::new();
            for chunk in &fetch.chunks {
                self.join_or_begin(&mut in_flight_reads, chunk, &mut completions);
            }
            begun.push((fetch, completions, room));
        }
        // A runtime that shuts down drops spawned tasks at once, and a dropped completion takes the
        // lock.
        drop(in_flight_reads);
        for (fetch, completions, room) in begun {
            tokio::spawn(self.clone().fetch_ahead(fetch, completions, room));
        }
    }

    async fn fetch_ahead(
        self: Arc<Self>,
        fetch: Fetch,
        completions: Vec<Completion>,
        room: OwnedSemaphorePermit,
    ) {
        if !self.cache.0.has_disk() {
            return self.fetch(fetch, completions, Some(room)).await;
        }
        let tried = stream::iter(completions)
            .map(|completion| self.try_disk(completion))
            .buffer_unordered(DISK_READS_MAX);
        let missed: Vec<Completion> = tried.filter_map(|missed| async { missed }).collect().await;
        let mut missed: HashMap<ChunkRef, Completion> =
            missed.into_iter().map(|completion| (completion.chunk, completion)).collect();
        for fetch in plan(missed.keys().copied().collect()) {
            let completions =
                fetch.chunks.iter().filter_map(|chunk| missed.remove(chunk)).collect();
            self.clone().fetch(fetch, completions, None).await;
        }
        drop(room);
    }

    async fn fetch(
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
        cpu::run(weight(&fetch) as usize, move || {
            for completion in completions {
                let outcome = completion.reader.open(&fetch, &bytes, &completion.chunk);
                completion.complete(outcome);
            }
        })
        .await;
    }

    /// Fetches chunks from the newest generation of a pack that was rewritten (R12).
    async fn fetch_relocated(&self, pack: PackId, mut completions: Vec<Completion>) {
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
            let mut completed: Vec<(ChunkRef, Vec<Completion>)> = fetch
                .chunks
                .iter()
                .filter_map(|chunk| Some((*chunk, waiting.remove(chunk)?)))
                .collect();
            cpu::run(weight(&fetch) as usize, move || {
                for (moved, completions) in completed.drain(..) {
                    for completion in completions {
                        let outcome = completion.reader.open(&fetch, &bytes, &moved);
                        completion.complete(outcome);
                    }
                }
            })
            .await;
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

    /// One chunk out of the range that was fetched, verified.
    fn open(&self, fetch: &Fetch, bytes: &Bytes, chunk: &ChunkRef) -> Outcome {
        let counts = &self.cache.0.counts;
        let start = (u64::from(chunk.offset) - fetch.range.start) as usize;
        let end = start + chunk.stored_len as usize;
        if end > bytes.len() {
            count(&counts.bucket_corrupt);
            return Err(corrupt(chunk, "the pack ends before it".to_owned()));
        }
        let stored = bytes.slice(start..end);
        let backing = if stored.len() == bytes.len() { Backing::Whole } else { Backing::Part };
        let data = self.coder.decode(chunk, stored.clone(), backing).map_err(|why| {
            count(&counts.bucket_corrupt);
            corrupt(chunk, why)
        })?;
        self.cache.0.disk_insert(chunk.hash, &stored);
        Ok(data)
    }
}

fn fail(completions: Vec<Completion>, error: &ChunkError) {
    completions.into_iter().for_each(|completion| completion.complete(Err(error.clone())));
}

/// Memory that a request takes, at most: both limits of a range are well below 4 GiB.
fn weight(fetch: &Fetch) -> u32 {
    fetch.raw_bytes.max(fetch.range.end - fetch.range.start) as u32
}

fn dedup(mut chunks: Vec<ChunkRef>) -> Vec<ChunkRef> {
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
fn check(chunk: &ChunkRef) -> Result<(), ChunkError> {
    let (raw, stored) = (chunk.raw_len as usize, chunk.stored_len as usize);
    if chunk.offset < HEADER_BYTES || raw > CHUNK_BYTES_MAX || stored > raw + Sealer::OVERHEAD {
        return Err(corrupt(chunk, "its reference is invalid".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{ChunkLimits, ChunkStore, Codec};
    use crate::crypto::Keyring;
    use crate::types::{Epoch, Incarnation, PoolId};

    /// foyer has checksums of its own; this is what happens when they hold and the bytes are still
    /// not the chunk.
    #[tokio::test]
    async fn a_wrong_chunk_on_disk_is_dropped_and_read_from_the_bucket() {
        let dir = tempfile::tempdir().expect("a folder");
        // Room for one chunk in memory.
        let cache = ChunkCache::with_disk(ChunkLimits::cache(0), dir.path(), 64 << 20)
            .await
            .expect("a cache");
        let family = FamilyId::from_bytes([2; 16]);
        let store = ChunkStore::new(
            Bucket::memory(),
            family,
            &Keyring::plain(PoolId::from_bytes([1; 16])),
            cache.clone(),
        );
        let packer = store.packer(Incarnation::from_bytes([3; 16]), Epoch(1), Codec::None);
        let raw = Bytes::from_static(b"what was written");
        let stored =
            packer.add(vec![raw.clone()]).await.expect("added").stored().await.expect("stored");
        let chunk = *stored.refs().first().expect("one chunk");
        cache.0.disk_insert(chunk.hash, &Bytes::from_static(b"what is not it!!"));
        let crowd_out = || cache.0.insert(store.hash(b"another"), Bytes::from_static(b"another"));
        crowd_out();
        assert_eq!(store.read(&[chunk]).await.expect("read"), std::slice::from_ref(&raw));
        let stats = cache.stats();
        assert_eq!((stats.disk_corrupt, stats.disk_hits), (1, 0));
        // The disk tier writes in the background, and may drop an insertion that directly follows a
        // removal: each read from the bucket offers it again.
        for _ in 0..1000 {
            crowd_out();
            assert_eq!(store.read(&[chunk]).await.expect("read"), std::slice::from_ref(&raw));
            if cache.stats().disk_hits > 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(
            (cache.stats().disk_corrupt, cache.stats().disk_hits),
            (1, 1),
            "the right one has taken its place"
        );
    }
}
