//! R1 and what issue 3 calls bad input, on stores that fail.

use super::*;
use crate::support::fault::{Chances, Fault, FaultStore, Op, Rule, quick};
use crate::support::s3::{Quirks, S3Server};
use bytes::Bytes;
use object_store::path::Path;
use std::sync::Arc;
use zerofs_csi::bucket::BucketError;

fn on(store: &Arc<FaultStore>) -> Bucket {
    Bucket::on(store.clone(), Path::default()).with_limits(quick())
}

#[tokio::test]
async fn a_store_without_put_if_absent_is_refused() {
    let store = FaultStore::memory();
    store.ignore_conditions();
    let error = Catalog::create(on(&store), None).await.unwrap_err();
    assert!(
        matches!(&error, CatalogError::Unfit { .. }) && error.to_string().contains("If-None-Match"),
        "{error}"
    );
    assert_eq!(on(&store).list("").await.unwrap(), [], "nothing is left behind");
}

/// Makes a server answer as one kind of store does.
type Quirk = fn(&mut Quirks);

/// Over HTTP: what a store or a proxy before it does not do, or not for all that volumes will
/// write.
#[tokio::test]
async fn a_store_that_a_pool_cannot_use_is_refused_with_the_reason() {
    let unfit: [(Quirk, &str); 3] = [
        (|quirks| quirks.ignores_if_none_match = true, "ignores the condition"),
        (|quirks| quirks.refuses_if_none_match = true, "does not support put-if-absent"),
        (|quirks| quirks.body_bytes_max = Some(1 << 20), "client_max_body_size"),
    ];
    for (quirk, says) in unfit {
        let server = S3Server::start();
        server.quirks(quirk);
        let error = Catalog::create(server.pool("s3://test/pool"), None).await.unwrap_err();
        let text = format!(
            "{error}: {}",
            std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
        );
        assert!(text.contains(says), "{text}");
        assert_eq!(server.keys(), [""; 0], "nothing is left behind");
    }
}

#[tokio::test]
async fn a_store_that_drops_metadata_keeps_a_pool() {
    let server = S3Server::start();
    server.quirks(|quirks| quirks.drops_metadata = true);
    let pool = Catalog::create(server.pool("s3://test/pool"), None).await.unwrap();
    pool.insert_dataset(dataset("a")).await.unwrap();
    pool.check_size().await.unwrap();
    server.quirks(|quirks| quirks.body_bytes_max = Some(1 << 20));
    let error = pool.check_size().await.unwrap_err();
    assert_eq!(error.class(), Class::Precondition, "{error}");
    assert!(pool.bucket().refusal().is_some());
}

#[tokio::test]
async fn a_read_only_bucket_is_refused() {
    let store = FaultStore::memory();
    store.read_only();
    let error = Catalog::create(on(&store), None).await.unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    assert_eq!(error.class(), Class::Denied);
}

#[tokio::test]
async fn an_outage_is_unavailable_and_an_absent_pool_is_absent() {
    let store = FaultStore::memory();
    store.die();
    let error = Catalog::open(on(&store), None).await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    store.heal();
    assert_eq!(Catalog::open(on(&store), None).await.unwrap_err().class(), Class::NotFound);
}

#[tokio::test]
async fn a_lost_acknowledgement_is_recognised() {
    let store = FaultStore::memory();
    let pool = Catalog::create(on(&store), None).await.unwrap();
    store.script(Rule::on(Op::PutNew).at("datasets/").times(1).then(Fault::LostAck));
    let mut at = pool.insert_dataset(dataset("a")).await.unwrap();
    store.script(Rule::on(Op::PutNew).at("datasets/").times(1).then(Fault::LostAck));
    let next = Dataset { state: State::Ready, ..at.record.clone() };
    pool.swap_dataset(&mut at, next).await.unwrap();
    assert_eq!(at.version, 2);
}

#[tokio::test]
async fn a_list_followed_by_a_404_lists_again() {
    let store = FaultStore::memory();
    let pool = Catalog::create(on(&store), None).await.unwrap();
    let new = dataset("a");
    pool.insert_dataset(new.clone()).await.unwrap();
    // Another handle, which has read nothing yet.
    let pool = Catalog::open(on(&store), None).await.unwrap();
    store.clear_log();
    store.script(Rule::on(Op::Get).at("datasets/").times(2).then(Fault::Absent));
    assert_eq!(pool.dataset(&new.name).await.unwrap().unwrap().record, new);
    assert_eq!(store.log().iter().filter(|(op, _)| *op == Op::List).count(), 3);
}

