//! The contents of a snapshot that is taken during writes: all that was answered before it was
//! asked for, and a prefix of each writer's changes.

use crate::model::{Found, Model, Origin};
use crate::ops::{RECORD, Where, bytes};
use crate::slow::{collector, end, nothing_is_left};
use crate::support::files::{top, write_at};
use crate::work;
use crate::world::{Process, World};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use zerofs_csi::control::Source;
use zerofs_csi::fs::api::{Caller, FileSystem};
use zerofs_csi::types::{SnapshotHandle, VolumeHandle};
use zerofs_csi::volume::VolumeGuard;

const WRITERS: u64 = 4;
const CUTS: usize = 6;
/// Entries that one task makes, so that a listing shows them all.
const ENTRIES: u64 = 60;
/// A task's calls and their answers.
#[derive(Default)]
struct Progress {
    asked: AtomicU64,
    answered: AtomicU64,
}

/// Record `n` of writer `w`'s file.
fn record(w: u64, n: u64) -> Vec<u8> {
    bytes(&[w * 10_000 + n], 0)
}

/// Appends record by record; some writers promise durability now and then, so that flushes are
/// always under way.
async fn append(open: VolumeGuard, w: u64, progress: Arc<Progress>, stop: Arc<AtomicBool>) {
    let file = top::create(&*open.fs, &format!("w{w}")).await;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        progress.asked.store(n + 1, Ordering::Relaxed);
        write_at(&*open.fs, file, n * RECORD as u64, &record(w, n)).await;
        progress.answered.store(n + 1, Ordering::Relaxed);
        n += 1;
        if w.is_multiple_of(2) && n.is_multiple_of(8) {
            open.fs.commit(&Caller::root(), file, 0, 0).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1 + (w * 7 + n) % 5)).await;
    }
}

