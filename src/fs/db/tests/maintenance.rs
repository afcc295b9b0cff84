//! Compaction, collection and detaching, under clocks that differ, and damaged tables.

use super::*;

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
