//! A process leaves its volumes to the next one of its node: nothing that was acknowledged is
//! missing there, nothing is opened here any more.

use super::World;
use crate::support::fault::{Fault, FaultStore, Rule};
use crate::support::files::{top, write_at};
use crate::support::world::until_passed;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zerofs_csi::bucket::Requests;
use zerofs_csi::catalog::Catalog;
use zerofs_csi::fs::FsError;
use zerofs_csi::types::{Class, Classify, VolumeHandle};
use zerofs_csi::volume::{VolumeError, Volumes};

const LIMIT: Duration = Duration::from_secs(30);

/// A process of one node, with its journals.
fn process(journals: &Path) -> Volumes {
    // Nothing reaches the store by itself.
    let hour = Duration::from_secs(3600);
    World::builder("node-a")
        .journals(journals)
        .settings(|settings| settings.flush_interval = hour)
        .volumes()
}

/// Runs the life of a process in a runtime of its own. Its end is the end of all its tasks: one
/// that renews a lease, or closes a volume, may be trying again.
async fn life<T: Send + 'static>(life: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let result = runtime.spawn(life).await.unwrap();
    tokio::task::spawn_blocking(move || runtime.shutdown_timeout(LIMIT)).await.unwrap();
    result
}

async fn is_there(volumes: &Volumes, pool: &Catalog, id: VolumeHandle, file: &str) -> bool {
    let since = Instant::now();
    loop {
        match volumes.open(pool, id.dataset).await {
            Ok(volume) => return top::has(&*volume.fs, file).await,
            // The earlier process unlocks its journal only after a while.
            Err(error) if error.class().may_pass() && since.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_was_acknowledged_is_there_for_the_next_process() {
    super::run(async {
        // As it should be; and where the store takes nothing at the last moment.
        for step in [None, Some("fs.commit.before-flush"), Some("fs.commit.before-write")] {
            let journals = tempfile::tempdir().unwrap();
            let world = World::new().await;
            let (pool, id) = (&world.catalog, world.volume("v").await);
            let first = process(journals.path());
            let volume = first.open(pool, id.dataset).await.unwrap();
            top::create(&*volume.fs, "early").await;
            first.prepare_handover().await.unwrap();
            top::create(&*volume.fs, "late").await;
            if let Some(step) = step {
                pool.bucket().failpoints().set(step, "return").unwrap();
            }
            drop(volume);
            first.hand_over(LIMIT).await.unwrap();
            if let Some(step) = step {
                pool.bucket().failpoints().set(step, "off").unwrap();
            }
            let refused = first.open(pool, id.dataset).await.map(drop).unwrap_err();
            assert_eq!(refused.class(), Class::Unavailable, "{refused}");
            assert!(first.is_handed_over() && first.list().is_empty());

            let next = process(journals.path());
            for file in ["early", "late"] {
                assert!(is_there(&next, pool, id, file).await, "{step:?}: {file}");
            }
            next.close(id.dataset).await.unwrap();
        }
    });
}

/// One that outlasts the hand-over must not take the volume from the next process, which has the
/// state folder by then.
#[test]
fn an_opening_that_comes_late_claims_nothing() {
    super::run(async {
        let journals = tempfile::tempdir().unwrap();
        let world = World::new().await;
        let (pool, id) = (world.catalog.clone(), world.volume("v").await);
        let first = process(journals.path());
        let failpoints = pool.bucket().failpoints().clone();
        failpoints.set("volume.lease.after-renewal", "pause").unwrap();
        let opening = tokio::spawn({
            let (first, pool) = (first.clone(), pool.clone());
            async move { first.open(&pool, id.dataset).await.map(drop) }
        });
        until_passed(&failpoints, "volume.lease.after-renewal", 0).await;
        let left = first.hand_over(Duration::from_millis(50)).await;
        assert!(left.is_err(), "it is told that something is still at work");
        failpoints.set("volume.lease.after-renewal", "off").unwrap();
        assert!(opening.await.unwrap().is_err());
        assert_eq!(pool.dataset_by_id(id.dataset).await.unwrap().unwrap().record.owner, None);
    });
}

/// Opening what was left costs what opening a closed volume costs, and little more: that is the
/// pause of an upgrade.
#[test]
fn a_volume_that_was_handed_over_is_opened_with_few_requests() {
    super::run(async {
        let journals = tempfile::tempdir().unwrap();
        let world = World::new().await;
        let (pool, id) = (&world.catalog, world.volume("v").await);
        let requests = || {
            let now = pool.bucket().requests();
            now.get + now.put + now.list + now.head
        };
        let mut counts = Vec::new();
        for leaves in [false, true] {
            let process_ = process(journals.path());
            let volume = process_.open(pool, id.dataset).await.unwrap();
            for n in 0..40 {
                top::create(&*volume.fs, &format!("file-{leaves}-{n}")).await;
                volume.fs.sync().await.unwrap();
            }
            let file = top::child(&*volume.fs, &format!("file-{leaves}-0")).await.unwrap().file;
            write_at(&*volume.fs, file, 0, &[1; 5000]).await;
            drop(volume);
            let before = requests();
            if leaves {
                process_.prepare_handover().await.unwrap();
                let prepared = requests();
                process_.hand_over(LIMIT).await.unwrap();
                println!("to prepare {}, to leave {}", prepared - before, requests() - prepared);
            } else {
                process_.close(id.dataset).await.unwrap();
                println!("to close {}", requests() - before);
            }
            let before = requests();
            let next = process(journals.path());
            assert!(is_there(&next, pool, id, &format!("file-{leaves}-39")).await);
            counts.push(requests() - before);
            next.close(id.dataset).await.unwrap();
        }
        println!("requests to open after closing, after leaving: {counts:?}");
        assert!(counts[1] <= counts[0] + 8, "{counts:?}");
    });
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// As `serve` stops: what it had open is closed and released.
    Closes,
    /// As the node plugin stops: what is mounted stays its node's.
    Stops,
    Killed,
}

/// The node's copies of the WAL objects that it put, when it opens the dataset again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum LocalWal {
    Kept,
    Missing,
    /// A byte of each copy differs.
    Damaged,
    /// The copies are those of another log: whole, and not what the store has.
    Swapped,
}

impl LocalWal {
    fn apply(self, journals: &Path) {
        let Some(file) = wal_copies(journals) else {
            return assert_eq!(self, Self::Kept, "there are no copies");
        };
        let mut bytes = std::fs::read(&file).unwrap();
        match self {
            Self::Kept => {}
            Self::Missing => return std::fs::remove_file(&file).unwrap(),
            Self::Damaged => bytes.chunks_mut(64).for_each(|chunk| chunk[40 % chunk.len()] ^= 1),
            Self::Swapped => {
                let slot = (128 << 10) + 20;
                bytes.resize(bytes.len().div_ceil(slot) * slot, 0);
                bytes.rotate_left(slot);
            }
        }
        std::fs::write(&file, bytes).unwrap();
    }
}

/// The file of copies beside the one journal of the folder.
fn wal_copies(journals: &Path) -> Option<PathBuf> {
    let pools = std::fs::read_dir(journals).unwrap().map(|entry| entry.unwrap().path());
    let files =
        pools.filter(|path| path.is_dir()).flat_map(|pool| std::fs::read_dir(pool).unwrap());
    let mut files = files.map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "wal"))
}

