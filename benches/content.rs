//! File data, called directly: no protocol. Sequential and random, written and read, warm and cold,
//! on a store in memory and on a folder with fsync, plain and encrypted, with the memory that a
//! process has by default. Prints MB/s, the process' CPU seconds a GiB, requests a GiB, bytes
//! stored per byte written (folders only: by the kernel's count) and the peak of the resident
//! memory.
//!
//! `cargo bench --bench content -- [MIB [KIB,…]]`: the file's size and the record sizes to try.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench stops by panicking")]

use bytes::Bytes;
use futures::{StreamExt, stream};
use object_store::local::LocalFileSystem;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::bucket::{Bucket, Requests};
use zerofs_csi::chunk::{ChunkCache, ChunkLimits, ChunkStore, Codec};
use zerofs_csi::crypto::{Keyring, Secret, WrappedKey};
use zerofs_csi::fs::api::*;
use zerofs_csi::fs::db::{DbCache, DbPlace};
use zerofs_csi::fs::{Fs, FsMemory, FsOptions, FsProperties, RootAttr, SyncMode};
use zerofs_csi::types::{EntryName, FamilyId, Incarnation, IoLimits, PoolId, WallClock};

const POOL: PoolId = PoolId::from_bytes([1; 16]);
const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const STREAMS: usize = 8;
const LANES: usize = 16;

/// A dataset and what is needed to open it again with nothing cached.
struct Place {
    db: DbPlace,
    keyring: Keyring,
    record_bytes: u32,
}

impl Place {
    fn new(bucket: Bucket, keyring: Keyring, record_bytes: u32) -> Self {
        let incarnation = Incarnation::random();
        let sealer = keyring.database_sealer(FamilyId::from(incarnation));
        Self {
            db: DbPlace::new(bucket, incarnation, sealer, DbCache::new(17 << 20)),
            keyring,
            record_bytes,
        }
    }

    async fn open(&self) -> Arc<Fs> {
        let family = FamilyId::from(self.db.incarnation);
        let limits = ChunkLimits {
            cache_bytes: 35 << 20,
            write_bytes: 35 << 20,
            read_bytes: 17 << 20,
            dedup_bytes: 8 << 20,
        };
        let chunks = ChunkStore::new(
            self.db.bucket.clone(),
            family,
            &self.keyring,
            ChunkCache::limited(limits),
        );
        let mut db = self.db.clone();
        db.cache = DbCache::new(17 << 20);
        let options = FsOptions {
            properties: FsProperties {
                sync: SyncMode::Standard,
                quota_bytes: None,
                quota_inodes: None,
                record_bytes: self.record_bytes,
                codec: Codec::Lz4,
                shows_snapshots: false,
                limits: IoLimits::default(),
            },
            flush_interval: Duration::from_secs(2),
            memory: FsMemory::new(52 << 20, 43 << 20),
            journal: None,
            root: RootAttr { uid: 0, gid: 0, mode: 0o755 },
            clock: WallClock::default(),
        };
        Arc::new(Fs::open(&db, chunks, options).await.expect("it opens"))
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// A figure of a file below /proc/self.
fn proc(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0)
}

struct Meter {
    bucket: Bucket,
    is_folder: bool,
    start: Instant,
    cpu: Duration,
    requests: Requests,
    written: u64,
}

impl Meter {
    fn start(bucket: &Bucket, is_folder: bool) -> Self {
        // The peak counts from here on.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let requests = bucket.requests();
        Self {
            bucket: bucket.clone(),
            is_folder,
            start: Instant::now(),
            cpu: cpu(),
            requests,
            written: proc("io", "wchar:"),
        }
    }

    fn show(&self, what: &str, ops: usize, bytes: usize) {
        let (wall, cpu) = (self.start.elapsed().as_secs_f64(), (cpu() - self.cpu).as_secs_f64());
        let requests = self.bucket.requests() - self.requests;
        let gib = bytes as f64 / (1 << 30) as f64;
        let stored = (proc("io", "wchar:") - self.written) as f64 / bytes as f64;
        let stored = if self.is_folder { format!("{stored:>6.2}") } else { "     -".to_owned() };
        println!(
            "{what:<44} {:>8.0} MB/s {:>9.0} /s {:>6.2} CPU s/GiB {:>7.1} us/op {:>6.0} PUT/GiB \
             {:>7.0} GET/GiB {stored} stored/byte {:>5} MB peak",
            bytes as f64 / 1e6 / wall,
            ops as f64 / wall,
            cpu / gib,
            cpu * 1e6 / ops as f64,
            requests.put as f64 / gib,
            requests.get as f64 / gib,
            proc("status", "VmHWM:") / 1000,
        );
    }
}

/// Bytes that neither compress nor repeat: a pool of noise, marked in every block.
struct Noise {
    pool: Vec<u8>,
    mark: u64,
}

impl Noise {
    fn new() -> Self {
        let mut pool = vec![0; 8 * MIB];
        blake3::Hasher::new().update(b"content").finalize_xof().fill(&mut pool);
        Self { pool, mark: 0 }
    }

