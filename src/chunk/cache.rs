//! State shared by all chunk stores of a process: the chunk cache, and the memory budget of chunks
//! in flight.

use super::dedup::DedupIndex;
use super::plan::RANGE_BYTES_MAX;
use super::write_budget::WriteBudget;
use crate::types::ChunkHash;
use bytes::Bytes;
use foyer::{
    BlockEngineConfig, Cache, CacheBuilder, CacheProperties, DeviceBuilder, FsDeviceBuilder, Hint,
    HybridCache, HybridCacheBuilder, LruConfig, PsyncIoEngineConfig, RecoverMode,
};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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
/// Smallest write budget: a sealed chunk of the largest size must fit.
const WRITE_BYTES_MIN: u64 = 4 << 20;
/// Smallest read budget: a request of the largest size must fit into either half.
const READ_BYTES_MIN: u64 = 2 * RANGE_BYTES_MAX;
/// The most requests in flight at once.
pub(super) const READS_MAX: usize = 64;
/// Size of the files of the disk tier; each must hold the largest stored chunk with foyer's header.
const DISK_BLOCK_BYTES: usize = 16 << 20;
/// Memory of the disk tier itself; it returns each read at once.
const DISK_MEMORY_BYTES: usize = 1 << 20;

/// Memory of all chunk stores of a process.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLimits {
    /// Verified chunks in memory.
    pub cache_bytes: u64,
    /// Packs being filled and stored.
    pub write_bytes: u64,
    /// Range requests in flight (of data, decompressed): half of it for readers, half for
    /// read-ahead, which so never makes a reader wait.
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

/// Verified chunks in memory, and if a folder is given their stored form on disk. One for the
/// process; cheap to clone.
///
/// A chunk's hash is keyed by pool and family, so that one map serves them all.
#[derive(Clone)]
pub struct ChunkCache(pub(super) Arc<Shared>);

pub(super) struct Shared {
    memory: Cache<ChunkHash, Bytes>,
    disk: Option<HybridCache<ChunkHash, OnDisk>>,
    pub(super) write_budget: WriteBudget,
    pub(super) read_budget: Arc<Semaphore>,
    pub(super) read_ahead_budget: Arc<Semaphore>,
    pub(super) reads: Arc<Semaphore>,
    pub(super) dedup: Mutex<DedupIndex>,
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
    /// Chunks that the disk returned corrupt: counted, dropped, and read from the bucket.
    pub disk_corrupt: u64,
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
    pub(super) disk_corrupt: AtomicU64,
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

    /// In memory and in files below `dir`, which this cache owns: at most `disk_bytes` there.
    /// Chunks read from the disk are decrypted and verified like those read from the bucket, and
    /// encrypted pools are encrypted there too. Files of an earlier process are reused.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub async fn with_disk(
        limits: ChunkLimits,
        dir: &Path,
        disk_bytes: u64,
    ) -> std::io::Result<Self> {
        Ok(Self::new(limits, Some(open_disk(dir, disk_bytes).await?)))
    }

    fn new(limits: ChunkLimits, disk: Option<HybridCache<ChunkHash, OnDisk>>) -> Self {
        let bytes = limits.cache_bytes;
        let read_bytes = usize::try_from(limits.read_bytes.max(READ_BYTES_MIN))
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
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
            read_budget: Arc::new(Semaphore::new(read_bytes / 2)),
            read_ahead_budget: Arc::new(Semaphore::new(read_bytes / 2)),
            dedup: Mutex::new(DedupIndex::new(limits.dedup_bytes)),
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
            disk_corrupt: get(&counts.disk_corrupt),
            bucket_corrupt: get(&counts.bucket_corrupt),
            ahead_dropped: get(&counts.ahead_dropped),
            memory_bytes: self.0.memory.usage() as u64,
        }
    }

    /// Writes out chunks that the disk tier still holds in memory. Only a warm start needs this.
    pub async fn close(&self) {
        if let Some(disk) = &self.0.disk
            && let Err(error) = disk.close().await
        {
            tracing::warn!(
                %error,
                "the chunk cache on disk was not closed cleanly; the next start reads those chunks \
                 from the bucket"
            );
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

    pub(super) fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// The stored bytes of a chunk, unverified.
    pub(super) async fn disk_get(&self, hash: &ChunkHash) -> Option<Bytes> {
        match self.disk.as_ref()?.get(hash).await {
            Ok(entry) => entry.map(|entry| entry.value().0.clone()),
            Err(error) => {
                tracing::debug!(
                    %error,
                    "a chunk cannot be read from the cache on disk; reading it from the bucket"
                );
                None
            }
        }
    }

    pub(super) fn disk_insert(&self, hash: ChunkHash, stored: &Bytes) {
        if let Some(disk) = &self.disk {
            // Owned, because `stored` may be a slice of a range request.
            disk.storage_writer(hash).insert(OnDisk(Bytes::copy_from_slice(stored)));
        }
    }

    pub(super) fn disk_remove(&self, hash: &ChunkHash) {
        if let Some(disk) = &self.disk {
            disk.remove(hash);
        }
    }
}

async fn open_disk(dir: &Path, bytes: u64) -> std::io::Result<HybridCache<ChunkHash, OnDisk>> {
    let failed = |error: foyer::Error| {
        std::io::Error::other(format!("chunk cache in {}: {error}", dir.display()))
    };
    let blocks = usize::try_from(bytes).unwrap_or(usize::MAX) / DISK_BLOCK_BYTES;
    let device = FsDeviceBuilder::new(dir)
        .with_capacity(blocks.max(2) * DISK_BLOCK_BYTES)
        .build()
        .map_err(failed)?;
    HybridCacheBuilder::new()
        .with_name("chunks-on-disk")
        .memory(DISK_MEMORY_BYTES)
        .with_weighter(|_: &ChunkHash, stored: &OnDisk| stored.0.len() + ENTRY_OVERHEAD)
        .storage()
        .with_io_engine_config(PsyncIoEngineConfig::new())
        .with_engine_config(BlockEngineConfig::new(device).with_block_size(DISK_BLOCK_BYTES))
        .with_recover_mode(RecoverMode::Quiet)
        .build()
        .await
        .map_err(failed)
}

/// A chunk as it is stored in its pack: compressed and sealed.
#[derive(Clone)]
struct OnDisk(Bytes);

impl Serialize for OnDisk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for OnDisk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = OnDisk;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a chunk's stored bytes")
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<OnDisk, E> {
                Ok(OnDisk(bytes.into()))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<OnDisk, E> {
                Ok(OnDisk(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}