/// The requests and the time of the next opening on the node, after this many changes that were
/// each synced, and the end of the process. `latency`: of each request.
async fn opening_after(
    end: End,
    syncs: usize,
    local: LocalWal,
    latency: Duration,
) -> (Requests, Duration) {
    let journals = tempfile::tempdir().unwrap();
    let store = FaultStore::memory();
    let world = World::builder("node-a").create(store.bucket()).await;
    let (pool, id) = (&world.catalog, world.volume("v").await);
    let (first, volume) = life({
        let (first, pool) = (process(journals.path()), pool.clone());
        let store = store.clone();
        async move {
            let volume = first.open(&pool, id.dataset).await.unwrap();
            store.latency(latency);
            for n in 0..syncs {
                top::create(&*volume.fs, &format!("file-{n}")).await;
                volume.fs.sync().await.unwrap();
            }
            match end {
                End::Closes => first.close(id.dataset).await.unwrap(),
                End::Stops => first.sync_all(LIMIT).await.unwrap(),
                End::Killed => {}
            }
            (first, volume)
        }
    })
    .await;
    if end != End::Closes {
        volume.fs.give_up(FsError::Stale);
    }
    drop((volume, first));
    if end == End::Closes {
        assert_eq!(wal_copies(journals.path()), None, "the copies go with the journal");
    }
    local.apply(journals.path());
    let (next, since) = (process(journals.path()), Instant::now());
    loop {
        let (before, begun) = (pool.bucket().requests(), Instant::now());
        match next.open(pool, id.dataset).await {
            Ok(volume) => {
                let (opening, took) = (pool.bucket().requests() - before, begun.elapsed());
                store.latency(Duration::ZERO);
                for n in 0..syncs {
                    assert!(top::has(&*volume.fs, &format!("file-{n}")).await, "file-{n}");
                }
                drop(volume);
                next.close(id.dataset).await.unwrap();
                return (opening, took);
            }
            // The journal is still the first one's.
            Err(error) if error.class().may_pass() && since.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// An opening replays a bounded amount after a kill, and nothing after any other end.
#[test]
fn an_opening_replays_little_after_a_kill_and_nothing_after_a_stop() {
    super::run(async {
        let opening = |end, syncs, local| opening_after(end, syncs, local, Duration::ZERO);
        let (closed, _) = opening(End::Closes, 250, LocalWal::Kept).await;
        let (stopped, _) = opening(End::Stops, 250, LocalWal::Kept).await;
        println!(
            "requests to open: {} after a close ({closed:?}), {} after a stop",
            closed.total(),
            stopped.total()
        );
        assert!(closed.total() <= 40, "{closed:?}");
        assert!(stopped.total() <= closed.total() + 4, "{stopped:?}, after a close {closed:?}");
        for syncs in [1, 15, 31, 250] {
            let (killed, _) = opening(End::Killed, syncs, LocalWal::Missing).await;
            println!(
                "requests to open after {syncs} syncs and a kill: {} ({killed:?})",
                killed.total()
            );
            // Each WAL object is one GET.
            let replayed = killed.get.saturating_sub(closed.get);
            assert!(
                replayed <= 36 && killed.head <= closed.head,
                "{syncs}: {killed:?}, after a close {closed:?}"
            );
        }
    });
}

/// A node that had the volume has the WAL objects that it put: it asks the store for none of them,
/// unless its copies are damaged.
#[test]
fn an_opening_after_a_kill_replays_the_wal_from_the_nodes_own_disk() {
    super::run(async {
        const LATENCY: Duration = Duration::from_millis(20);
        // Fewer than begin a MemTable flush.
        const SYNCS: usize = 18;
        let closed = opening_after(End::Closes, SYNCS, LocalWal::Kept, LATENCY).await;
        println!("after a close: {:?}, {} requests: {:?}", closed.1, closed.0.total(), closed.0);
        for local in [LocalWal::Kept, LocalWal::Missing, LocalWal::Damaged, LocalWal::Swapped] {
            let (made, took) = opening_after(End::Killed, SYNCS, local, LATENCY).await;
            println!("copies {local:?}: {took:?}, {} requests: {made:?}", made.total());
            let replayed = made.get.saturating_sub(closed.0.get);
            match local {
                LocalWal::Kept => assert!(replayed <= 4, "{made:?}, after a close {closed:?}"),
                _ => assert!((15..=36).contains(&replayed), "{local:?}: {made:?}"),
            }
        }
    });
}

/// A process writes to its volumes, loses the store to `fault`, and is told to stop.
async fn stop_without_store(
    process: Volumes,
    catalog: &Catalog,
    store: &FaultStore,
    fault: Fault,
    ids: &[VolumeHandle],
    closes: bool,
) -> Result<(), VolumeError> {
    let mut open = Vec::new();
    for id in ids {
        let volume = process.open(catalog, id.dataset).await.unwrap();
        top::create(&*volume.fs, "early").await;
        volume.fs.sync().await.unwrap();
        let late = top::create(&*volume.fs, "late").await;
        write_at(&*volume.fs, late, 0, &[1; 200_000]).await;
        open.push(volume);
    }
    store.script(Rule::any().then(fault));
    let stopping = async {
        let limit = Duration::from_millis(700);
        if closes {
            process.close_within(ids.iter().map(|id| id.dataset).collect(), limit).await
        } else {
            process.sync_all(limit).await
        }
    };
    tokio::time::timeout(LIMIT, stopping).await.expect("it does not wait for the store")
}

/// A process that is told to stop while the store hangs, throttles or fails stops all the same, and
/// the next one has what was acknowledged.
#[test]
fn a_process_stops_though_the_store_is_away() {
    super::run(async {
        for fault in [Fault::Hang, Fault::Throttled, Fault::Before] {
            for closes in [false, true] {
                let journals = tempfile::tempdir().unwrap();
                let store = FaultStore::memory();
                let world = World::builder("controller-1").create(store.quick_bucket()).await;
                let mut ids = Vec::new();
                for volume in ["a", "b", "c"] {
                    ids.push(world.volume(volume).await);
                }
                let stopped = life({
                    let (first, catalog) = (process(journals.path()), world.catalog.clone());
                    let (store, ids) = (store.clone(), ids.clone());
                    async move { stop_without_store(first, &catalog, &store, fault, &ids, closes).await }
                });
                let error = stopped.await.expect_err("the store has not everything");
                assert!(error.class().may_pass(), "{fault:?}: {error}");
                store.heal();
                let next = process(journals.path());
                for id in ids {
                    for file in ["early", "late"] {
                        assert!(
                            is_there(&next, &world.catalog, id, file).await,
                            "{fault:?}, closes: {closes}: {file}"
                        );
                    }
                    next.close(id.dataset).await.unwrap();
                }
            }
        }
    });
}
