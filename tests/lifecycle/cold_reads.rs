//! Cold reads from a store where every request takes its time: few, large requests.

use super::fault::{FaultStore, Op};
use super::{World, noise, setup};
use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::Catalog;
use zerofs_csi::chunk::{ChunkCache, ChunkLimits, DiskSize};
use zerofs_csi::fs::api::{Caller, CreateHow, FileSystem, SetAttr, Stability};
use zerofs_csi::types::{EntryName, VolumeHandle};
use zerofs_csi::volume::{LeaseSettings, VolumeSettings, Volumes};

const LATENCY: Duration = Duration::from_millis(20);

async fn pool() -> (Arc<FaultStore>, World, VolumeHandle) {
    let store = FaultStore::memory();
    let bucket = Bucket::on(store.clone(), Path::default());
    let world = World::on(Catalog::create(bucket, None).await.unwrap(), "writer");
    let volume = world.create("volume", None).await.unwrap().handle;
    (store, world, volume)
}

/// A process with the default memory, and its disk cache in `dir`.
async fn process(dir: &std::path::Path) -> (Volumes, ChunkCache) {
    let limits = ChunkLimits { read_bytes: 21 << 20, ..ChunkLimits::cache(28 << 20) };
    let cache = ChunkCache::with_disk(limits, dir, DiskSize::Bytes(1 << 30)).await.unwrap();
    let settings = VolumeSettings { chunk_cache: cache.clone(), ..setup::settings("reader") };
    (Volumes::with_lease(settings, LeaseSettings::default()), cache)
}

fn pack_reads(store: &FaultStore) -> usize {
    store.log().iter().filter(|(op, key)| *op == Op::Get && key.starts_with("packs/")).count()
}

fn name(name: &str) -> EntryName {
    EntryName::try_from(name.as_bytes()).unwrap()
}

#[test]
fn a_large_file_takes_less_than_a_request_for_each_mib() {
    const MIB: u64 = 1 << 20;
    super::run(async {
        let (store, world, volume) = pool().await;
        let data = noise(7, 64 << 20);
        world.write(volume, "large", &data).await;
        let dir = tempfile::tempdir().unwrap();
        let (volumes, cache) = process(dir.path()).await;
        let open = volumes.open(&world.catalog, volume.dataset).await.unwrap();
        let root = open.fs.root();
        let (attr, _) = open.fs.lookup(&Caller::root(), root, b"large").await.unwrap();
        store.latency(LATENCY);
        store.clear_log();
        let reads =
            stream::iter(0..64)
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
        println!("{gets} requests for 64 MiB");
        assert!(reads.concat().concat() == data);
        assert!(gets < 48, "{gets} requests for 64 MiB");
        drop(open);
        volumes.close(volume.dataset).await.unwrap();
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
        let file = |n: usize| name(&format!("file-{n:05}"));
        let (caller, how) = (Caller::root(), CreateHow::Unchecked(SetAttr::default()));
        let open = world.volumes.open(&world.catalog, volume.dataset).await.unwrap();
        for n in 0..FILES {
            let made = open.fs.create(&caller, open.fs.root(), &file(n), how).await.unwrap();
            let bytes = Bytes::from(data(n));
            open.fs.write(&caller, made.attr.file, 0, bytes, Stability::Unstable).await.unwrap();
        }
        open.fs.sync().await.unwrap();
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (volumes, cache) = process(dir.path()).await;
        let open = volumes.open(&world.catalog, volume.dataset).await.unwrap();
        store.latency(LATENCY);
        store.clear_log();
        let fs = &open.fs;
        stream::iter(0..FILES)
            .for_each_concurrent(16, |n| async move {
                let (attr, _) =
                    fs.lookup(&Caller::root(), fs.root(), file(n).as_bytes()).await.unwrap();
                let read = fs.read(&Caller::root(), attr.file, 0, 8192).await.unwrap();
                assert!(read.data.concat() == data(n), "file {n}");
            })
            .await;
        let (packs, all) = (pack_reads(&store), store.log().len());
        store.latency(Duration::ZERO);
        println!("{FILES} files of 6 kB: {packs} requests for data, {all} in all");
        // Nine MB in blocks of a MiB, each after a first chunk of it.
        assert!(packs <= 100, "{packs} requests for data");
        drop(open);
        volumes.close(volume.dataset).await.unwrap();
        cache.close().await;
    });
}
