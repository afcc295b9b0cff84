//! The memory of all volumes of a process while the store is away: shares of one budget,
//! whatever their number.

use super::{World, run};
use crate::support::fault::FaultStore;
use crate::support::files::{GUARDED, name, root};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::fs::{FsError, FsMemory};
use zerofs_csi::volume::Attached;

const VOLUMES: usize = 256;
const UNFLUSHED: u64 = 4 << 20;
const NAMES: u64 = 2 << 20;
/// Inodes and directories that each volume may keep whatever the others have.
const NAMES_MIN: u64 = 40 << 10;
/// A change that had begun when the memory was full: a few rows.
const BEGUN: u64 = 16 << 10;

async fn create(volume: &Attached, n: u64) -> Result<(), FsError> {
    let name = name(&format!("a file with a name of usual length, number {n}"));
    volume.exported.create(&root(), volume.exported.root(), &name, GUARDED).await.map(drop)
}

/// Creates files until it is aborted, and counts them.
async fn fill(volume: Arc<Attached>, done: Arc<AtomicU64>) {
    for n in 0.. {
        if create(&volume, n).await.is_ok() {
            done.fetch_add(1, Ordering::SeqCst);
        } else {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Memory that the process has now, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Until nothing has been done for a while.
async fn until_still(done: &AtomicU64) -> u64 {
    let (mut last, mut since, began) = (0, Instant::now(), Instant::now());
    while since.elapsed() < Duration::from_secs(4) {
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "they go on without the store: {last} files"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = done.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

#[test]
fn many_volumes_without_the_store_stay_within_their_memory_and_go_on_with_it() {
    run(async {
        let (folder, store) = (tempfile::tempdir().unwrap(), FaultStore::memory());
        let cache = DbCache::new(4 << 20).with_unflushed(UNFLUSHED);
        let memory = FsMemory::new(8 << 20, NAMES);
        let world = World::builder("node-a").journals(folder.path()).settings(|settings| {
            (settings.cache, settings.memory) = (cache.clone(), memory.clone());
            settings.chunk_cache = ChunkCache::memory(4 << 20);
            settings.volumes_max = VOLUMES;
        });
        let world = world.create(store.quick_bucket()).await;
        let (mut open, at_first) = (Vec::new(), resident());
        for n in 0..VOLUMES {
            let volume = world.volume(&format!("v{n}")).await;
            open.push(Arc::new(world.attach(volume).await));
        }
        let opened = resident().saturating_sub(at_first);
        store.die();
        let done: Arc<AtomicU64> = Arc::default();
        let writers: Vec<_> =
            open.iter().map(|volume| tokio::spawn(fill(volume.clone(), done.clone()))).collect();
        let files = until_still(&done).await;
        let (rows, names) = (cache.unflushed(), memory.inodes_held());
        let full = resident().saturating_sub(at_first);
        println!(
            "{VOLUMES} volumes, {files} files: {rows} bytes of rows, {names} of inodes and \
             directories"
        );
        println!(
            "the process: {} bytes for each open volume, {} when all is full",
            opened / VOLUMES as u64,
            full / VOLUMES as u64
        );
        assert!(rows >= UNFLUSHED / 2, "that is what they wait for");
        assert!(rows <= UNFLUSHED + VOLUMES as u64 * BEGUN, "{rows} bytes of rows");
        assert!(
            names <= NAMES + (VOLUMES as u64) * NAMES_MIN,
            "{names} bytes of inodes and directories"
        );
        store.heal();
        let before = done.load(Ordering::SeqCst);
        let healed = Instant::now();
        while done.load(Ordering::SeqCst) < before + 20 * VOLUMES as u64 {
            assert!(
                healed.elapsed() < Duration::from_secs(120),
                "nothing goes on after the outage"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        writers.iter().for_each(tokio::task::JoinHandle::abort);
        for writer in writers {
            assert!(writer.await.is_err(), "it only ends when it is aborted");
        }
        let datasets: Vec<_> = open.iter().map(|volume| volume.dataset).collect();
        drop(open);
        for dataset in datasets {
            world.volumes.close(dataset).await.unwrap();
        }
        // A volume that is closed holds nothing, once the last of its tasks has ended.
        for _ in 0..300 {
            if (cache.unflushed(), memory.inodes_held()) == (0, 0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!((cache.unflushed(), memory.inodes_held()), (0, 0));
    });
}