#[tokio::test]
async fn a_bit_flipped_on_the_way_is_read_again() {
    let store = FaultStore::memory();
    Catalog::create(on(&store), None).await.unwrap();
    for bit in [0, 77, 300, 801] {
        store.script(Rule::on(Op::Get).times(1).then(Fault::FlipBit(bit)));
        Catalog::open(on(&store), None).await.unwrap();
    }
}

#[tokio::test]
async fn every_kind_of_record_tells_that_it_is_corrupt() {
    let store = FaultStore::memory();
    let bucket = on(&store);
    let pool = Catalog::create(bucket.clone(), None).await.unwrap();
    let of = dataset("a");
    let snap = snapshot(&of, "s");
    pool.insert_dataset(of.clone()).await.unwrap();
    pool.insert_snapshot(snap.clone()).await.unwrap();
    pool.claim_csi_snapshot_name("name", snap.id()).await.unwrap();
    let records = bucket.list("").await.unwrap();
    assert_eq!(records.len(), 4);
    for record in records {
        let whole = bucket.get(&record.key, 1 << 20).await.unwrap().unwrap();
        for (what, bad) in damages(&whole) {
            bucket.put(&record.key, bad).await.unwrap();
            let fresh = Catalog::open(bucket.clone(), None).await;
            let error = match (&fresh, record.key.split('/').next().unwrap()) {
                (Err(error), "pool") => error.clone(),
                (Ok(fresh), "datasets") => fresh.dataset(&of.name).await.unwrap_err(),
                (Ok(fresh), "snapshots") => fresh.snapshots(None).await.unwrap_err(),
                (Ok(fresh), "names") => {
                    fresh.claim_csi_snapshot_name("name", snap.id()).await.unwrap_err()
                }
                (opened, _) => panic!("{} {what}: {opened:?}", record.key),
            };
            assert_eq!(error.class(), Class::Corrupt, "{} {what}: {error}", record.key);
            assert!(error.to_string().contains(&record.key), "{error}");
        }
        bucket.put(&record.key, whole).await.unwrap();
    }
}

fn damages(whole: &Bytes) -> Vec<(String, Bytes)> {
    let mut damages = vec![
        ("empty".to_owned(), Bytes::new()),
        ("cut".to_owned(), whole.slice(..whole.len() - 1)),
    ];
    for at in (0..whole.len()).step_by(7) {
        let mut bad = whole.to_vec();
        bad[at] ^= 1 << (at % 8);
        damages.push((format!("byte {at}"), bad.into()));
    }
    damages.push(("huge".to_owned(), vec![b' '; (1 << 20) + 1].into()));
    damages
}

#[tokio::test]
async fn another_format_version_says_what_to_do() {
    let store = FaultStore::memory();
    let bucket = on(&store);
    bucket
        .put(
            "pool/00000000000000000001",
            Bytes::from_static(b"{\"made_by\":\"later\",\"format\":2}"),
        )
        .await
        .unwrap();
    let error = Catalog::open(bucket.clone(), None).await.unwrap_err();
    assert!(
        matches!(error, CatalogError::Version { version: 2, .. })
            && error.to_string().contains("newer"),
        "{error}"
    );
    assert!(
        Catalog::create(bucket, None).await.is_err(),
        "a pool of a later program is not overwritten"
    );
}