    fn next(&mut self, len: usize) -> Bytes {
        let at = (self.mark as usize * 4099) % (self.pool.len() - len);
        let mut bytes = self.pool[at..at + len].to_vec();
        for block in bytes.chunks_mut(BLOCK) {
            self.mark += 1;
            block[..8]
                .copy_from_slice(&self.mark.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        bytes.into()
    }
}

fn scatter(turn: usize, count: usize) -> usize {
    (turn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(29) as usize % count
}

async fn write(fs: &Fs, file: FileRef, writes: impl Iterator<Item = (u64, Bytes)>, at_once: usize) {
    let calls = stream::iter(writes).map(|(at, data)| async move {
        fs.write(&Caller::root(), file, at, data, Stability::Unstable).await.expect("written");
    });
    calls.buffer_unordered(at_once).collect::<()>().await;
    fs.commit(&Caller::root(), file, 0, 0).await.expect("committed");
}

/// Each call in a task of its own, as an edge does it.
async fn read(
    fs: &Arc<Fs>,
    file: FileRef,
    at: impl Iterator<Item = u64>,
    len: usize,
    at_once: usize,
) {
    let calls = stream::iter(at).map(|at| {
        let fs = fs.clone();
        async move {
            let out = fs.read(&Caller::root(), file, at, len as u32).await.expect("read");
            assert_eq!(out.data.iter().map(Bytes::len).sum::<usize>(), len);
        }
    });
    calls.buffer_unordered(at_once).collect::<()>().await;
}

async fn reads(
    name: &str,
    fs: &Arc<Fs>,
    place: &Place,
    file: FileRef,
    mib: usize,
    is_folder: bool,
) {
    let meter = || Meter::start(&place.db.bucket, is_folder);
    let sequential = || (0..mib).map(|n| (n * MIB) as u64);
    let m = meter();
    read(fs, file, sequential(), MIB, STREAMS).await;
    m.show(&format!("{name} read sequential, cold"), mib, mib * MIB);
    let m = meter();
    read(fs, file, sequential(), MIB, STREAMS).await;
    m.show(&format!("{name} read sequential, again"), mib, mib * MIB);
    for (what, count, ops) in
        [("whole file", mib * MIB / BLOCK, 20_000), ("16 MiB of it", 16 * MIB / BLOCK, 100_000)]
    {
        if what != "whole file" {
            // Warm: every block has been read once.
            read(fs, file, (0..16).map(|n| (n * MIB) as u64), MIB, STREAMS).await;
        }
        let m = meter();
        read(fs, file, (0..ops).map(|n| (scatter(n, count) * BLOCK) as u64), BLOCK, LANES).await;
        m.show(&format!("{name} read 4 KiB at random, {what}"), ops, ops * BLOCK);
    }
}

async fn run(name: &str, place: &Place, is_folder: bool, mib: usize) {
    let fs = place.open().await;
    let how = CreateHow::Unchecked(SetAttr::default());
    let name_of = EntryName::try_from(&b"large"[..]).expect("a name");
    let file =
        fs.create(&Caller::root(), fs.root(), &name_of, how).await.expect("created").attr.file;
    let mut noise = Noise::new();
    let meter = || Meter::start(&place.db.bucket, is_folder);
    let m = meter();
    write(&fs, file, (0..mib).map(|n| ((n * MIB) as u64, noise.next(MIB))), STREAMS).await;
    m.show(&format!("{name} write sequential"), mib, mib * MIB);
    fs.close().await.expect("closed");
    let fs = place.open().await;
    reads(name, &fs, place, file, mib, is_folder).await;
    let (blocks, ops) = (mib * MIB / BLOCK, 20_000);
    for round in 0..3 {
        let m = meter();
        let at = |n: usize| (scatter(round * ops + n, blocks) * BLOCK) as u64;
        write(&fs, file, (0..ops).map(|n| (at(n), noise.next(BLOCK))), LANES).await;
        // Data that moves to packs later is counted too.
        fs.sync().await.expect("synced");
        m.show(&format!("{name} write 4 KiB at random, round {}", round + 1), ops, ops * BLOCK);
    }
    let m = meter();
    read(&fs, file, (0..mib).map(|n| (n * MIB) as u64), MIB, STREAMS).await;
    m.show(&format!("{name} read sequential, after it"), mib, mib * MIB);
    fs.close().await.expect("closed");
}

fn main() {
    zerofs_csi::app::bound_allocator();
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let mib = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(512);
    let records = args.next().unwrap_or_else(|| "32".to_owned());
    let folder_only = args.next().is_some();
    let records: Vec<u32> = records.split(',').map(|kib| kib.parse().expect("KiB")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let encrypted =
            WrappedKey::create(POOL, &Secret::new("a passphrase for the bench")).unwrap().1;
        for kib in records {
            for (sealing, keyring) in [("encrypted", &encrypted), ("plain", &Keyring::plain(POOL))]
            {
                if !folder_only {
                    let memory = Place::new(Bucket::memory(), keyring.clone(), kib << 10);
                    run(&format!("{kib} KiB memory {sealing}"), &memory, false, mib).await;
                }
                let dir = tempfile::tempdir().expect("a folder");
                let store =
                    LocalFileSystem::new_with_prefix(dir.path()).expect("a store").with_fsync(true);
                let bucket = Bucket::on(Arc::new(store), object_store::path::Path::default());
                run(
                    &format!("{kib} KiB folder {sealing}"),
                    &Place::new(bucket, keyring.clone(), kib << 10),
                    true,
                    mib,
                )
                .await;
            }
        }
    });
}
