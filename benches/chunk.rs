//! MB/s of chunks: add to stored, read cold, read warm, on a store in memory and on a folder, plain
//! and encrypted.
//!
//! `cargo bench --bench chunk [-- MIB]`. CPU is the whole process's, the noise's making excluded.

#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::bucket::Bucket;
use zerofs_csi::chunk::{ChunkCache, ChunkRef, ChunkStore, Codec};
use zerofs_csi::crypto::{Keyring, Secret, WrappedKey};
use zerofs_csi::types::{Epoch, FamilyId, Incarnation, PoolId};

const POOL: PoolId = PoolId::from_bytes([1; 16]);
const FAMILY: FamilyId = FamilyId::from_bytes([2; 16]);

fn cpu() -> Duration {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(usage.tv_sec.try_into().unwrap_or(0), usage.tv_nsec.try_into().unwrap_or(0))
}

struct Meter {
    start: Instant,
    cpu: Duration,
}

impl Meter {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu() }
    }

    fn show(&self, what: &str, bytes: usize, more: &str) {
        let (wall, cpu) = (self.start.elapsed().as_secs_f64(), (cpu() - self.cpu).as_secs_f64());
        let mb = bytes as f64 / 1e6;
        let per_gib = cpu * (1 << 30) as f64 / bytes as f64;
        println!("{what:<52} {:>8.0} MB/s  {per_gib:>6.2} CPU s/GiB  {more}", mb / wall);
    }
}

fn noise(chunk: usize, mib: usize) -> Vec<Bytes> {
    let mut bytes = vec![0; mib << 20];
    blake3::Hasher::new().update(&chunk.to_le_bytes()).finalize_xof().fill(&mut bytes);
    let bytes = Bytes::from(bytes);
    (0..bytes.len() / chunk).map(|n| bytes.slice(n * chunk..(n + 1) * chunk)).collect()
}

fn text(chunk: usize, mib: usize) -> Vec<Bytes> {
    let line = |n: usize| {
        format!("{n} {:x} the quick brown fox {}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n % 977)
            .into_bytes()
    };
    let bytes: Vec<u8> = (0..).flat_map(line).take(mib << 20).collect();
    let bytes = Bytes::from(bytes);
    (0..bytes.len() / chunk).map(|n| bytes.slice(n * chunk..(n + 1) * chunk)).collect()
}

/// 4 MiB at an add, four adds at once, as background flushes do it.
async fn write(store: &ChunkStore, codec: Codec, raw: Vec<Bytes>) -> Vec<ChunkRef> {
    let packer = store.packer(Incarnation::random(), Epoch(1), codec);
    let per_add = ((4 << 20) / raw[0].len()).max(1);
    let adds: Vec<Vec<Bytes>> = raw.chunks(per_add).map(<[Bytes]>::to_vec).collect();
    let adds = stream::iter(adds).map(|raw| {
        let packer = packer.clone();
        async move {
            let packing = packer.add(raw).await.unwrap();
            let stored = packing.stored_in_background().await.unwrap();
            let refs = stored.refs().to_vec();
            stored.settle();
            refs
        }
    });
    adds.buffered(8).concat().await
}

/// 1 MiB at a read, 16 MiB ahead, as a sequential reader does it.
async fn read(store: &ChunkStore, refs: &[ChunkRef]) -> usize {
    let per_read = ((1 << 20) / refs[0].raw_len as usize).max(1);
    let ahead = 16 * per_read;
    let mut bytes = 0;
    for (n, chunks) in refs.chunks(per_read).enumerate() {
        if n % 8 == 0 {
            let next = refs.iter().skip(n * per_read).take(ahead).copied().collect();
            store.prefetch(next).await;
        }
        bytes += store.read(chunks).await.unwrap().iter().map(Bytes::len).sum::<usize>();
    }
    bytes
}

async fn run(name: &str, bucket: &Bucket, keyring: &Keyring, codec: Codec, raw: Vec<Bytes>) {
    let bytes: usize = raw.iter().map(Bytes::len).sum();
    let fresh =
        |mib: u64| ChunkStore::new(bucket.clone(), FAMILY, keyring, ChunkCache::memory(mib << 20));
    let puts = bucket.requests().put;
    let meter = Meter::start();
    let refs = write(&fresh(64), codec, raw).await;
    let puts_per_gib = (bucket.requests().put - puts) as f64 * (1 << 30) as f64 / bytes as f64;
    let stored: u64 = refs.iter().map(|chunk| u64::from(chunk.stored_len)).sum();
    let ratio = stored as f64 / bytes as f64;
    meter.show(
        &format!("{name} add+stored"),
        bytes,
        &format!("{puts_per_gib:.0} PUTs/GiB, {ratio:.3} stored per byte"),
    );
    let gets = bucket.requests().get;
    let reader = fresh((bytes >> 20) as u64 * 2);
    let meter = Meter::start();
    assert_eq!(read(&reader, &refs).await, bytes);
    meter.show(
        &format!("{name} read cold"),
        bytes,
        &format!("{} GETs", bucket.requests().get - gets),
    );
    let meter = Meter::start();
    assert_eq!(read(&reader, &refs).await, bytes);
    meter.show(&format!("{name} read warm"), bytes, "");
    reader
        .delete(&reader.list().await.unwrap().iter().map(|p| p.pack).collect::<Vec<_>>())
        .await
        .unwrap();
}

#[tokio::main]
async fn main() {
    let mib = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(512);
    let encrypted = WrappedKey::create(POOL, &Secret::new("a passphrase for the bench")).unwrap().1;
    let dir = tempfile::tempdir().unwrap();
    for (place, bucket) in [
        ("memory", Bucket::memory()),
        (
            "folder",
            Bucket::on(
                Arc::new(LocalFileSystem::new_with_prefix(dir.path()).unwrap()),
                Path::default(),
            ),
        ),
    ] {
        for (sealing, keyring) in [("plain", &Keyring::plain(POOL)), ("encrypted", &encrypted)] {
            for kib in [4, 128, 1024] {
                let name = format!("{place} {sealing} lz4 noise {kib} KiB");
                run(&name, &bucket, keyring, Codec::Lz4, noise(kib << 10, mib)).await;
            }
            run(
                &format!("{place} {sealing} lz4 text 128 KiB"),
                &bucket,
                keyring,
                Codec::Lz4,
                text(128 << 10, mib),
            )
            .await;
        }
        run(
            &format!("{place} plain zstd text 128 KiB"),
            &bucket,
            &Keyring::plain(POOL),
            Codec::Zstd,
            text(128 << 10, mib),
        )
        .await;
    }
}
