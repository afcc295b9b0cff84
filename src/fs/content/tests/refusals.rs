//! Changes of size that do not happen: refused by the committer, dropped half way, overtaken.

use super::*;
use crate::types::Epoch;
use std::task::Poll;

/// A batch that the committer refuses: it refers to a pack that was never stored (R10).
fn refused() -> Batch {
    let pack = PackId { creator: Incarnation::from_bytes([9; 16]), epoch: Epoch(9), seq: 9 };
    Batch { refs: vec![(pack, 1)], ..Batch::default() }
}

/// 300 KiB in the database and 100 KiB over its second half buffered.
async fn half_flushed() -> (Rig, Vec<u8>) {
    let rig = Rig::new(12, plain(), limits()).await;
    let mut model = bytes(300 << 10, 1);
    rig.write(0, model.clone().into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    let over = bytes(250 << 10, 2);
    rig.write(100 << 10, over.clone().into()).await.unwrap();
    model.truncate(100 << 10);
    model.extend(over);
    (rig, model)
}

async fn holds(rig: &mut Rig, model: &[u8]) {
    rig.exact().await;
    assert!(rig.read(0, u32::MAX).await == model);
    rig.reopen().await;
    rig.exact().await;
    assert!(rig.read(0, u32::MAX).await == model);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_unlink_loses_nothing() {
    let (mut rig, model) = half_flushed().await;
    assert!(matches!(rig.unlink_with(refused()), Err(FsError::Busy(_))));
    holds(&mut rig, &model).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_truncation_loses_nothing() {
    for size in [0, 1, 50 << 10, 299 << 10, (320 << 10) + 1, 1 << 20] {
        let (mut rig, model) = half_flushed().await;
        assert!(
            matches!(rig.truncate_with(size, refused()).await, Err(FsError::Busy(_))),
            "to {size}"
        );
        holds(&mut rig, &model).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncation_dropped_anywhere_happened_wholly_or_not_at_all() {
    for size in [1, 50 << 10, 299 << 10] {
        let mut dropped_at = 0;
        loop {
            let (mut rig, mut model) = half_flushed().await;
            // Nothing cached: the truncation has to wait for rows.
            rig.contents.flush(&rig.node).await.unwrap();
            rig.reopen().await;
            let over = bytes(5000, 3);
            rig.write(320 << 10, over.clone().into()).await.unwrap();
            model[320 << 10..(320 << 10) + 5000].copy_from_slice(&over);
            let mut polls = 0;
            let finished = {
                let mut truncation = std::pin::pin!(rig.truncate(size));
                loop {
                    match futures::poll!(&mut truncation) {
                        Poll::Ready(outcome) => break outcome.is_ok(),
                        Poll::Pending if polls == dropped_at => break false,
                        Poll::Pending => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                    polls += 1;
                }
            };
            if finished {
                model.truncate(size as usize);
            }
            holds(&mut rig, &model).await;
            if finished {
                break;
            }
            dropped_at += 1;
        }
    }
}

/// A crash after a truncation may lose what was not synced, but must not show zeros in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_size_is_not_ahead_of_buffered_data() {
    let rig = Rig::new(12, plain(), limits()).await;
    rig.write(0, bytes(10_000, 1).into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    rig.write(10_000, bytes(50_000, 2).into()).await.unwrap();
    let size_in_store = async || {
        Inode::decode(&rig.committer.get(&key::inode(INO)).await.unwrap().unwrap()).unwrap().size
    };
    for (size, known) in [(100_000, 10_000), (70_000, 10_000), (30_000, 10_000), (9_000, 9_000)] {
        rig.truncate(size).await.unwrap();
        assert_eq!((size_in_store().await, rig.node.row.read().size), (known, size));
        rig.exact().await;
    }
    rig.write(9_000, bytes(1000, 3).into()).await.unwrap();
    rig.truncate(20_000).await.unwrap();
    assert_eq!(size_in_store().await, 9_000);
    rig.contents.flush(&rig.node).await.unwrap();
    assert_eq!(size_in_store().await, 20_000, "with the data comes the size");
    rig.truncate(30_000).await.unwrap();
    assert_eq!(size_in_store().await, 30_000, "nothing is buffered");
    rig.exact().await;
}

/// SETATTR promises the size it answers, however busily others write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_under_constant_writes_is_locked_clean() {
    let rig = Arc::new(Rig::new(12, plain(), limits()).await);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let (rig, stop) = (rig.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    rig.write(writer * 5000, bytes(5000, 1).into()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..20 {
        let lock = rig.contents.lock_flushed(&rig.node).await.unwrap();
        assert!(!rig.node.content.is_dirty());
        drop(lock);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    rig.exact().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reclaim_that_waited_for_an_unlink_does_not_bring_the_inode_back() {
    let rig = Arc::new(Rig::new(12, plain(), limits()).await);
    rig.write(0, bytes(1 << 20, 1).into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    rig.truncate(5000).await.unwrap();
    assert!(!rig.node.row.read().masks.is_empty(), "there is something to reclaim");
    let lock = rig.node.lock.lock().await;
    let reclaim = tokio::spawn({
        let rig = rig.clone();
        async move { rig.reclaim().await }
    });
    // Either way round is right; this one is the dangerous one.
    tokio::time::sleep(Duration::from_millis(50)).await;
    rig.unlink_with(Batch::default()).unwrap();
    drop(lock);
    tokio::time::timeout(Duration::from_secs(30), reclaim).await.expect("reclaim ends").unwrap();
    rig.reclaim().await;
    assert_eq!(rig.committer.get(&key::inode(INO)).await.unwrap(), None);
    assert!(rig.rows(key::extents(DataId(0)), key::extents(DataId(u64::MAX))).await.is_empty());
    assert_eq!(rig.committer.totals().allocated, 0);
}
