//! Looking for one file: its first byte out of a snapshot of many files, its versions over many
//! snapshots, and the listing of a large folder, with requests, in memory and at 20 ms a request.
//!
//! `cargo bench --bench browse [-- FILES [SNAPSHOTS [ENTRIES]]]`

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench stops by panicking")]

mod support;

use futures::StreamExt;
use std::pin::pin;
use std::time::Duration;
use support::{Meter, Process, file, memory, mkdir, requests};
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::control::Pool;
use zerofs_csi::control::browse::{Browser, LIST_MAX};
use zerofs_csi::fs::Fs;
use zerofs_csi::fs::api::{FileRef, FileSystem};
use zerofs_csi::types::VolumeHandle;

const FILES_A_DIR: usize = 1000;
const CONCURRENCY: usize = 32;
const SLOW: Duration = Duration::from_millis(20);

fn path(n: usize) -> Vec<u8> {
    format!("/d{}/file{}", n / FILES_A_DIR, n % FILES_A_DIR).into_bytes()
}

async fn fill(process: &Process, volume: VolumeHandle, files: usize, entries: usize) {
    let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
    let mut left = files;
    for dir in 0..files.div_ceil(FILES_A_DIR) {
        let of = mkdir(&open.fs, open.fs.root(), &format!("d{dir}")).await;
        let some = left.min(FILES_A_DIR);
        make(&open.fs, of, some, b"one of many").await;
        left -= some;
    }
    let large = mkdir(&open.fs, open.fs.root(), "large").await;
    make(&open.fs, large, entries, b"").await;
    open.fs.sync().await.unwrap();
    drop(open);
    process.volumes.close(volume.dataset).await.unwrap();
}

async fn make(fs: &Fs, of: FileRef, count: usize, content: &[u8]) {
    futures::stream::iter(0..count)
        .for_each_concurrent(CONCURRENCY, |n| async move {
            file(fs, of, &format!("file{n}"), content).await;
        })
        .await;
}

async fn snapshots(process: &Process, volume: VolumeHandle, count: usize) {
    let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
    for n in 0..count {
        file(&open.fs, open.fs.root(), &format!("new-{n}"), b"new").await;
        let name = format!("s{n}").parse().unwrap();
        process.controller.create_csi_snapshot(volume, name).await.unwrap();
    }
    drop(open);
    process.volumes.close(volume.dataset).await.unwrap();
}

/// A process that has read nothing yet.
fn fresh(process: &Process) -> (Process, Pool) {
    let process = Process::new(process.catalog.clone(), None);
    let pool = process.controller.pools().get(None).unwrap().clone();
    (process, pool)
}

fn show(what: &str, meter: &Meter) {
    let took = meter.stop();
    println!("{what:<44} {:>9.1} ms  {}", took.wall.as_secs_f64() * 1e3, requests(took.requests));
}

async fn looking(process: &Process, speed: &str, files: usize, entries: usize) {
    let (of, pool) = fresh(process);
    let browser = Browser::new(&pool, &of.volumes);
    let meter = Meter::start(of.catalog.bucket());
    let root = browser.root("web", Some("s0")).await.unwrap();
    let open = browser.open(&root).await.unwrap();
    let entry = open.stat(&path(files / 2)).await.unwrap();
    pin!(open.read(&entry, 0..u64::MAX)).next().await.unwrap().unwrap();
    show(&format!("first byte, of {files} files, {speed}"), &meter);
    drop(open);

    let dataset = browser.dataset("web").await.unwrap();
    for again in ["cold", "again"] {
        let meter = Meter::start(of.catalog.bucket());
        let versions = browser.history(&dataset, &path(files / 2)).await.unwrap();
        assert_eq!(versions.len(), 1);
        let states = versions[0].states;
        show(&format!("history over {states} states, {again}, {speed}"), &meter);
    }

    let meter = Meter::start(of.catalog.bucket());
    let open = browser.open(&root).await.unwrap();
    let (mut from, mut found) = (None, 0);
    loop {
        let (page, next) = open.list(b"/large", from, LIST_MAX).await.unwrap();
        found += page.len();
        from = next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(found, entries);
    show(&format!("list of {entries} entries, {speed}"), &meter);
    drop(open);
    browser.close().await;
}

async fn run(files: usize, count: usize, entries: usize) {
    let (bucket, store) = memory();
    let process = Process::new(Catalog::create(bucket, None).await.unwrap(), None);
    let volume = process.create("web", None, Properties::default()).await;
    fill(&process, volume, files, entries).await;
    snapshots(&process, volume, count).await;
    looking(&process, "in memory", files, entries).await;
    store.latency(SLOW);
    looking(&process, "20 ms", files, entries).await;
}

fn main() {
    zerofs_csi::app::bound_allocator();
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let mut number = |default| args.next().map_or(default, |arg| arg.parse().expect("a number"));
    let (files, count, entries) = (number(1_000_000), number(240), number(100_000));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(files, count, entries));
}
