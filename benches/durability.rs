//! The cost of an acknowledgement in each `sync` mode, with the node's journal and without it:
//! rates, CPU and PUTs an operation, in a folder with fsync on and with 20 ms a request. Without a
//! journal every change waits for the store, so a row's two lines are the journal's worth for what
//! may be answered from it, and its price for what waits for the store anyway.
//!
//! `cargo bench --bench durability [-- SECONDS]`; TMPDIR chooses the disk.

#![allow(clippy::unwrap_used, reason = "a bench stops by panicking")]

mod support;

use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::tests::files::name;
use support::tests::world::close_all;
use support::{Meter, Process, file, folder};
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::fs::Fs;
use zerofs_csi::fs::api::{Caller, CreateHow, FileSystem, SetAttr, Stability};
use zerofs_csi::types::SyncMode;

const BLOCK: usize = 4096;
const SLOW: Duration = Duration::from_millis(20);

#[derive(Clone, Copy)]
enum Work {
    /// 4 KiB and a COMMIT, as a database does it.
    Fsync,
    Create,
    Rename,
    /// 1 MiB of UNSTABLE writes; a COMMIT every 64.
    Stream,
}

/// Runs one operation; no number is used twice.
async fn one(fs: &Fs, work: Work, task: usize, n: usize) {
    let (caller, root) = (Caller::root(), fs.root());
    let own = name(&format!("task{task}"));
    match work {
        Work::Create => {
            let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
            fs.create(&caller, root, &name(&format!("new-{task}-{n}")), how).await.unwrap();
        }
        Work::Rename => {
            let called = |n: usize| name(&format!("moved-{task}-{}", n % 2));
            fs.rename(&caller, (root, &called(n)), (root, &called(n + 1))).await.unwrap();
        }
        Work::Fsync | Work::Stream => {
            let (attr, _) = fs.lookup(&caller, root, own.as_bytes()).await.unwrap();
            let (block, wrap, every) = match work {
                Work::Fsync => (BLOCK, 1024, 1),
                _ => (1 << 20, 256, 64),
            };
            let mut data = vec![0; block];
            blake3::Hasher::new()
                .update(&task.to_le_bytes())
                .update(&n.to_le_bytes())
                .finalize_xof()
                .fill(&mut data);
            let at = (n % wrap * block) as u64;
            fs.write(&caller, attr.file, at, Bytes::from(data), Stability::Unstable).await.unwrap();
            if n % every == every - 1 {
                fs.commit(&caller, attr.file, 0, 0).await.unwrap();
            }
        }
    }
}

async fn measure(
    process: &Process,
    fs: &Arc<Fs>,
    work: Work,
    concurrency: usize,
    time: Duration,
) -> String {
    for task in 0..concurrency {
        file(fs, fs.root(), &format!("task{task}"), b"").await;
        file(fs, fs.root(), &format!("moved-{task}-0"), b"").await;
    }
    fs.sync().await.unwrap();
    let meter = Meter::start(process.catalog.bucket());
    let until = Instant::now() + time;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..concurrency {
        let fs = fs.clone();
        tasks.spawn(async move {
            let mut n = 0;
            while Instant::now() < until {
                one(&fs, work, task, n).await;
                n += 1;
            }
            n
        });
    }
    let done: usize = tasks.join_all().await.into_iter().sum();
    let at = meter.stop();
    for task in 0..concurrency {
        fs.remove(&Caller::root(), fs.root(), &name(&format!("task{task}"))).await.unwrap();
        for n in 0..2 {
            let _ =
                fs.remove(&Caller::root(), fs.root(), &name(&format!("moved-{task}-{n}"))).await;
        }
    }
    let each = |of: f64| of / done.max(1) as f64;
    format!(
        "{:>8.0}/s {:>7.1} us {:>6.3} PUT",
        done as f64 / at.wall.as_secs_f64(),
        each(at.cpu.as_secs_f64() * 1e6),
        each(at.requests.put as f64)
    )
}

async fn compare(speed: &str, request: Duration, time: Duration) {
    for sync in SyncMode::ALL {
        for (what, work, concurrency) in [
            ("fsync of 4 KiB, 1 at once", Work::Fsync, 1),
            ("fsync of 4 KiB, 16 at once", Work::Fsync, 16),
            ("create, 16 at once", Work::Create, 16),
            ("rename, 16 at once", Work::Rename, 16),
            ("write 1 MiB, 4 at once", Work::Stream, 4),
        ] {
            let mut lines = Vec::new();
            for journal in [true, false] {
                let (dir, journals) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
                let catalog =
                    Catalog::create(folder(dir.path(), Duration::ZERO), None).await.unwrap();
                drop(catalog);
                let catalog = Catalog::open(folder(dir.path(), request), None).await.unwrap();
                let process = Process::new(catalog, journal.then(|| journals.path().to_owned()));
                let properties = Properties { sync: Some(sync), ..Properties::default() };
                let volume = process.create("v", None, properties).await;
                let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
                lines.push(Box::pin(measure(&process, &open.fs, work, concurrency, time)).await);
                drop(open);
                close_all(&process.volumes).await;
            }
            println!("{speed:<6} {sync:<8} {what:<25} journal {}   none {}", lines[0], lines[1]);
        }
    }
}

fn main() {
    zerofs_csi::app::bound_allocator();
    let seconds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(3);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for (speed, request) in [("folder", Duration::ZERO), ("20ms", SLOW)] {
            Box::pin(compare(speed, request, Duration::from_secs(seconds))).await;
        }
    });
}
