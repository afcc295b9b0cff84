//! The bucket on a store that fails.

use crate::support::fault::{Chances, Fault, FaultStore, Op, Rule, quick};
use bytes::Bytes;
use object_store::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerofs_csi::bucket::{Bucket, BucketError, PutNew};

fn faulty() -> (Arc<FaultStore>, Bucket) {
    let store = FaultStore::memory();
    (store.clone(), Bucket::on(store, Path::default()).with_limits(quick()))
}

const DATA: Bytes = Bytes::from_static(b"some bytes of an object");

#[tokio::test]
async fn what_passes_is_tried_again() {
    let (store, bucket) = faulty();
    store.script(Rule::any().times(1));
    bucket.put("a", DATA).await.unwrap();
    for fault in [Fault::Before, Fault::Hang, Fault::Truncate(5)] {
        store.heal();
        store.script(Rule::on(Op::Get).times(2).then(fault));
        assert_eq!(bucket.get("a", 100).await.unwrap().unwrap(), DATA, "{fault:?}");
        store.heal();
        store.script(Rule::on(Op::Get).times(2).then(fault));
        assert_eq!(bucket.get_range("a", 5..10).await.unwrap(), DATA.slice(5..10), "{fault:?}");
        store.heal();
        store.script(Rule::on(Op::Get).times(2).then(fault));
        assert_eq!(bucket.get_tail("a", 3).await.unwrap(), (DATA.slice(20..), 23), "{fault:?}");
    }
    store.heal();
    store.script(Rule::on(Op::List).times(2));
    assert_eq!(bucket.list("").await.unwrap().len(), 1);
    store.script(Rule::on(Op::Delete).times(2).then(Fault::LostAck));
    bucket.delete(&["a".into()]).await.unwrap();
    assert_eq!(bucket.get("a", 100).await.unwrap(), None);
}

#[tokio::test]
async fn an_outage_is_an_error_in_bounded_time() {
    for fault in [Fault::Before, Fault::Hang] {
        let (store, bucket) = faulty();
        store.script(Rule::any().then(fault));
        let start = Instant::now();
        let errors = tokio::join!(
            async { bucket.get("a", 1).await.map(drop) },
            bucket.put("a", DATA),
            async { bucket.put_new("a", DATA).await.map(drop) },
            async { bucket.get_range("a", 0..1).await.map(drop) },
            async { bucket.list("").await.map(drop) },
        );
        for result in [errors.0, errors.1, errors.2, errors.3, errors.4] {
            assert!(matches!(result, Err(BucketError::Unavailable { .. })), "{result:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(4), "{fault:?}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_lost_acknowledgement_is_not_a_conflict() {
    let (store, bucket) = faulty();
    store.script(Rule::on(Op::PutNew).times(1).then(Fault::LostAck));
    assert_eq!(bucket.put_new("mine", DATA).await.unwrap(), PutNew::Created);
    assert_eq!(bucket.put_new("mine", Bytes::from_static(b"other")).await.unwrap(), PutNew::Exists);
}

#[tokio::test]
async fn a_conflict_behind_a_failure_is_a_conflict() {
    let (store, bucket) = faulty();
    bucket.put("theirs", Bytes::from_static(b"other")).await.unwrap();
    bucket.put("longer", vec![0; 1000].into()).await.unwrap();
    for key in ["theirs", "longer"] {
        store.script(Rule::on(Op::PutNew).times(1).then(Fault::Before));
        assert_eq!(bucket.put_new(key, DATA).await.unwrap(), PutNew::Exists);
    }
}

#[tokio::test]
async fn what_will_not_pass_is_not_tried_again() {
    let (store, bucket) = faulty();
    store.read_only();
    assert!(matches!(bucket.put("a", DATA).await, Err(BucketError::Denied { .. })));
    assert!(matches!(bucket.put_new("a", DATA).await, Err(BucketError::Denied { .. })));
    assert!(matches!(bucket.delete(&["a".into()]).await, Err(BucketError::Denied { .. })));
    assert_eq!(store.log().len(), 3);
}

#[tokio::test]
async fn requests_are_counted_with_their_repetitions() {
    let (store, bucket) = faulty();
    store.script(Rule::on(Op::Put).times(2));
    bucket.put("a", DATA).await.unwrap();
    bucket.get("a", 100).await.unwrap();
    bucket.list("").await.unwrap();
    bucket.delete(&["a".into(), "b".into()]).await.unwrap();
    let requests = bucket.requests();
    assert_eq!(
        (requests.put, requests.get, requests.list, requests.delete, requests.head),
        (3, 1, 1, 1, 0)
    );
}

#[tokio::test]
async fn random_failures_lose_and_invent_nothing() {
    for seed in 0..20 {
        let (store, bucket) = faulty();
        store.random(
            seed,
            Chances { before: 100, lost_ack: 100, truncate: 50, ..Chances::default() },
        );
        for n in 0..40 {
            let (key, mine) = (format!("k/{n}"), Bytes::from(format!("seed {seed} object {n}")));
            assert_eq!(
                bucket.put_new(&key, mine.clone()).await.unwrap(),
                PutNew::Created,
                "seed {seed}"
            );
            assert_eq!(
                bucket.put_new(&key, Bytes::from_static(b"late")).await.unwrap(),
                PutNew::Exists,
                "seed {seed}"
            );
            assert_eq!(bucket.get(&key, 100).await.unwrap(), Some(mine), "seed {seed}");
        }
        assert_eq!(bucket.list("k").await.unwrap().len(), 40, "seed {seed}");
    }
}
