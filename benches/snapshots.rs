//! The cost of a snapshot, a clone and its first read as a volume grows: requests and time, at a
//! folder's speed and with 20 ms a request.
//!
//! `cargo bench --bench snapshots [-- FILES[,FILES…] [BTRFS]]`: sizes to try, and a folder on btrfs
//! to do the same beside it: trees of as many files, `btrfs subvolume snapshot` (which waits for
//! its transaction, as ours for the store). TMPDIR chooses the disk.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench stops by panicking")]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::tests::files::name;
use support::tests::world::close_all;
use support::{Measured, Meter, Process, file, folder, idle, median, mkdir, requests};
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::control::Source;
use zerofs_csi::fs::api::{Caller, FileSystem};
use zerofs_csi::types::{SnapshotHandle, VolumeHandle};

const ROUNDS: usize = 5;
const FILES_A_DIR: usize = 1000;
const LANES: usize = 8;
const SLOW: Duration = Duration::from_millis(20);

/// `files` empty files, and one that says so.
async fn fill(process: &Process, volume: VolumeHandle, files: usize) {
    let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
    file(&open.fs, open.fs.root(), "first", b"the first file").await;
    for dir in 0..files.div_ceil(FILES_A_DIR) {
        let of = mkdir(&open.fs, open.fs.root(), &format!("d{dir}")).await;
        let count = FILES_A_DIR.min(files - dir * FILES_A_DIR);
        let mut lanes = tokio::task::JoinSet::new();
        for lane in 0..LANES {
            let open = open.clone();
            lanes.spawn(async move {
                for n in (lane..count).step_by(LANES) {
                    file(&open.fs, of, &format!("file{n}"), b"").await;
                }
            });
        }
        lanes.join_all().await;
    }
    idle().await;
    drop(open);
    process.volumes.close(volume.dataset).await.unwrap();
}

async fn measured<T>(
    process: &Process,
    rounds: &mut Vec<Measured>,
    work: impl Future<Output = T>,
) -> T {
    let meter = Meter::start(process.catalog.bucket());
    let done = work.await;
    rounds.push(meter.stop());
    done
}

async fn snapshot(process: &Process, volume: VolumeHandle, called: String) -> SnapshotHandle {
    process.controller.create_csi_snapshot(volume, called.parse().unwrap()).await.unwrap().handle
}

/// Opens a volume and reads its first file.
async fn first_read(process: &Process, volume: VolumeHandle) {
    let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
    let (attr, _) =
        open.fs.lookup(&Caller::root(), open.fs.root(), name("first").as_bytes()).await.unwrap();
    let read = open.fs.read(&Caller::root(), attr.file, 0, 100).await.unwrap();
    assert_eq!(read.data.concat(), b"the first file");
}

async fn operations(process: &Process, volume: VolumeHandle, files: usize, speed: &str) {
    let [mut released, mut live, mut clones, mut reads, mut deletes] = [const { Vec::new() }; 5];
    for round in 0..ROUNDS {
        let cut =
            measured(process, &mut released, snapshot(process, volume, format!("{speed}-{round}")))
                .await;
        let source = Some(Source::Snapshot(cut));
        let called = format!("clone-{speed}-{round}");
        let clone = process.create(&called, source, Properties::default());
        let clone = measured(process, &mut clones, clone).await;
        measured(process, &mut reads, first_read(process, clone)).await;
        process.volumes.close(clone.dataset).await.unwrap();
        let delete = async {
            process.controller.delete_volume(clone).await.unwrap();
            process.controller.delete_snapshot(cut).await.unwrap();
        };
        measured(process, &mut deletes, Box::pin(delete)).await;
        let open = process.volumes.open(&process.catalog, volume.dataset).await.unwrap();
        file(&open.fs, open.fs.root(), &format!("{speed}-{round}"), &[7; 4096]).await;
        let cut = measured(
            process,
            &mut live,
            snapshot(process, volume, format!("{speed}-live-{round}")),
        )
        .await;
        drop(open);
        process.volumes.close(volume.dataset).await.unwrap();
        process.controller.delete_snapshot(cut).await.unwrap();
    }
    for (what, rounds) in [
        ("snapshot, released", released),
        ("snapshot, open and dirty", live),
        ("clone", clones),
        ("open the clone, first read", reads),
        ("delete clone and snapshot", deletes),
    ] {
        let at = median(rounds);
        println!(
            "{files:>8} files  {speed:<6} {what:<28} {:>8.1} ms  {}",
            at.wall.as_secs_f64() * 1e3,
            requests(at.requests)
        );
    }
}

async fn ours(files: usize) {
    let dir = tempfile::tempdir().unwrap();
    let journals = || Some(tempfile::tempdir().unwrap().keep());
    let process = Process::new(
        Catalog::create(folder(dir.path(), Duration::ZERO), None).await.unwrap(),
        journals(),
    );
    let volume = process.create("source", None, Properties::default()).await;
    let filling = Instant::now();
    fill(&process, volume, files).await;
    println!("{files:>8} files  filled in {:.1} s", filling.elapsed().as_secs_f64());
    Box::pin(operations(&process, volume, files, "folder")).await;
    close_all(&process.volumes).await;
    let slow =
        Process::new(Catalog::open(folder(dir.path(), SLOW), None).await.unwrap(), journals());
    Box::pin(operations(&slow, volume, files, "20ms")).await;
    close_all(&slow.volumes).await;
}

fn btrfs(args: &[&str]) -> Duration {
    let start = Instant::now();
    let out = Command::new("btrfs").args(args).output().expect("btrfs (of btrfs-progs)");
    assert!(out.status.success(), "btrfs {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    start.elapsed()
}

fn beside(place: &Path, files: usize) {
    let path = |of: &str| place.join(of).display().to_string();
    let source = path(&format!("source-{files}"));
    btrfs(&["subvolume", "create", &source]);
    for dir in 0..files.div_ceil(FILES_A_DIR) {
        let of = Path::new(&source).join(format!("d{dir}"));
        std::fs::create_dir(&of).unwrap();
        for n in 0..FILES_A_DIR.min(files - dir * FILES_A_DIR) {
            std::fs::File::create(of.join(format!("file{n}"))).unwrap();
        }
    }
    btrfs(&["filesystem", "sync", &path("")]);
    let [mut cuts, mut dirty, mut clones] = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        let [cut, cut_dirty, clone] =
            ["cut", "dirty", "clone"].map(|what| path(&format!("{what}-{files}-{round}")));
        cuts.push(btrfs(&["subvolume", "snapshot", "-r", &source, &cut]));
        clones.push(btrfs(&["subvolume", "snapshot", &cut, &clone]));
        std::fs::write(Path::new(&source).join(format!("dirty{round}")), [7; 4096]).unwrap();
        dirty.push(btrfs(&["subvolume", "snapshot", "-r", &source, &cut_dirty]));
    }
    for (what, mut took) in [("snapshot", cuts), ("snapshot, dirty", dirty), ("clone", clones)] {
        took.sort();
        println!(
            "{files:>8} files  btrfs  {what:<28} {:>8.1} ms",
            took[ROUNDS / 2].as_secs_f64() * 1e3
        );
    }
}

fn main() {
    zerofs_csi::app::bound_allocator();
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let sizes = args.next().unwrap_or_else(|| "10,10000".to_owned());
    let place = args.next();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for files in sizes.split(',').map(|files| files.parse().expect("a number of files")) {
        runtime.block_on(ours(files));
        if let Some(place) = &place {
            beside(Path::new(place), files);
        }
    }
}
