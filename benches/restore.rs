//! A tree of many files put back in place, by reference: requests, time and CPU. The data is in
//! packs, none of which is read or written.
//!
//! `cargo bench --bench restore [-- FILES]`: 10,000 files of 6,000 bytes, 100 in a folder, on a
//! store in memory, on a folder, and with 20 ms for each request. TMPDIR chooses the disk.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench stops by panicking")]

#[path = "../tests/support/mod.rs"]
mod tests;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::fault::FaultStore;
use tests::files as calls;
use tests::world::World;
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::control::RestoreInPlace;
use zerofs_csi::fs::FsMemory;
use zerofs_csi::types::{Incarnation, SnapshotHandle, VolumeHandle};
use zerofs_csi::volume::VolumeGuard;

const FILE_BYTES: usize = 6_000;
const FOLDER_FILES: usize = 100;
const LATENCY: Duration = Duration::from_millis(20);
/// Files written at once.
const LANES: usize = 64;

struct Process {
    store: Arc<FaultStore>,
    world: World,
}

impl Process {
    async fn new(store: Arc<dyn ObjectStore>, journals: &Path) -> Self {
        let store = FaultStore::over(store);
        let bench = World::builder("bench").journals(journals).settings(|settings| {
            settings.chunk_cache = ChunkCache::memory(32 << 20);
            settings.flush_interval = Duration::from_secs(2);
            settings.memory = FsMemory::new(64 << 20, 48 << 20);
        });
        Self { world: bench.create(store.bucket()).await, store }
    }
}

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// `tree/<folder>/<file>`.
async fn fill(volume: &VolumeGuard, files: usize) {
    let tree = calls::top::mkdir(&*volume.fs, "tree").await;
    let mut folders = Vec::new();
    for n in 0..files.div_ceil(FOLDER_FILES) {
        folders.push(calls::mkdir(&*volume.fs, tree, &format!("folder-{n}")).await);
    }
    let (mut tasks, folders) = (tokio::task::JoinSet::new(), Arc::new(folders));
    for lane in 0..LANES {
        let (volume, folders) = (volume.clone(), folders.clone());
        tasks.spawn(async move {
            for n in (lane..files).step_by(LANES) {
                let dir = folders[n / FOLDER_FILES];
                let file = calls::create(&*volume.fs, dir, &format!("file-{n}")).await;
                let mut data =
                    blake3::hash(&n.to_le_bytes()).as_bytes().repeat(FILE_BYTES / 32 + 1);
                data.truncate(FILE_BYTES);
                calls::write_at(&*volume.fs, file, 0, &data).await;
            }
        });
    }
    tasks.join_all().await;
    volume.fs.sync().await.unwrap();
}

async fn measure(what: &str, process: &Process, volume: VolumeHandle, wanted: &RestoreInPlace) {
    let logged = process.store.log().len();
    let (before, wall, busy) = (process.world.bucket().requests(), Instant::now(), cpu());
    let restored =
        process.world.controller.restore_in_place(volume, wanted, &|_| ()).await.unwrap();
    let (took, busy, made) =
        (wall.elapsed(), cpu().saturating_sub(busy), process.world.bucket().requests() - before);
    let packs =
        process.store.log()[logged..].iter().filter(|(_, key)| key.starts_with("packs/")).count();
    println!(
        "{what:<40} {:>6} objects in {:>8.1} ms, {:>6.1} us CPU each: {:>4} GETs, {:>4} PUTs, \
         {:>3} LISTs, {packs} for data",
        restored.objects,
        took.as_secs_f64() * 1e3,
        busy.as_secs_f64() * 1e6 / restored.objects as f64,
        made.get,
        made.put,
        made.list,
    );
    assert_eq!(packs, 0, "a restore in place reads and writes no data");
}

fn wanted(snapshot: SnapshotHandle, to: &str, overwrite: bool) -> RestoreInPlace {
    let call = Incarnation::random();
    RestoreInPlace {
        call,
        snapshot: snapshot.snapshot,
        from: "tree".into(),
        to: to.into(),
        overwrite,
    }
}

async fn suite(what: &str, store: Arc<dyn ObjectStore>, latency: Option<Duration>, files: usize) {
    let journals = tempfile::tempdir().unwrap();
    let process = Process::new(store, journals.path()).await;
    let volume = process.world.volume("a").await;
    let open = process.world.open(volume).await;
    fill(&open, files).await;
    let cut = process.world.snapshot(volume, "cut").await;
    if let Some(each) = latency {
        process.store.latency(each);
    }
    measure(&format!("{what}: beside the original"), &process, volume, &wanted(cut, "copy", false))
        .await;
    measure(&format!("{what}: over the original"), &process, volume, &wanted(cut, "tree", true))
        .await;
    process.world.close(open).await;
    measure(
        &format!("{what}: the volume is open nowhere"),
        &process,
        volume,
        &wanted(cut, "other", false),
    )
    .await;
}

fn main() {
    let files = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(10_000);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        runtime.worker_threads(2).enable_all().thread_stack_size(8 << 20).build().unwrap();
    runtime.block_on(async {
        suite("memory", Arc::new(InMemory::new()), None, files).await;
        let folder = tempfile::tempdir().unwrap();
        suite(
            "folder",
            Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap().with_fsync(true)),
            None,
            files,
        )
        .await;
        suite("20 ms a request", Arc::new(InMemory::new()), Some(LATENCY), files).await;
    });
}
