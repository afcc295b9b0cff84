//! The database on memory and folder stores, with its requests counted.

use super::*;
use crate::bucket::{Credentials, Folder, Limits, Requests};

async fn clone_from(
    clone: &DbPlace,
    source: Incarnation,
    checkpoint: CheckpointId,
) -> Result<(), FsError> {
    NewClone::read(clone, source, checkpoint).await?.make().await
}

fn place(bucket: Bucket) -> DbPlace {
    DbPlace::new(bucket, Incarnation::random(), None, DbCache::new(16 << 20))
}

/// A place in memory, and one in a folder that goes away with its guard.
fn places() -> Vec<(DbPlace, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display()).parse().unwrap();
    let bucket =
        Bucket::open(&url, &Credentials::none(), Folder::MustExist, Limits::default()).unwrap();
    vec![(place(Bucket::memory()), None), (place(bucket), Some(folder))]
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("I{n:010}"))
}

fn rows(from: u64, to: u64) -> Ops {
    (from..to)
        .map(|n| {
            (
                key(n),
                Some(Bytes::from(format!("row {n} {}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))),
            )
        })
        .collect()
}

async fn count(
    rows: impl AsyncFn(Bytes, Bytes, usize) -> Result<Vec<(Bytes, Bytes)>, FsError>,
) -> usize {
    rows(Bytes::from_static(b"I"), Bytes::from_static(b"J"), usize::MAX).await.unwrap().len()
}

fn since(bucket: &Bucket, before: Requests) -> Requests {
    let now = bucket.requests();
    Requests {
        get: now.get - before.get,
        put: now.put - before.put,
        list: now.list - before.list,
        delete: now.delete - before.delete,
        head: now.head - before.head,
    }
}

#[tokio::test]
async fn what_was_flushed_is_there_after_a_crash() {
    for (place, _folder) in places() {
        assert!(!exists(&place).await.unwrap());
        let first = Database::open(&place, None).await.unwrap();
        first.write(rows(0, 10)).await.unwrap();
        first.flush().await.unwrap();
        first.write(rows(10, 20)).await.unwrap();
        assert_eq!(first.get(&key(15)).await.unwrap().unwrap(), rows(15, 16)[0].1.clone().unwrap());
        drop(first);

        assert!(exists(&place).await.unwrap());
        let second = Database::open(&place, None).await.unwrap();
        assert_eq!(count(async |a, b, n| second.scan(a, b, n).await).await, 10);
        second.write(vec![(key(3), None)]).await.unwrap();
        second.close().await.unwrap();
        let third = Database::open(&place, None).await.unwrap();
        assert_eq!(third.get(&key(3)).await.unwrap(), None);
        assert_eq!(third.scan(key(2), key(9), 3).await.unwrap().len(), 3);
        assert!(third.scan(key(9), key(2), 3).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_newer_opener_fences_the_older() {
    let place = place(Bucket::memory());
    let first = Database::open(&place, None).await.unwrap();
    first.write(rows(0, 1)).await.unwrap();
    let second = Database::open(&place, Some(first.epoch())).await.unwrap();
    assert!(second.epoch() > first.epoch());
    assert!(matches!(first.flush().await, Err(FsError::Fenced)));
    assert!(matches!(first.closed().await, FsError::Fenced));
    assert!(matches!(first.get(&key(0)).await, Err(FsError::Fenced)));
    assert!(matches!(
        Database::open(&place, Some(first.epoch())).await.map(drop),
        Err(FsError::Fenced)
    ));
    second.verify_owner().await.unwrap();
    fence(&place).await.unwrap();
    assert!(matches!(second.verify_owner().await, Err(FsError::Fenced)));
}

#[tokio::test]
async fn a_flush_is_one_put_and_an_idle_database_makes_no_request() {
    for (place, _folder) in places() {
        let db = Database::open(&place, None).await.unwrap();
        db.write(rows(0, 3)).await.unwrap();
        db.flush().await.unwrap();
        // The first tick of a poll comes with the opening.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = place.bucket.requests();
        db.write(rows(3, 5)).await.unwrap();
        db.flush().await.unwrap();
        assert_eq!(since(&place.bucket, before), Requests { put: 1, ..Requests::default() });
        db.flush().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(since(&place.bucket, before), Requests { put: 1, ..Requests::default() });
    }
}

/// Requests of a checkpoint and of a clone of a database with `n` rows.
async fn requests_with(n: u64) -> (Requests, Requests) {
    let place = place(Bucket::memory());
    let db = Database::open(&place, None).await.unwrap();
    for start in (0..n).step_by(10_000) {
        db.write(rows(start, n.min(start + 10_000))).await.unwrap();
    }
    db.close().await.unwrap();
    let db = Database::open(&place, None).await.unwrap();
    db.write(rows(0, 1)).await.unwrap();
    db.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = place.bucket.requests();
    let checkpoint = db.checkpoint("snap").await.unwrap();
    let checkpointing = since(&place.bucket, before);
    let clone = place.sibling(Incarnation::random());
    let before = place.bucket.requests();
    clone_from(&clone, place.incarnation, checkpoint).await.unwrap();
    let cloning = since(&place.bucket, before);
    let cloned = Database::open(&clone, None).await.unwrap();
    assert_eq!(count(async |a, b, n| cloned.scan(a, b, n).await).await as u64, n);
    (checkpointing, cloning)
}

#[tokio::test]
async fn requests_of_checkpoints_and_clones_do_not_grow() {
    let (small, large) = (requests_with(10).await, requests_with(100_000).await);
    println!("checkpoint {:?}\nclone {:?}", small.0, small.1);
    assert_eq!(small, large);
}

#[tokio::test]
async fn a_checkpoint_stays_as_it_was_and_its_name_is_unique() {
    for (place, _folder) in places() {
        let db = Database::open(&place, None).await.unwrap();
        db.write(rows(0, 10)).await.unwrap();
        let checkpoint = db.checkpoint("one").await.unwrap();
        db.write(rows(10, 20)).await.unwrap();
        db.write(vec![(key(0), None)]).await.unwrap();
        db.flush().await.unwrap();
        assert_eq!(db.checkpoint("one").await.unwrap(), checkpoint);
        let reader = Reader::at_checkpoint(&place, checkpoint).await.unwrap();
        assert_eq!(count(async |a, b, n| reader.scan(a, b, n).await).await, 10);
        assert!(reader.get(&key(0)).await.unwrap().is_some());
        reader.close().await.unwrap();
        assert_eq!(holds(&place).await.unwrap().named, vec![("one".to_owned(), checkpoint)]);
        db.close().await.unwrap();
        assert_eq!(
            checkpoint_closed(&place, "one", epoch(&place).await.unwrap()).await.unwrap().0,
            checkpoint
        );
        let (two, _) =
            checkpoint_closed(&place, "two", epoch(&place).await.unwrap()).await.unwrap();
        assert_ne!(two, checkpoint);
        drop_checkpoint(&place, checkpoint).await.unwrap();
        drop_checkpoint(&place, checkpoint).await.unwrap();
        assert_eq!(holds(&place).await.unwrap().named, vec![("two".to_owned(), two)]);
        assert!(Reader::at_checkpoint(&place, checkpoint).await.is_err());
    }
}

#[tokio::test]
async fn the_newest_state_includes_the_wal_and_is_read_without_writing() {
    for (place, _folder) in places() {
        let db = Database::open(&place, None).await.unwrap();
        db.write(rows(0, 10)).await.unwrap();
        db.checkpoint("one").await.unwrap();
        db.write(rows(10, 20)).await.unwrap();
        db.flush().await.unwrap();
        db.write(rows(20, 30)).await.unwrap();
        let before = place.bucket.requests();
        let reader = Reader::newest(&place).await.unwrap();
        assert_eq!(count(async |a, b, n| reader.scan(a, b, n).await).await, 20);
        reader.close().await.unwrap();
        let made = since(&place.bucket, before);
        assert_eq!((made.put, made.delete), (0, 0));
        // The writer goes on.
        db.flush().await.unwrap();
        assert_eq!(count(async |a, b, n| db.scan(a, b, n).await).await, 30);
    }
}

#[tokio::test]
async fn a_clone_holds_its_source_and_deletion_respects_it() {
    for (place, _folder) in places() {
        let db = Database::open(&place, None).await.unwrap();
        db.write(rows(0, 100)).await.unwrap();
        let checkpoint = db.checkpoint("one").await.unwrap();
        let clone = place.sibling(Incarnation::random());
        clone_from(&clone, place.incarnation, checkpoint).await.unwrap();
        clone_from(&clone, place.incarnation, checkpoint).await.unwrap();
        assert_eq!(
            (ancestors(&clone).await.unwrap(), holds(&place).await.unwrap().clone_pins),
            (1, 1)
        );
        drop_checkpoint(&place, checkpoint).await.unwrap();
        db.write(vec![(key(0), None)]).await.unwrap();
        db.close().await.unwrap();

        let cloned = Database::open(&clone, None).await.unwrap();
        cloned.write(rows(100, 150)).await.unwrap();
        assert_eq!(count(async |a, b, n| cloned.scan(a, b, n).await).await, 150);
        cloned.close().await.unwrap();

        fence(&place).await.unwrap();
        assert!(matches!(delete(&place).await, Err(FsError::Busy(_))));
        fence(&clone).await.unwrap();
        delete(&clone).await.unwrap();
        assert!(!exists(&clone).await.unwrap());
        assert_eq!(holds(&place).await.unwrap(), Holds::default());
        delete(&place).await.unwrap();
        delete(&place).await.unwrap();
        assert_eq!(place.bucket.list("vol/").await.unwrap(), Vec::new());
    }
}

/// Fills L0 far beyond the point where a compactor has to help.
#[tokio::test]
async fn compaction_keeps_l0_open_and_then_stops() {
    let place = place(Bucket::memory());
    let db = Database::open(&place, None).await.unwrap();
    for n in 0..40 {
        db.write(rows(n * 100, n * 100 + 200)).await.unwrap();
        db.checkpoint(&format!("c{n}")).await.unwrap();
    }
    assert_eq!(count(async |a, b, n| db.scan(a, b, n).await).await, 4100);
    let quiet = async {
        loop {
            let before = place.bucket.requests();
            tokio::time::sleep(Duration::from_secs(3)).await;
            if place.bucket.requests() == before {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), quiet)
        .await
        .expect("the compactor stops when it is done");
    db.close().await.unwrap();
}

async fn objects(place: &DbPlace, below: &str) -> usize {
    place.bucket.list(&format!("vol/{}/{below}", place.incarnation)).await.unwrap().len()
}

const AT_ONCE: collection::Ages =
    collection::Ages { data: Duration::ZERO, records: Duration::ZERO };

/// A database that is written, snapshotted and cloned without end keeps a bounded number of
/// objects, and all that is named stays readable.
#[tokio::test]
async fn a_busy_database_keeps_no_more_than_it_needs() {
    for (place, _folder) in places() {
        let db = Database::open(&place, None).await.unwrap();
        db.write(rows(0, 100)).await.unwrap();
        let kept = db.checkpoint("kept").await.unwrap();
        let clone = place.sibling(Incarnation::random());
        clone_from(&clone, place.incarnation, kept).await.unwrap();
        let mut most = 0;
        for round in 0..6u64 {
            for n in 0..30 {
                db.write(rows(1000 + n * 10, 1000 + n * 10 + 20)).await.unwrap();
                db.flush().await.unwrap();
            }
            let passing = db.checkpoint(&format!("passing {round}")).await.unwrap();
            db.write(rows(0, 50)).await.unwrap();
            db.checkpoint(&format!("fill {round}")).await.unwrap();
            drop_checkpoint(&place, passing).await.unwrap();
            let before = objects(&place, "").await;
            db.collect(AT_ONCE).await.unwrap();
            let after = objects(&place, "").await;
            assert!(after < before, "round {round}: {before} and then {after}");
            most = if round < 2 { most.max(after) } else { most };
            // One checkpoint a round stays, with a manifest and the tables of its own and of the
            // MemTable flush that bounds the replay; and one WAL object each that it begins with.
            assert!(after <= most + 6 * 6, "round {round}: {after} objects, at first {most}");
        }
        assert_eq!(count(async |a, b, n| db.scan(a, b, n).await).await, 100 + 310);
        let reader = Reader::at_checkpoint(&place, kept).await.unwrap();
        assert_eq!(count(async |a, b, n| reader.scan(a, b, n).await).await, 100);
        reader.close().await.unwrap();
        let cloned = Database::open(&clone, None).await.unwrap();
        assert_eq!(count(async |a, b, n| cloned.scan(a, b, n).await).await, 100);
        cloned.close().await.unwrap();
        let fences = |place: &DbPlace| {
            let (bucket, prefix) = (place.bucket.clone(), format!("vol/{}/wal", place.incarnation));
            async move {
                bucket.list(&prefix).await.unwrap().into_iter().filter(|o| o.bytes == 0).count()
            }
        };
        let fenced = fences(&place).await;
        db.close().await.unwrap();
        let again = Database::open(&place, None).await.unwrap();
        again.collect(AT_ONCE).await.unwrap();
        assert!(fences(&place).await >= fenced, "fences stay");
        assert_eq!(count(async |a, b, n| again.scan(a, b, n).await).await, 100 + 310);
        again.close().await.unwrap();
    }
}

/// A clone that was detached reads nothing of its origin, with a failure at each step before.
#[tokio::test]
async fn a_detached_clone_stands_on_its_own() {
    for failing in [None, Some("fs.db.detach.rewritten"), Some("fs.db.detach.dropped")] {
        let place = place(Bucket::memory());
        let db = Database::open(&place, None).await.unwrap();
        for n in 0..4 {
            db.write(rows(n * 100, n * 100 + 150)).await.unwrap();
            db.checkpoint(&format!("c{n}")).await.unwrap();
        }
        let last = db.checkpoint("last").await.unwrap();
        let middle = place.sibling(Incarnation::random());
        clone_from(&middle, place.incarnation, last).await.unwrap();
        let between = Database::open(&middle, None).await.unwrap();
        between.write(rows(1000, 1050)).await.unwrap();
        let cut = between.checkpoint("cut").await.unwrap();
        between.close().await.unwrap();
        let clone = place.sibling(Incarnation::random());
        clone_from(&clone, middle.incarnation, cut).await.unwrap();
        assert_eq!(ancestors(&clone).await.unwrap(), 2);

        if let Some(step) = failing {
            place.bucket.failpoints().set(step, "1*return").unwrap();
            let at = epoch(&clone).await.unwrap();
            assert!(
                matches!(detach_closed(&clone, at).await, Err(FsError::Unavailable(_))),
                "{step}"
            );
        }
        let at = epoch(&clone).await.unwrap();
        assert_eq!(detach_closed(&clone, at).await.unwrap(), Detached::Whole, "{failing:?}");
        assert_eq!(ancestors(&clone).await.unwrap(), 0);
        for source in [&middle, &place] {
            for (_, checkpoint) in holds(source).await.unwrap().named {
                drop_checkpoint(source, checkpoint).await.unwrap();
            }
        }
        let at = epoch(&middle).await.unwrap();
        assert_eq!(detach_closed(&middle, at).await.unwrap(), Detached::Whole);
        db.close().await.unwrap();
        for source in [&middle, &place] {
            fence(source).await.unwrap();
            delete(source).await.unwrap();
            assert_eq!(objects(source, "").await, 0, "{failing:?}");
        }
        let alone = Database::open(&clone, None).await.unwrap();
        assert_eq!(count(async |a, b, n| alone.scan(a, b, n).await).await, 450 + 50);
        alone.close().await.unwrap();
    }
}

/// Does the work while the clock is ahead by hours. Time that is passed in one runtime has not
/// passed in the next.
fn in_runtime(hours: u64, work: futures::future::LocalBoxFuture<'_, ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::advance(Duration::from_secs(3600 * hours)).await;
        work.await;
    });
}

const YEAR_HOURS: u64 = 365 * 24;

/// Writes tables until a compaction has replaced some.
async fn compact_something(db: &Database) {
    for n in 0..settings::COMPACT_L0 as u64 + 2 {
        db.write(rows(n * 100, n * 100 + 200)).await.unwrap();
        db.rolled().await.unwrap();
    }
    let compacted = async {
        while db.db.manifest().compacted().is_empty()
            || db.db.manifest().l0().len() >= settings::COMPACT_L0
        {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), compacted).await.expect("a compaction");
    // Nothing is held for readers after this.
    tokio::time::advance(settings::COMPACTOR_HOLD * 2).await;
}

/// Tables that were replaced go, also those made while a clock was a year ahead, and those made
/// since.
#[test]
fn tables_are_collected_after_a_clock_was_a_year_ahead() {
    let place = place(Bucket::memory());
    in_runtime(
        YEAR_HOURS,
        Box::pin(async {
            let db = Database::open(&place, None).await.unwrap();
            compact_something(&db).await;
            db.close().await.unwrap();
        }),
    );
    in_runtime(
        0,
        Box::pin(async {
            let db = Database::open(&place, None).await.unwrap();
            compact_something(&db).await;
            let before = objects(&place, "compacted").await;
            db.collect(AT_ONCE).await.unwrap();
            let after = objects(&place, "compacted").await;
            assert!(after < before, "{before} tables, and then {after}");
            compact_something(&db).await;
            db.close().await.unwrap();
        }),
    );
    in_runtime(
        1,
        Box::pin(async {
            let before = objects(&place, "compacted").await;
            let clock =
                admin::closed_clock(&place, &admin::manifest(&place).await.unwrap().unwrap())
                    .await
                    .unwrap();
            tokio::time::advance(settings::COMPACTOR_HOLD * 2).await;
            collection::collect(&place, &clock, AT_ONCE).await.unwrap();
            let after = objects(&place, "compacted").await;
            assert!(after < before, "closed: {before} tables, and then {after}");
            let db = Database::open(&place, None).await.unwrap();
            assert_eq!(count(async |a, b, n| db.scan(a, b, n).await).await, 1100);
            db.close().await.unwrap();
        }),
    );
}

/// A node whose clock is hours behind that of the last owner detaches a clone all the same, and at
/// once.
#[test]
fn a_node_with_a_slow_clock_detaches() {
    let place = place(Bucket::memory());
    let clone = place.sibling(Incarnation::random());
    in_runtime(
        3,
        Box::pin(async {
            let db = Database::open(&place, None).await.unwrap();
            db.write(rows(0, 100)).await.unwrap();
            let cut = db.checkpoint("cut").await.unwrap();
            clone_from(&clone, place.incarnation, cut).await.unwrap();
            let owner = Database::open(&clone, None).await.unwrap();
            owner.write(rows(200, 250)).await.unwrap();
            owner.close().await.unwrap();
            db.close().await.unwrap();
        }),
    );
    in_runtime(
        0,
        Box::pin(async {
            let at = epoch(&clone).await.unwrap();
            assert_eq!(detach_closed(&clone, at).await.unwrap(), Detached::Whole);
            assert_eq!(ancestors(&clone).await.unwrap(), 0);
            assert_eq!(holds(&place).await.unwrap().clone_pins, 0);
            let alone = Database::open(&clone, None).await.unwrap();
            assert_eq!(count(async |a, b, n| alone.scan(a, b, n).await).await, 150);
            alone.close().await.unwrap();
        }),
    );
}

/// While the clone is mounted the tables stay for readers; its own earlier snapshots keep them too.
#[tokio::test]
async fn an_open_clone_is_rewritten_at_once_and_detached_later() {
    let place = place(Bucket::memory());
    let db = Database::open(&place, None).await.unwrap();
    db.write(rows(0, 100)).await.unwrap();
    let cut = db.checkpoint("cut").await.unwrap();
    let clone = place.sibling(Incarnation::random());
    clone_from(&clone, place.incarnation, cut).await.unwrap();
    let open = Database::open(&clone, None).await.unwrap();
    open.write(rows(200, 250)).await.unwrap();
    assert_eq!(open.detach().await.unwrap(), Detached::Held);
    assert_eq!(holds(&place).await.unwrap().clone_pins, 1);
    let requests = place.bucket.requests().put;
    assert_eq!(open.detach().await.unwrap(), Detached::Held);
    assert!(place.bucket.requests().put <= requests + 1, "nothing is rewritten twice");
    assert_eq!(count(async |a, b, n| open.scan(a, b, n).await).await, 150);
    open.close().await.unwrap();
    db.close().await.unwrap();
}

/// A damaged table stops compaction; that is reported before L0 is full, and by every write once it
/// is, until the table is put back.
#[test]
fn a_damaged_table_is_told() {
    let place = place(Bucket::memory());
    in_runtime(
        0,
        Box::pin(async {
            let db = Database::open(&place, None).await.unwrap();
            let roll = async |n: u64| {
                db.write(rows(n * 100, n * 100 + 200)).await.unwrap();
                db.rolled().await.unwrap();
            };
            roll(0).await;
            let tables =
                place.bucket.list(&format!("vol/{}/compacted/", place.incarnation)).await.unwrap();
            let [table] = &tables[..] else { panic!("{tables:?}") };
            let whole = place.bucket.get(&table.key, 1 << 20).await.unwrap().unwrap();
            let mut damaged = whole.to_vec();
            damaged[100] ^= 1;
            place.bucket.put(&table.key, damaged.into()).await.unwrap();
            for n in 1..=settings::COMPACT_L0 as u64 {
                roll(n).await;
            }
            let told = async |told: bool| {
                while db.damage().is_some() != told {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(600), told(true))
                .await
                .expect("nobody is told");
            let error = db.damage().unwrap();
            let name = table.key.rsplit('/').next().unwrap();
            assert!(
                matches!(error, FsError::Corrupt(_)) && error.to_string().contains(name),
                "{error}"
            );
            assert!(db.blocked().is_none(), "there is room in L0");
            while db.db.manifest().l0().len() + settings::L0_ROOM <= settings::L0_MAX {
                roll(1000).await;
            }
            assert!(matches!(db.checkpoint("one").await, Err(FsError::Corrupt(_))));
            while db.db.manifest().l0().len() < settings::L0_MAX {
                db.write(rows(0, 10)).await.unwrap();
                db.db
                    .flush_with_options(slatedb::config::FlushOptions {
                        flush_type: slatedb::config::FlushType::MemTable,
                    })
                    .await
                    .unwrap();
            }
            assert!(matches!(db.blocked(), Some(FsError::Corrupt(_))));
            place.bucket.put(&table.key, whole).await.unwrap();
            tokio::time::timeout(Duration::from_secs(3600), told(false))
                .await
                .expect("it is not compacted again");
            assert!(db.blocked().is_none());
            db.checkpoint("one").await.unwrap();
            db.close().await.unwrap();
        }),
    );
}

/// A compactor that had just been started must not outlive the database that started it.
#[tokio::test]
async fn nothing_runs_after_closing() {
    let place = place(Bucket::memory());
    let db = Database::open(&place, None).await.unwrap();
    for n in 0..7 {
        db.write(rows(n * 100, n * 100 + 200)).await.unwrap();
        db.checkpoint(&format!("c{n}")).await.unwrap();
    }
    db.close().await.unwrap();
    for _ in 0..5 {
        // With L0 as full as this the compactor starts with the opening.
        let db = Database::open(&place, None).await.unwrap();
        tokio::task::yield_now().await;
        db.close().await.unwrap();
    }
    let before = place.bucket.requests();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(place.bucket.requests(), before);
}
