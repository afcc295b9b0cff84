//! Collection of a large pool: time, CPU, requests and memory of a pass that finds nothing, and of
//! one that has half to remove.
//!
//! `cargo bench --bench collect [-- CHUNKS]`: chunks of 4 KiB in as many files of 64; every second
//! file is removed. TMPDIR chooses the disk.

#![allow(clippy::unwrap_used, reason = "a bench stops by panicking")]

mod support;

use std::time::Duration;
use support::tests::world::close_all;
use support::{Meter, Process, file, folder, idle, mkdir, peak_mb, requests};
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::chunk::Codec;
use zerofs_csi::control::Accuracy;
use zerofs_csi::fs::api::{Caller, FileSystem};
use zerofs_csi::types::{EntryName, VolumeHandle};

const CHUNK: usize = 4096;
const CHUNKS_A_FILE: usize = 64;
const FILES_A_DIR: usize = 512;

fn noise(seed: usize, bytes: &mut [u8]) {
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(bytes);
}

async fn fill(process: &Process, volume: VolumeHandle, chunks: usize) {
    let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
    let mut content = vec![0; CHUNK * CHUNKS_A_FILE];
    let mut dir = open.fs.root();
    for n in 0..chunks / CHUNKS_A_FILE {
        if n % FILES_A_DIR == 0 {
            dir = mkdir(&open.fs, open.fs.root(), &format!("d{}", n / FILES_A_DIR)).await;
        }
        noise(n, &mut content);
        file(&open.fs, dir, &format!("f{n}"), &content).await;
    }
    drop(open);
    process.volumes.close(volume.dataset).await.unwrap();
}

async fn thin(process: &Process, volume: VolumeHandle, chunks: usize) {
    let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
    let caller = Caller::root();
    for n in (0..chunks / CHUNKS_A_FILE).step_by(2) {
        let dir = format!("d{}", n / FILES_A_DIR);
        let (dir, _) = open.fs.lookup(&caller, open.fs.root(), dir.as_bytes()).await.unwrap();
        let called = EntryName::try_from(format!("f{n}").as_bytes()).unwrap();
        open.fs.remove(&caller, dir.file, &called).await.unwrap();
    }
    idle().await;
    drop(open);
    process.volumes.close(volume.dataset).await.unwrap();
}

async fn pass(process: &Process, what: &str) {
    let pool = process.controller.pools().get(None).unwrap();
    let meter = Meter::start(process.catalog.bucket());
    let did = process.controller.collector(pool).collect().await.unwrap();
    let at = meter.stop();
    println!(
        "{what:<32} {:>8.2} s  cpu {:>6.2} s  {:>4} MB peak  {}",
        at.wall.as_secs_f64(),
        at.cpu.as_secs_f64(),
        peak_mb(),
        requests(at.requests)
    );
    println!(
        "{:<32} {} packs ({} MB) removed, {} rewritten ({} MB freed)",
        "",
        did.packs,
        did.pack_bytes / 1_000_000,
        did.rewritten,
        did.rewritten_bytes / 1_000_000
    );
}

async fn measure(chunks: usize) {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::new(
        Catalog::create(folder(dir.path(), Duration::ZERO), None).await.unwrap(),
        None,
    );
    let properties =
        Properties { record_bytes: CHUNK as u32, codec: Codec::Lz4, ..Properties::default() };
    let volume = process.create("source", None, properties).await;
    let meter = Meter::start(process.catalog.bucket());
    fill(&process, volume, chunks).await;
    println!("{chunks} chunks written in {:.1} s", meter.stop().wall.as_secs_f64());
    pass(&process, "nothing to collect").await;
    pass(&process, "nothing to collect, again").await;
    thin(&process, volume, chunks).await;
    pass(&process, "every second file removed").await;
    pass(&process, "again").await;
    let pool = process.controller.pools().get(None).unwrap();
    let meter = Meter::start(process.catalog.bucket());
    let space =
        zerofs_csi::control::space(pool, &process.volumes, None, Accuracy::Exact).await.unwrap();
    let at = meter.stop();
    println!(
        "space, exact: {:.2} s, {} MB peak, {}: {space:?}",
        at.wall.as_secs_f64(),
        peak_mb(),
        requests(at.requests)
    );
    close_all(&process.volumes).await;
    process.controller.delete_volume(volume).await.unwrap();
    pass(&process, "the whole dataset deleted").await;
}

fn main() {
    zerofs_csi::app::bound_allocator();
    let chunks = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(100_000);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure(chunks));
}
