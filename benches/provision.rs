//! Volumes made and deleted by a controller: how many per second, how long each waits, and its
//! requests, on a store in memory and at 20 ms a request.
//!
//! `cargo bench --bench provision [-- VOLUMES [CONCURRENCY]]`

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench stops by panicking")]

mod support;

use futures::StreamExt;
use std::time::{Duration, Instant};
use support::{Meter, Process, memory, requests};
use zerofs_csi::catalog::{Catalog, Properties};

const VOLUMES: usize = 2000;
const CONCURRENCY: usize = 64;
const SLOW: Duration = Duration::from_millis(20);

/// Does `one` for each volume, so many at once, and prints what it took.
async fn measured<T>(
    process: &Process,
    what: &str,
    concurrency: usize,
    of: impl ExactSizeIterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    let (count, meter) = (of.len(), Meter::start(process.catalog.bucket()));
    let timed = of.map(|one| async {
        let started = Instant::now();
        (one.await, started.elapsed())
    });
    let done: Vec<_> = futures::stream::iter(timed).buffer_unordered(concurrency).collect().await;
    let total = meter.stop();
    let (done, mut waits): (Vec<T>, Vec<Duration>) = done.into_iter().unzip();
    waits.sort();
    let millis = |part: usize| waits[(count - 1) * part / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<22} {:>7.0}/s  p50 {:>7.1} ms  p99 {:>7.1} ms  CPU {:>5.0} µs  of {count}: {}",
        count as f64 / total.wall.as_secs_f64(),
        millis(50),
        millis(99),
        total.cpu.as_secs_f64() * 1e6 / count as f64,
        requests(total.requests)
    );
    done
}

async fn at(speed: &str, latency: Duration, volumes: usize, concurrency: usize) {
    let (bucket, store) = memory();
    let process = Process::new(Catalog::create(bucket, None).await.unwrap(), None);
    store.latency(latency);
    let names: Vec<String> = (0..volumes).map(|n| format!("volume-{n}")).collect();
    let mut made = Vec::new();
    for what in ["create", "create, retried"] {
        let creates = names.iter().map(|name| process.create(name, None, Properties::default()));
        made = measured(&process, &format!("{what}, {speed}"), concurrency, creates).await;
    }
    let deletes = made.iter().map(|volume| process.controller.delete_volume(*volume));
    let deleted = measured(&process, &format!("delete, {speed}"), concurrency, deletes).await;
    assert!(deleted.iter().all(Result::is_ok), "a volume cannot be deleted");
}

fn main() {
    zerofs_csi::app::bound_allocator();
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let mut number = |default| args.next().map_or(default, |arg| arg.parse().expect("a number"));
    let (volumes, concurrency) = (number(VOLUMES), number(CONCURRENCY));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(at("in memory", Duration::ZERO, volumes, concurrency));
    runtime.block_on(at("20 ms", SLOW, volumes, concurrency));
}
