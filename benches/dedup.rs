//! Deduplication on real data: trees copied one after another into one dataset, as a build server
//! keeps releases of a source tree.
//!
//! `cargo bench --bench dedup -- [KIB] TREE…`: the record size, then folders. Prints what each tree
//! added to the pool and the exact figures of `space`, which count every chunk. TMPDIR chooses the
//! disk of the pool.

#![allow(clippy::unwrap_used, reason = "a bench stops by panicking")]

mod support;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::tests::world::close_all;
use support::{Meter, Process, file, folder, mkdir, peak_mb};
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::control::Accuracy;
use zerofs_csi::fs::Fs;
use zerofs_csi::fs::api::{FileRef, FileSystem};

/// Files and bytes.
async fn copy(fs: &Fs, from: PathBuf, into: FileRef) -> (usize, u64) {
    let (mut todo, mut files, mut bytes) = (vec![(from, into)], 0, 0);
    while let Some((from, into)) = todo.pop() {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            let name = entry.file_name().into_string().unwrap();
            if kind.is_dir() {
                todo.push((entry.path(), mkdir(fs, into, &name).await));
            } else if kind.is_file() {
                let content = std::fs::read(entry.path()).unwrap();
                (files, bytes) = (files + 1, bytes + content.len() as u64);
                file(fs, into, &name, &content).await;
            }
        }
    }
    (files, bytes)
}

async fn measure(record_bytes: u32, trees: Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::new(
        Catalog::create(folder(dir.path(), Duration::ZERO), None).await.unwrap(),
        None,
    );
    let volume = process
        .create("releases", None, Properties { record_bytes, ..Properties::default() })
        .await;
    let (pool, mut before) = (process.controller.pools().get(None).unwrap(), 0);
    for tree in trees {
        let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
        let called = tree.file_name().unwrap_or(OsStr::new("tree"));
        let into = mkdir(&open.fs, open.fs.root(), called.to_str().unwrap()).await;
        let meter = Meter::start(process.catalog.bucket());
        let (files, bytes) = copy(&open.fs, tree.clone(), into).await;
        open.fs.sync().await.unwrap();
        let took = meter.stop();
        drop(open);
        process.volumes.close(volume.dataset).await.unwrap();
        process.controller.collector(pool).collect().await.unwrap();
        let space = zerofs_csi::control::space(pool, &process.volumes, None, Accuracy::Exact)
            .await
            .unwrap();
        let stored = space.pack_bytes + space.database_bytes;
        println!(
            "{}: {files} files, {:.1} MB in {:.1} s, {} MB peak; the pool grew by {:.1} MB ({:.1} \
             packs, {:.1} databases)",
            Path::new(called).display(),
            bytes as f64 / 1e6,
            took.wall.as_secs_f64(),
            peak_mb(),
            (stored - before) as f64 / 1e6,
            space.pack_bytes as f64 / 1e6,
            space.database_bytes as f64 / 1e6,
        );
        println!(
            "  dedup {:.3}, compression {:.3}",
            space.dedup_ratio.unwrap_or(1.0),
            space.compression_ratio.unwrap_or(1.0)
        );
        before = stored;
    }
    close_all(&process.volumes).await;
}

fn main() {
    zerofs_csi::app::bound_allocator();
    let mut args: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let kib = args.first().and_then(|arg| arg.parse::<u32>().ok());
    if kib.is_some() {
        args.remove(0);
    }
    assert!(!args.is_empty(), "usage: cargo bench --bench dedup -- [KIB] TREE…");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime
        .block_on(measure(kib.unwrap_or(64) << 10, args.into_iter().map(PathBuf::from).collect()));
}
