//! Cold reads from a store where every request takes its time: few, large requests.

use super::{World, noise};
use crate::support::fault::{FaultStore, Op};
use crate::support::files::{top, write_at};
use futures::{StreamExt, stream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::chunk::{ChunkCache, ChunkLimits, DiskSize};
use zerofs_csi::fs::api::{Caller, FileSystem};
use zerofs_csi::types::VolumeHandle;

const LATENCY: Duration = Duration::from_millis(20);

async fn pool() -> (Arc<FaultStore>, World, VolumeHandle) {
    let store = FaultStore::memory();
    let world = World::builder("writer").create(store.bucket()).await;
    let volume = world.volume("volume").await;
    (store, world, volume)
}

/// A process with the default memory, and its disk cache in `dir`.
async fn process(world: &World, dir: &Path) -> (World, ChunkCache) {
    let limits = ChunkLimits { read_bytes: 21 << 20, ..ChunkLimits::cache(28 << 20) };
    let cache = ChunkCache::with_disk(limits, dir, DiskSize::Bytes(1 << 30)).await.unwrap();
    let reader = World::builder("reader").settings(|settings| settings.chunk_cache = cache.clone());
    (reader.on(world.catalog.clone()), cache)
}

fn pack_reads(store: &FaultStore) -> usize {
    store.log().iter().filter(|(op, key)| *op == Op::Get && key.starts_with("packs/")).count()
}

/// One for each step of the read-ahead (4 MiB), and some before the reader is known to go in order,
/// or where it is faster than the read-ahead.
#[test]
fn a_large_file_takes_less_than_a_request_for_each_two_mib() {
    const MIB: u64 = 1 << 20;
    super::run(async {
        let mib = 64 * super::size();
        let (store, world, volume) = pool().await;
        let data = noise(7, (mib << 20) as usize);
        world.write(volume, "large", &data).await;
        let dir = tempfile::tempdir().unwrap();
        let (reader, cache) = process(&world, dir.path()).await;
        let open = reader.open(volume).await;
        let attr = top::child(&*open.fs, "large").await.unwrap();
        store.latency(LATENCY);
        store.clear_log();
        let reads =
            stream::iter(0..mib)
                .map(|n| {
                    let (fs, file) = (&open.fs, attr.file);
                    async move {
                        fs.read(&Caller::root(), file, n * MIB, MIB as u32).await.unwrap().data
                    }
                })
                .buffered(8)
                .collect::<Vec<_>>()
                .await;
        let gets = pack_reads(&store);
        store.latency(Duration::ZERO);
        println!("{gets} requests for {mib} MiB");
        assert!(reads.concat().concat() == data);
        assert!((gets as u64) < mib / 2, "{gets} requests for {mib} MiB");
        reader.close(open).await;
        cache.close().await;
    });
}

/// As `tar`, `git` and `cp` leave them: written one after another, synced once.
#[test]
fn small_files_that_were_written_together_come_together() {
    const FILES: usize = 1500;
    super::run(async {
        let (store, world, volume) = pool().await;
        let data = |n: usize| noise(n as u64, 6000);
        let file = |n: usize| format!("file-{n:05}");
        let open = world.open(volume).await;
        for n in 0..FILES {
            let made = top::create(&*open.fs, &file(n)).await;
            write_at(&*open.fs, made, 0, &data(n)).await;
        }
        open.fs.sync().await.unwrap();
        world.close(open).await;

        let dir = tempfile::tempdir().unwrap();
        let (reader, cache) = process(&world, dir.path()).await;
        let open = reader.open(volume).await;
        store.latency(LATENCY);
        store.clear_log();
        let fs = &open.fs;
        stream::iter(0..FILES)
            .for_each_concurrent(16, |n| async move {
                assert!(top::content(&**fs, &file(n)).await == data(n), "file {n}");
            })
            .await;
        let (packs, all) = (pack_reads(&store), store.log().len());
        store.latency(Duration::ZERO);
        println!("{FILES} files of 6 kB: {packs} requests for data, {all} in all");
        // Nine MB in blocks of a MiB, each after a first chunk of it.
        assert!(packs <= 100, "{packs} requests for data");
        reader.close(open).await;
        cache.close().await;
    });
}