/// Two handles on one store: `slow` is held at its put while `fast` goes on.
/// `void`: what happens at the step that clears a version which came too late.
async fn held_writer(
    changes: usize,
    void: &str,
) -> (Arc<FaultStore>, Catalog, Result<(), CatalogError>, Dataset) {
    let store = FaultStore::memory();
    let fast = Catalog::create(on(&store), None).await.unwrap();
    let slow = Catalog::open(on(&store), None).await.unwrap();
    let new = dataset("a");
    let mut at = fast.insert_dataset(new.clone()).await.unwrap();
    slow.bucket().failpoints().set("catalog.put", "pause").unwrap();
    let held = tokio::spawn({
        let (slow, next) = (slow.clone(), Dataset { size: Some(666), ..new.clone() });
        let mut at = at.clone();
        async move { slow.swap_dataset(&mut at, next).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    for n in 0..changes {
        let next = Dataset { size: Some(n as u64), ..new.clone() };
        fast.swap_dataset(&mut at, next).await.unwrap();
    }
    slow.bucket().failpoints().set("catalog.void", void).unwrap();
    slow.bucket().failpoints().set("catalog.put", "off").unwrap();
    let result = held.await.unwrap();
    (store, fast, result, at.record)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_writer_never_wins_a_number_that_was_cleaned_away() {
    for changes in [1, 5, 9, 12, 30] {
        let (_, pool, result, newest) = held_writer(changes, "off").await;
        assert_eq!(result.unwrap_err().class(), Class::InProgress, "{changes}");
        assert_eq!(pool.dataset(&newest.name).await.unwrap().unwrap().record, newest, "{changes}");
        let kept = pool.bucket().list("datasets").await.unwrap();
        assert!(kept.len() <= 14, "{changes} changes leave {} versions", kept.len());
        assert!(
            kept.iter().all(|l| !l.key.ends_with("/00000000000000000002")) || changes < 14,
            "its version is gone"
        );
    }
}

/// The version that came too late stays when its writer dies before it has cleared it: it counts as
/// little as before, and no change is lost to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_version_that_was_not_cleared_never_counts() {
    let (store, _, result, newest) = held_writer(30, "return").await;
    assert!(result.is_err());
    let fresh = Catalog::open(on(&store), None).await.unwrap();
    assert_eq!(fresh.dataset(&newest.name).await.unwrap().unwrap().record, newest);
    for size in 0..20 {
        let changed = fresh
            .update_dataset(newest.id(), |d| {
                d.size = Some(size);
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(changed.record.size, Some(size));
    }
    assert_eq!(fresh.datasets().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_writer_does_not_bring_a_removed_record_back() {
    let store = FaultStore::memory();
    let fast = Catalog::create(on(&store), None).await.unwrap();
    let slow = Catalog::open(on(&store), None).await.unwrap();
    let new = dataset("a");
    let at = fast.insert_dataset(new.clone()).await.unwrap();
    slow.bucket().failpoints().set("catalog.put", "pause").unwrap();
    let held = tokio::spawn({
        let (slow, next, mut at) =
            (slow.clone(), Dataset { size: Some(666), ..new.clone() }, at.clone());
        async move { slow.swap_dataset(&mut at, next).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    for round in 0..3 {
        let id = fast.dataset(&new.name).await.unwrap().unwrap().record.id();
        fast.update_dataset(id, |d| {
            d.state = State::Dead;
            Ok(())
        })
        .await
        .unwrap();
        fast.remove_dataset(id).await.unwrap();
        if round < 2 {
            fast.insert_dataset(dataset("a")).await.unwrap();
        }
    }
    slow.bucket().failpoints().set("catalog.put", "off").unwrap();
    assert!(held.await.unwrap().is_err());
    assert!(fast.dataset(&new.name).await.unwrap().is_none());
    assert!(fast.dataset_by_id(new.id()).await.unwrap().is_none());
    assert_eq!(
        fast.bucket().list("datasets").await.unwrap().len(),
        1,
        "only the end of the chain is left"
    );
}

#[tokio::test]
async fn rivals_make_every_change_once() {
    for seed in 0..4 {
        let store = FaultStore::memory();
        let pool = Catalog::create(on(&store), None).await.unwrap();
        let new = Dataset { size: Some(0), ..dataset("a") };
        pool.insert_dataset(new.clone()).await.unwrap();
        store.random(
            seed,
            Chances {
                before: 30,
                lost_ack: 100,
                delay: 300,
                delay_max: std::time::Duration::from_millis(3),
                ..Chances::default()
            },
        );
        let writers = (0..4).map(|_| {
            let store = store.clone();
            async move {
                let pool = Catalog::open(on(&store), None).await.unwrap();
                let mut done = 0;
                for _ in 0..10 {
                    let mut swapped =
                        pool.dataset_by_id(new_id(&pool).await).await.unwrap().unwrap();
                    let next = Dataset {
                        size: swapped.record.size.map(|s| s + 1),
                        ..swapped.record.clone()
                    };
                    match pool.swap_dataset(&mut swapped, next).await {
                        Ok(()) => done += 1,
                        Err(error) => {
                            assert_eq!(error.class(), Class::InProgress, "seed {seed}: {error}");
                        }
                    }
                }
                done
            }
        });
        let done: u64 = futures::future::join_all(writers).await.into_iter().sum();
        store.heal();
        assert!(done > 0);
        // Each version adds one to what it replaced: no change that was reported is missing. One
        // that was overtaken many times while its writer looked may have counted although its
        // writer was told to retry.
        let size = pool.dataset(&new.name).await.unwrap().unwrap().record.size.unwrap();
        assert!((done..=40).contains(&size), "seed {seed}: {done} changes reported, {size} made");
    }
}

async fn new_id(pool: &Catalog) -> zerofs_csi::types::DatasetId {
    pool.datasets().await.unwrap()[0].record.id()
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_the_old_record_or_the_new() {
    for step in ["catalog.put", "catalog.put-check", "catalog.trim"] {
        for before in [0, 16] {
            let store = FaultStore::memory();
            let pool = Catalog::create(on(&store), None).await.unwrap();
            let new = dataset("a");
            let mut at = pool.insert_dataset(new.clone()).await.unwrap();
            for n in 0..before {
                let next = Dataset { size: Some(n), ..new.clone() };
                pool.swap_dataset(&mut at, next).await.unwrap();
            }
            let old = at.record.clone();
            let next = Dataset { size: Some(4711), ..new.clone() };
            pool.bucket().failpoints().set(step, "return").unwrap();
            let crashed = pool.swap_dataset(&mut at, next.clone()).await;
            let fresh = Catalog::open(on(&store), None).await.unwrap();
            let found = fresh.dataset(&new.name).await.unwrap().unwrap().record;
            let expected = if step == "catalog.put" { &old } else { &next };
            assert_eq!(&found, expected, "{step}");
            assert_eq!(crashed.is_ok(), step == "catalog.trim", "{step}");
            fresh
                .update_dataset(new.id(), |d| {
                    d.size = Some(1);
                    Ok(())
                })
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn the_cost_of_a_record_is_known() {
    let store = FaultStore::memory();
    let bucket = on(&store);
    let pool = Catalog::create(bucket.clone(), None).await.unwrap();
    let mut before = bucket.requests();
    let mut cost = || {
        let now = bucket.requests();
        let made = now - std::mem::replace(&mut before, now);
        (made.list, made.get, made.put)
    };
    let new = dataset("a");
    let mut at = pool.insert_dataset(new.clone()).await.unwrap();
    assert_eq!(cost(), (2, 0, 1), "insert");
    pool.swap_dataset(&mut at, new.clone()).await.unwrap();
    assert_eq!(cost(), (1, 0, 1), "swap");
    assert_eq!(pool.dataset(&new.name).await.unwrap(), Some(at.clone()));
    assert_eq!(cost(), (1, 0, 0), "read where it was written");
    let other = Catalog::open(bucket.clone(), None).await.unwrap();
    cost();
    assert_eq!(other.dataset(&new.name).await.unwrap(), Some(at));
    assert_eq!(cost(), (1, 1, 0), "read");
    other.dataset(&new.name).await.unwrap();
    assert_eq!(cost(), (1, 0, 0), "read again");
    let slot = other.dataset_slot(&"b".parse().unwrap()).await.unwrap();
    assert!(slot.record().is_none());
    other.insert_dataset_at(slot, dataset("b")).await.unwrap();
    assert_eq!(cost(), (2, 0, 1), "insert after the name was read");
}

#[tokio::test]
async fn the_end_of_a_chain_goes_when_it_is_old() {
    let store = FaultStore::memory();
    let pool = Catalog::create(on(&store), None).await.unwrap();
    let (gone, kept) = (dataset("gone"), dataset("kept"));
    for d in [&gone, &kept] {
        pool.insert_dataset(d.clone()).await.unwrap();
    }
    pool.update_dataset(gone.id(), |d| {
        d.state = State::Dead;
        Ok(())
    })
    .await
    .unwrap();
    pool.remove_dataset(gone.id()).await.unwrap();
    let now = std::time::SystemTime::now();
    assert_eq!(pool.sweep(now).await.unwrap(), 0);
    let later = now + zerofs_csi::catalog::END_AGE_MIN + std::time::Duration::from_secs(60);
    pool.bucket().failpoints().set("catalog.sweep", "1*return->off").unwrap();
    assert!(pool.sweep(later).await.is_err());
    assert_eq!(pool.sweep(later).await.unwrap(), 1);
    assert_eq!(pool.sweep(later).await.unwrap(), 0);
    assert_eq!(pool.datasets().await.unwrap()[0].record, kept);
    pool.insert_dataset(dataset("gone")).await.unwrap();
}

#[tokio::test]
async fn a_missing_folder_is_said_to_be_missing() {
    use zerofs_csi::bucket::{Credentials, Folder, Limits};
    let url = "file:///nonexistent/zerofs-csi/pool".parse().unwrap();
    let error =
        Bucket::open(&url, &Credentials::none(), Folder::MustExist, Limits::default()).unwrap_err();
    assert!(matches!(error, BucketError::Missing { .. }), "{error}");
}
