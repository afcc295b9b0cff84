//! State shared by all chunk stores of a process: the chunk cache, and the memory budget of chunks
//! in flight.

use super::dedup::DedupIndex;
use super::disk::{DiskCache, DiskSize};
use super::groups::GroupIndex;
use super::plan::RANGE_BYTES_MAX;
use super::write_budget::WriteBudget;
use crate::types::ChunkHash;
use bytes::Bytes;
use foyer::{Cache, CacheBuilder, CacheProperties, Hint, LruConfig};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// Overhead of an entry beyond its bytes: key, links, counts.
const ENTRY_OVERHEAD: usize = 160;
/// Written chunks from this size on are kept without a copy.
const SHARED_FROM: usize = 256 << 10;
/// Smallest shard of the memory tier: in smaller ones a chunk of the largest size would crowd out
/// the others.
const SHARD_BYTES_MIN: u64 = 16 << 20;
const SHARDS_MAX: u64 = 16;
/// The part of the cache that holds hashes of groups: 3.5 of 28 MiB serve small reads of the last
/// GiB in records of 64 KiB.
const GROUPS_PART: u64 = 8;
/// Smallest write budget: a sealed chunk of the largest size must fit.
const WRITE_BYTES_MIN: u64 = 4 << 20;
/// Smallest read budget: a request of the largest size must fit into either part.
const READ_BYTES_MIN: u64 = 2 * RANGE_BYTES_MAX;
/// The readers' part of it; the rest is for read-ahead.
const READERS_PART: u64 = 4;
/// The most requests in flight at once.
pub(super) const READS_MAX: usize = 64;

/// Memory of all chunk stores of a process.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLimits {
    /// Verified chunks in memory, and hashes of their groups.
    pub cache_bytes: u64,
    /// Packs being filled and stored.
    pub write_bytes: u64,
    /// Range requests in flight (of data, decompressed): a quarter for readers, the rest for
    /// read-ahead, which so never makes a reader of anything else wait.
    pub read_bytes: u64,
    /// The deduplication index.
    pub dedup_bytes: u64,
}

impl ChunkLimits {
    /// Limits with a cache of this size, and defaults for chunks in flight.
    pub fn cache(cache_bytes: u64) -> Self {
        Self { cache_bytes, write_bytes: 64 << 20, read_bytes: 64 << 20, dedup_bytes: 16 << 20 }
    }
}

/// Verified chunks in memory, and if a folder is given parts of packs on disk. One for the process;
/// cheap to clone.
///
/// A chunk's hash is keyed by pool and family, so that one map serves them all.
#[derive(Clone)]
pub struct ChunkCache(pub(super) Arc<Shared>);

pub(super) struct Shared {
    memory: Cache<ChunkHash, Bytes>,
    pub(super) disk: Option<Arc<DiskCache>>,
    pub(super) write_budget: WriteBudget,
    pub(super) read_budget: Arc<Semaphore>,
    pub(super) read_ahead_budget: Arc<Semaphore>,
    /// Bytes of read-ahead that has begun or waits to: twice the budget.
    pub(super) read_ahead_queue: Arc<Semaphore>,
    pub(super) reads: Arc<Semaphore>,
    pub(super) dedup: Mutex<DedupIndex>,
    pub(super) groups: Mutex<GroupIndex>,
    /// Counts packers.
    pub(super) packers: AtomicU64,
    pub(super) counts: Counts,
}

