//! A process on a pool, as the benches of whole operations need it, and what they measure.

#![allow(dead_code, reason = "no bench needs all of it")]

#[path = "../../tests/support/fault.rs"]
#[allow(clippy::unwrap_used, reason = "a bench stops by panicking")]
mod fault;
#[path = "../../tests/support/setup.rs"]
#[allow(clippy::unwrap_used, reason = "a bench stops by panicking")]
mod setup;

use fault::FaultStore;
use object_store::local::LocalFileSystem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::bucket::{Bucket, Requests};
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::chunk::{ChunkCache, ChunkLimits};
use zerofs_csi::control::{Controller, NewVolume, Source};
use zerofs_csi::fs::api::{Caller, CreateHow, FileRef, FileSystem, SetAttr, Stability};
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::fs::{Fs, FsMemory};
use zerofs_csi::types::{EntryName, VolumeHandle};
use zerofs_csi::volume::{VolumeSettings, Volumes};

/// A process with the memory that one has by default.
pub struct Process {
    pub catalog: Catalog,
    pub volumes: Volumes,
    pub controller: Controller,
}

impl Process {
    pub fn new(catalog: Catalog, journal_dir: Option<PathBuf>) -> Self {
        let limits = ChunkLimits {
            cache_bytes: 35 << 20,
            write_bytes: 35 << 20,
            read_bytes: 17 << 20,
            dedup_bytes: 8 << 20,
        };
        let settings = VolumeSettings {
            journal_dir,
            cache: DbCache::new(17 << 20),
            chunk_cache: ChunkCache::limited(limits),
            flush_interval: Duration::from_secs(2),
            memory: FsMemory::new(52 << 20, 43 << 20),
            ..setup::settings("bench")
        };
        let volumes = Volumes::new(settings);
        let controller = setup::controller(&catalog, &volumes);
        Self { catalog, volumes, controller }
    }

    pub async fn create(
        &self,
        name: &str,
        source: Option<Source>,
        properties: Properties,
    ) -> VolumeHandle {
        let new = NewVolume { properties, ..setup::new_volume(name, source) };
        self.controller.create_volume(None, new).await.expect("a volume").handle
    }
}

/// A folder as a store, fsync on, each request taking so much longer.
pub fn folder(path: &Path, request: Duration) -> Bucket {
    let store = FaultStore::over(Arc::new(
        LocalFileSystem::new_with_prefix(path).expect("a store").with_fsync(true),
    ));
    store.latency(request);
    Bucket::on(store, object_store::path::Path::default())
}

/// A bucket in memory, and its store, whose requests may be made to take time.
pub fn memory() -> (Bucket, Arc<FaultStore>) {
    let store = FaultStore::memory();
    (Bucket::on(store.clone(), object_store::path::Path::default()), store)
}

pub fn name(name: &str) -> EntryName {
    EntryName::try_from(name.as_bytes()).expect("a name")
}

pub async fn mkdir(fs: &Fs, dir: FileRef, called: &[u8]) -> FileRef {
    let called = EntryName::try_from(called).expect("a name");
    fs.mkdir(&Caller::root(), dir, &called, SetAttr::default())
        .await
        .expect("a directory")
        .attr
        .file
}

pub async fn file(fs: &Fs, dir: FileRef, called: &[u8], content: &[u8]) -> FileRef {
    let called = EntryName::try_from(called).expect("a name");
    let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
    let file = fs.create(&Caller::root(), dir, &called, how).await.expect("a file").attr.file;
    for (n, part) in content.chunks(1 << 20).enumerate() {
        let part = bytes::Bytes::copy_from_slice(part);
        fs.write(&Caller::root(), file, (n as u64) << 20, part, Stability::Unstable)
            .await
            .expect("a write");
    }
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
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
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
