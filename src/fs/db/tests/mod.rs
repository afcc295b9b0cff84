//! The database on memory and folder stores, with its requests counted.

mod maintenance;

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

async fn closed_checkpoint(place: &DbPlace, name: &str) -> CheckpointId {
    let expected = epoch(place).await.unwrap();
    checkpoint_closed(place, name, (expected, &key(0)[..])).await.unwrap().unwrap().0
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
        assert_eq!(closed_checkpoint(&place, "one").await, checkpoint);
        let two = closed_checkpoint(&place, "two").await;
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
