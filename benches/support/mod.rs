//! A process on a pool, as the benches of whole operations need it, and what they measure.

#![allow(dead_code, reason = "no bench needs all of it")]

#[path = "../../tests/support/mod.rs"]
pub mod tests;

use object_store::local::LocalFileSystem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::fault::FaultStore;
use tests::files;
use tests::world::{World, new_volume};
use zerofs_csi::bucket::{Bucket, Requests};
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::chunk::{ChunkCache, ChunkLimits};
use zerofs_csi::control::{Controller, NewVolume, Source};
use zerofs_csi::fs::api::FileRef;
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::fs::{Fs, FsMemory};
use zerofs_csi::types::VolumeHandle;
use zerofs_csi::volume::Volumes;

/// A process with the memory that one has by default.
pub struct Process {
    pub catalog: Catalog,
    pub volumes: Volumes,
    pub controller: Arc<Controller>,
}

impl Process {
    pub fn new(catalog: Catalog, journals: Option<PathBuf>) -> Self {
        let limits = ChunkLimits {
            cache_bytes: 35 << 20,
            write_bytes: 35 << 20,
            read_bytes: 17 << 20,
            dedup_bytes: 8 << 20,
        };
        let bench = World::builder("bench").settings(|settings| {
            settings.journal_dir = journals;
            settings.cache = DbCache::new(17 << 20);
            settings.chunk_cache = ChunkCache::limited(limits);
            settings.flush_interval = Duration::from_secs(2);
            settings.memory = FsMemory::new(52 << 20, 43 << 20);
            settings.volumes_max = 256;
        });
        let World { catalog, volumes, controller } = bench.on(catalog);
        Self { catalog, volumes, controller }
    }

    pub async fn create(
        &self,
        name: &str,
        source: Option<Source>,
        properties: Properties,
    ) -> VolumeHandle {
        let new = NewVolume { properties, ..new_volume(name, source) };
        self.controller.create_volume(None, new).await.expect("a volume").handle
    }
}

/// A folder as a store, fsync on, each request taking so much longer.
pub fn folder(path: &Path, request: Duration) -> Bucket {
    let store = FaultStore::over(Arc::new(
        LocalFileSystem::new_with_prefix(path).expect("a store").with_fsync(true),
    ));
    store.latency(request);
    store.bucket()
}

/// A bucket in memory, and its store, whose requests may be made to take time.
pub fn memory() -> (Bucket, Arc<FaultStore>) {
    let store = FaultStore::memory();
    (store.bucket(), store)
}

pub async fn mkdir(fs: &Fs, dir: FileRef, called: &str) -> FileRef {
    files::mkdir(fs, dir, called).await
}

/// A new file, which nobody has committed.
pub async fn file(fs: &Fs, dir: FileRef, called: &str, content: &[u8]) -> FileRef {
    let file = files::create(fs, dir, called).await;
    files::write_at(fs, file, 0, content).await;
    file
}

/// CPU time of this process, all threads.
pub fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Returns when the process has been idle for a while: what goes on in the background has ended.
pub async fn idle() {
    loop {
        let before = cpu();
        tokio::time::sleep(Duration::from_secs(2)).await;
        if cpu().saturating_sub(before) < Duration::from_millis(100) {
            return;
        }
    }
}

/// MB of memory, at its peak since the last [`Meter::start`].
pub fn peak_mb() -> u64 {
    status_mb("VmHWM:")
}

/// MB of memory now.
pub fn resident_mb() -> u64 {
    status_mb("VmRSS:")
}

fn status_mb(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap_or(0) / 1000
}

/// Time, CPU and requests from one point on.
pub struct Meter {
    bucket: Bucket,
    start: Instant,
    cpu: Duration,
    requests: Requests,
}

#[derive(Clone, Copy)]
pub struct Measured {
    pub wall: Duration,
    pub cpu: Duration,
    pub requests: Requests,
}

impl Meter {
    pub fn start(bucket: &Bucket) -> Self {
        // The peak of the memory counts from here on.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Self {
            bucket: bucket.clone(),
            start: Instant::now(),
            cpu: cpu(),
            requests: bucket.requests(),
        }
    }

    pub fn stop(&self) -> Measured {
        let requests = self.bucket.requests() - self.requests;
        Measured { wall: self.start.elapsed(), cpu: cpu().saturating_sub(self.cpu), requests }
    }
}

/// The median by time.
pub fn median(mut rounds: Vec<Measured>) -> Measured {
    rounds.sort_by_key(|round| round.wall);
    rounds[rounds.len() / 2]
}

pub fn requests(of: Requests) -> String {
    format!(
        "{:>3} PUT {:>3} GET {:>3} LIST {:>3} HEAD {:>3} DELETE",
        of.put, of.get, of.list, of.head, of.delete
    )
}