/// Makes one name after the other.
async fn name(open: VolumeGuard, progress: Arc<Progress>, stop: Arc<AtomicBool>) {
    for n in 0..ENTRIES {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        progress.asked.store(n + 1, Ordering::Relaxed);
        top::create(&*open.fs, &format!("e{n:03}")).await;
        progress.answered.store(n + 1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
}

/// The number of extents of a file, or of names, in a snapshot; all of them from the first.
fn held(found: &Found, task: u64) -> u64 {
    if task == WRITERS {
        let names: Vec<&String> = found.keys().filter(|name| name.starts_with('e')).collect();
        let first: Vec<String> = (0..names.len()).map(|n| format!("e{n:03}")).collect();
        assert_eq!(names, first.iter().collect::<Vec<_>>());
        return names.len() as u64;
    }
    let content = found.get(&format!("w{task}")).map(Vec::as_slice).unwrap_or_default();
    assert_eq!(content.len() % RECORD, 0, "half a write of w{task}");
    for (n, part) in content.chunks(RECORD).enumerate() {
        assert!(
            part == record(task, n as u64),
            "record {n} of w{task} is not what was written before the {}th",
            content.len() / RECORD
        );
    }
    (content.len() / RECORD) as u64
}

async fn cut(process: &Process, of: VolumeHandle, n: usize) -> SnapshotHandle {
    work::again(async || {
        process.controller.create_snapshot(of, format!("cut{n}").parse().unwrap()).await
    })
    .await
    .unwrap()
    .handle
}

/// Snapshots that the owner makes for itself, and for another who asks it, while several write and
/// requests overtake each other.
#[test]
fn a_snapshot_during_writes_holds_what_was_answered_and_of_each_writer_a_prefix() {
    let seed =
        crate::support::run::setting("HISTORY_SEED").unwrap_or_else(|| rand::random::<u64>() >> 16);
    println!("HISTORY_SEED={seed}");
    let wrong = crate::support::run::concurrently(&[Where::Here, Where::Elsewhere], |at| {
        let world = World::polling_mailbox(Duration::from_millis(10));
        let process = world.process().clone();
        world.disorder(seed);
        world.run(async {
            let (mut model, collector) = (Model::default(), collector(&world).await);
            work::create(&process, &mut model, "origin", &Origin::Nothing).await?;
            let origin = model.datasets[0].handle;
            let open = process.open(origin).await?;
            let stop = Arc::new(AtomicBool::new(false));
            let tasks: Vec<Arc<Progress>> = (0..=WRITERS).map(|_| Arc::default()).collect();
            let mut writers = tokio::task::JoinSet::new();
            for w in 0..WRITERS {
                writers.spawn(append(open.clone(), w, tasks[w as usize].clone(), stop.clone()));
            }
            writers.spawn(name(open.clone(), tasks[WRITERS as usize].clone(), stop.clone()));
            let mut cuts = vec![];
            for n in 0..CUTS {
                tokio::time::sleep(Duration::from_millis(31)).await;
                let answered: Vec<u64> =
                    tasks.iter().map(|task| task.answered.load(Ordering::Relaxed)).collect();
                let by = if *at == Where::Here { &process } else { &collector };
                let handle = cut(by, origin, n).await;
                let asked: Vec<u64> =
                    tasks.iter().map(|task| task.asked.load(Ordering::Relaxed)).collect();
                collector.collect(Where::Here).await.map_err(|error| error.to_string())?;
                cuts.push((handle, answered, asked));
            }
            stop.store(true, Ordering::Relaxed);
            writers.join_all().await;
            drop(open);
            let mut between = 0;
            for (n, (handle, answered, asked)) in cuts.iter().enumerate() {
                let found = collector.read_snapshot(*handle).await?;
                collector.volumes.open_snapshots().close().await;
                for task in 0..=WRITERS {
                    let (held, at) = (held(&found, task), task as usize);
                    between += usize::from(held > answered[at]);
                    if held < answered[at] || held > asked[at] {
                        let (answered, asked) = (answered[at], asked[at]);
                        return Err(format!(
                            "{at:?}, snapshot {n}: {held} of task {task}, which was answered \
                             {answered} and asked for {asked}"
                        ));
                    }
                }
                // The same by way of a clone.
                let clone = work::again(async || {
                    process.create(&format!("clone{n}"), Some(Source::Snapshot(*handle))).await
                })
                .await;
                let clone = clone.map_err(|error| error.to_string())?.handle;
                model.made(&format!("clone{n}"), clone, found.clone());
                let snapshot = crate::model::Snapshot {
                    name: format!("cut{n}"),
                    of: origin,
                    handle: *handle,
                    files: found,
                    going: false,
                };
                model.snapshots.push(snapshot);
            }
            println!(
                "{at:?}: {between} times a snapshot held something that was answered while it \
                was made"
            );
            let found = process.read(origin).await?;
            let name = model.datasets.remove(0).name;
            model.made(&name, origin, found);
            world.store.heal();
            Box::pin(end(&process, &collector, &mut model)).await?;
            nothing_is_left(&collector).await
        })
    });
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Files around the size at which an earlier design lost them, each written and not committed, and
/// an entry made just before the snapshot; by each of those who make snapshots.
#[test]
fn small_files_and_the_entry_just_before_it_are_in_a_snapshot() {
    let wrong = crate::support::run::concurrently(
        &[Some(Where::Here), Some(Where::Elsewhere), None],
        |at| {
            let world = World::polling_mailbox(Duration::from_millis(10));
            let process = world.process().clone();
            world.run(async {
                let (mut model, collector) = (Model::default(), collector(&world).await);
                work::create(&process, &mut model, "origin", &Origin::Nothing).await?;
                let origin = model.datasets[0].handle;
                let sizes =
                    [1, 100, 4095, 4096, 4097, 16 << 10, (32 << 10) - 1, 32 << 10, (32 << 10) + 1];
                for round in 0..3_u64 {
                    for (n, size) in sizes.iter().enumerate() {
                        let mut content = bytes(
                            &(0..10).map(|k| round * 1000 + n as u64 * 10 + k).collect::<Vec<_>>(),
                            0,
                        );
                        content.truncate(*size);
                        work::write(&process, &mut model, origin, &format!("s{n}"), 0, &content)
                            .await?;
                    }
                    work::write(&process, &mut model, origin, &format!("last{round}"), 0, b"")
                        .await?;
                    if at.is_none() {
                        work::close(&process, &mut model, origin).await?;
                    }
                    let by = if *at == Some(Where::Elsewhere) { &collector } else { &process };
                    work::snapshot(by, &mut model, origin, &format!("cut{round}")).await?;
                    // Not in it.
                    work::write(&process, &mut model, origin, &format!("after{round}"), 0, b"x")
                        .await?;
                    let of = model.snapshots.last().expect("just made").handle;
                    work::create(
                        &process,
                        &mut model,
                        &format!("clone{round}"),
                        &Origin::Snapshot(of),
                    )
                    .await?;
                    collector.collect(Where::Here).await.map_err(|error| error.to_string())?;
                }
                work::compare(&process, &mut model).await?;
                Box::pin(end(&process, &collector, &mut model)).await?;
                nothing_is_left(&collector).await
            })
        },
    );
    assert!(wrong.is_empty(), "{wrong:?}");
}