/// Counters of a cache since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub memory_hits: u64,
    pub memory_misses: u64,
    pub disk_hits: u64,
    /// Chunks whose pack has a file on the disk, but not with their bytes: read from the bucket.
    pub disk_misses: u64,
    /// Chunks and packs of the bucket that failed verification.
    pub bucket_corrupt: u64,
    /// Read-ahead that found no room and was dropped.
    pub ahead_dropped: u64,
    pub memory_bytes: u64,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) memory_hits: AtomicU64,
    pub(super) memory_misses: AtomicU64,
    pub(super) disk_hits: AtomicU64,
    pub(super) disk_misses: AtomicU64,
    pub(super) bucket_corrupt: AtomicU64,
    pub(super) ahead_dropped: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl ChunkCache {
    /// In memory only, at most `bytes`.
    pub fn memory(bytes: u64) -> Self {
        Self::limited(ChunkLimits::cache(bytes))
    }

    /// In memory only.
    pub fn limited(limits: ChunkLimits) -> Self {
        Self::new(limits, None)
    }

    /// In memory and in files below `dir`, which this cache owns. Chunks read from the disk are
    /// decrypted and verified like those read from the bucket, and those of encrypted pools are
    /// encrypted there too. Files of an earlier process are reused.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub async fn with_disk(
        limits: ChunkLimits,
        dir: &Path,
        size: DiskSize,
    ) -> std::io::Result<Self> {
        Ok(Self::new(limits, Some(DiskCache::open(dir, size).await?)))
    }

    fn new(limits: ChunkLimits, disk: Option<Arc<DiskCache>>) -> Self {
        let group_bytes = limits.cache_bytes / GROUPS_PART;
        let bytes = limits.cache_bytes - group_bytes;
        let read_bytes = usize::try_from(limits.read_bytes.max(READ_BYTES_MIN))
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS / 2);
        let for_readers = (read_bytes / READERS_PART as usize).max(RANGE_BYTES_MAX as usize);
        let for_ahead = read_bytes - for_readers;
        let write_bytes =
            u32::try_from(limits.write_bytes.max(WRITE_BYTES_MIN)).unwrap_or(u32::MAX);
        let shards = (bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let memory = CacheBuilder::new(usize::try_from(bytes).unwrap_or(usize::MAX))
            .with_name("chunks")
            .with_shards(shards as usize)
            .with_eviction_config(LruConfig::default())
            .with_weighter(|_: &ChunkHash, data: &Bytes| data.len() + ENTRY_OVERHEAD)
            .build();
        Self(Arc::new(Shared {
            memory,
            disk,
            write_budget: WriteBudget::new(write_bytes),
            read_budget: Arc::new(Semaphore::new(for_readers)),
            read_ahead_budget: Arc::new(Semaphore::new(for_ahead)),
            read_ahead_queue: Arc::new(Semaphore::new(2 * for_ahead)),
            dedup: Mutex::new(DedupIndex::new(limits.dedup_bytes)),
            groups: Mutex::new(GroupIndex::new(group_bytes)),
            packers: AtomicU64::new(0),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            counts: Counts::default(),
        }))
    }

    pub fn stats(&self) -> CacheStats {
        let counts = &self.0.counts;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            memory_hits: get(&counts.memory_hits),
            memory_misses: get(&counts.memory_misses),
            disk_hits: get(&counts.disk_hits),
            disk_misses: get(&counts.disk_misses),
            bucket_corrupt: get(&counts.bucket_corrupt),
            ahead_dropped: get(&counts.ahead_dropped),
            memory_bytes: self.0.memory.usage() as u64,
        }
    }

    /// Waits until the disk cache has what was fetched. Only a warm start needs this.
    pub async fn close(&self) {
        if let Some(disk) = &self.0.disk {
            disk.settled().await;
        }
    }
}

impl Shared {
    pub(super) fn get(&self, hash: &ChunkHash) -> Option<Bytes> {
        self.memory.get(hash).map(|entry| entry.value().clone())
    }

    /// `data` must own its memory: a slice of a larger buffer would keep all of it.
    pub(super) fn insert(&self, hash: ChunkHash, data: Bytes) {
        self.memory.insert(hash, data);
    }

    /// Inserts a chunk that was just written: it is evicted before chunks that were read, so that a
    /// long write does not evict the readers' chunks.
    pub(super) fn insert_written(&self, hash: ChunkHash, data: &Bytes) {
        // A small chunk may be a slice of a large buffer, a large one hardly is.
        let data =
            if data.len() < SHARED_FROM { Bytes::copy_from_slice(data) } else { data.clone() };
        self.memory.insert_with_properties(
            hash,
            data,
            CacheProperties::default().with_hint(Hint::Low),
        );
    }
}
