//! Rates of the name space, called directly: no protocol, a folder as the store with fsync on, a
//! journal. Prints operations per second and the process' CPU per operation.
//!
//! `cargo bench --bench names [-- FILES]`; TMPDIR chooses the disk.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench stops by panicking")]

#[expect(dead_code, reason = "what a clone needs is for tests")]
#[path = "../tests/support/volume.rs"]
mod volume;

use std::sync::Arc;
use std::time::{Duration, Instant};
use volume::Dataset;
use zerofs_csi::bucket::{Bucket, Credentials, Folder, Limits};
use zerofs_csi::fs::Fs;
use zerofs_csi::fs::api::*;
use zerofs_csi::types::EntryName;

const LANES: usize = 8;

fn name(n: usize) -> EntryName {
    EntryName::try_from(format!("file-{n:08}").as_bytes()).expect("a name")
}

/// CPU time of this process, all threads.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn report(what: &str, count: usize, wall: Duration, cpu: Duration) {
    let rate = count as f64 / wall.as_secs_f64();
    let each = cpu.as_secs_f64() * 1e6 / count as f64;
    println!(
        "{what:<44} {count:>8} in {:>8.1} ms  {rate:>10.0}/s  cpu {each:>7.2} us each",
        wall.as_secs_f64() * 1e3
    );
}

/// Does `0..count` in `lanes` tasks.
async fn measure<F, R>(what: &str, count: usize, lanes: usize, work: F)
where
    F: Fn(usize) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let (wall, before) = (Instant::now(), cpu());
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..lanes {
        let work = work.clone();
        tasks.spawn(async move {
            for n in (lane..count).step_by(lanes) {
                work(n).await;
            }
        });
    }
    tasks.join_all().await;
    report(what, count, wall.elapsed(), cpu().saturating_sub(before));
}

async fn list_all(fs: &Fs, dir: FileRef) -> usize {
    let limit = ListLimit { entries: 1 << 20, bytes: 1 << 18, entry_bytes: 200, with_attr: true };
    let (mut count, mut after) = (0, DirCookie(0));
    loop {
        let listing = fs.readdir(&Caller::root(), dir, after, limit).await.expect("a listing");
        count += listing.entries.len();
        after = listing.entries.last().map_or(after, |entry| entry.cookie);
        if listing.eof {
            return count;
        }
    }
}

async fn creates(fs: &Arc<Fs>, dir: FileRef, files: usize) {
    let caller = Caller::root();
    let data = bytes::Bytes::from(vec![7; 4096]);
    let its = fs.clone();
    measure("create + write 4 KiB", files, LANES, move |n| {
        let (fs, caller, mut data) = (its.clone(), caller.clone(), data.to_vec());
        data[..8].copy_from_slice(&(n as u64).to_le_bytes());
        async move {
            let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
            let file = fs.create(&caller, dir, &name(n), how).await.expect("a file").attr.file;
            fs.write(&caller, file, 0, data.into(), Stability::Unstable).await.expect("a write");
        }
    })
    .await;
    let (wall, before) = (Instant::now(), cpu());
    fs.sync().await.expect("a sync");
    report("sync after it", 1, wall.elapsed(), cpu().saturating_sub(before));
}

async fn reads(fs: &Arc<Fs>, dir: FileRef, files: usize) {
    let mut handles = Vec::with_capacity(files);
    for n in 0..files {
        let found = fs.lookup(&Caller::root(), dir, name(n).as_bytes()).await.expect("a file");
        handles.push(found.0.file);
    }
    let (handles, its) = (Arc::new(handles), fs.clone());
    measure("getattr", files * 20, LANES, move |n| {
        let (fs, file) = (its.clone(), handles[n % files]);
        async move {
            {
                fs.getattr(file).await.expect("attributes");
            }
        }
    })
    .await;
    let its = fs.clone();
    measure("lookup", files * 20, LANES, move |n| {
        let fs = its.clone();
        async move {
            {
                fs.lookup(&Caller::root(), dir, name(n % files).as_bytes()).await.expect("a file");
            }
        }
    })
    .await;
}

async fn listings(what: &str, fs: &Fs, dir: FileRef) {
    for round in ["first", "second", "third"] {
        let (wall, before) = (Instant::now(), cpu());
        let count = list_all(fs, dir).await;
        report(
            &format!("readdirplus {what}, {round}"),
            count,
            wall.elapsed(),
            cpu().saturating_sub(before),
        );
    }
}

async fn changes(fs: &Arc<Fs>, dir: FileRef, files: usize) {
    let its = fs.clone();
    measure("rename", files, 16, move |n| {
        let fs = its.clone();
        async move {
            let (from, to) = (name(n), name(n + files));
            fs.rename(&Caller::root(), (dir, &from), (dir, &to)).await.expect("a rename");
        }
    })
    .await;
    let its = fs.clone();
    measure("remove", files, 16, move |n| {
        let fs = its.clone();
        async move {
            {
                fs.remove(&Caller::root(), dir, &name(n + files)).await.expect("a removal");
            }
        }
    })
    .await;
}

fn main() {
    let files = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("file://{}", folder.path().display()).parse().expect("a URL");
        let bucket = Bucket::open(&url, &Credentials::none(), Folder::MustExist, Limits::default())
            .expect("a bucket");
        let journals = tempfile::tempdir().expect("a folder");
        let mut dataset = Dataset::new(bucket, journals.path().to_owned());
        dataset.options.properties.record_bytes = 65536;
        dataset.options.memory = zerofs_csi::fs::FsMemory::new(64 << 20, 64 << 20);
        let fs = Arc::new(dataset.open().await);
        let dir = fs
            .mkdir(&Caller::root(), fs.root(), &name(0), SetAttr::default())
            .await
            .expect("a directory")
            .attr
            .file;
        creates(&fs, dir, files).await;
        listings("after creation", &fs, dir).await;
        reads(&fs, dir, files).await;
        fs.close().await.expect("closed");
        let start = Instant::now();
        let fs = Arc::new(dataset.open().await);
        report("open", 1, start.elapsed(), Duration::ZERO);
        listings("after reopening", &fs, dir).await;
        fs.close().await.expect("closed");
        let fs = Arc::new(dataset.open().await);
        let its = fs.clone();
        measure("lookup after reopening", files, LANES, move |n| {
            let fs = its.clone();
            async move {
                {
                    fs.lookup(&Caller::root(), dir, name(n).as_bytes()).await.expect("a file");
                }
            }
        })
        .await;
        changes(&fs, dir, files).await;
        fs.close().await.expect("closed");
    });
}
