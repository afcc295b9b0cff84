//! Volumes opened and closed by a node, as NodeStageVolume and NodeUnstageVolume do beside the
//! mount: how long each takes on a store in memory and at 20 ms a request, and the memory and the
//! requests of a node that has all of them open and idle.
//!
//! `cargo bench --bench stage [-- VOLUMES [CONCURRENCY]]`

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench stops by panicking")]

mod support;

use futures::StreamExt;
use std::time::{Duration, Instant};
use support::tests::files::{self, top};
use support::{Meter, Process, idle, memory, requests, resident_mb};
use zerofs_csi::catalog::{Catalog, Properties};

const VOLUMES: usize = 100;
const CONCURRENCY: usize = 4;
const SLOW: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_secs(60);

/// Awaits all, so many at once, and prints what it took.
async fn measured<T>(
    what: &str,
    concurrency: usize,
    of: impl ExactSizeIterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    let count = of.len();
    let timed = of.map(|one| async {
        let started = Instant::now();
        (one.await, started.elapsed())
    });
    let done: Vec<_> = futures::stream::iter(timed).buffer_unordered(concurrency).collect().await;
    let (done, mut waits): (Vec<T>, Vec<Duration>) = done.into_iter().unzip();
    waits.sort();
    let millis = |part: usize| waits[(count - 1) * part / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<22} p50 {:>6.0} ms  p99 {:>6.0} ms  of {count}, {concurrency} at once",
        millis(50),
        millis(99)
    );
    done
}

async fn at(speed: &str, latency: Duration, volumes: usize, concurrency: usize) {
    let (bucket, store) = memory();
    let process = Process::new(Catalog::create(bucket, None).await.unwrap(), None);
    let mut made = Vec::new();
    for n in 0..volumes {
        let volume = process.create(&format!("volume-{n}"), None, Properties::default()).await;
        let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
        let file = top::create(&*open.fs, "file").await;
        files::write_at(&*open.fs, file, 0, &[7; 100_000]).await;
        open.fs.sync().await.unwrap();
        drop(open);
        process.volumes.close(volume.dataset).await.unwrap();
        made.push(volume.dataset);
    }
    idle().await;
    store.latency(latency);
    let before = resident_mb();
    let opens = made.iter().map(|id| process.volumes.open(&process.catalog, *id));
    let open = measured(&format!("open, {speed}"), concurrency, opens).await;
    let failed = open.iter().find_map(|open| open.as_ref().err());
    assert!(failed.is_none(), "a volume cannot be opened: {failed:?}");
    idle().await;
    let after = resident_mb();
    let meter = Meter::start(process.catalog.bucket());
    tokio::time::sleep(IDLE).await;
    println!(
        "idle, {speed}: {before} MB without a volume, {after} MB with {volumes} open; in a minute {}",
        requests(meter.stop().requests)
    );
    drop(open);
    let closes = made.iter().map(|id| process.volumes.close(*id));
    let closed = measured(&format!("close, {speed}"), concurrency, closes).await;
    assert!(closed.iter().all(Result::is_ok), "a volume cannot be closed");
}

fn main() {
    zerofs_csi::app::bound_allocator();
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let mut number = |default| args.next().map_or(default, |arg| arg.parse().expect("a number"));
    let (volumes, concurrency) = (number(VOLUMES).max(1), number(CONCURRENCY).max(1));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(at("in memory", Duration::ZERO, volumes, concurrency));
    runtime.block_on(at("20 ms", SLOW, volumes, concurrency));
}
