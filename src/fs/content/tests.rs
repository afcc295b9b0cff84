//! One file against a model: bytes, allocation and references after every step.

mod refusals;
mod rig;

use super::*;
use crate::bucket::Bucket;
use crate::chunk::{ChunkCache, Codec};
use crate::crypto::{Keyring, Secret, WrappedKey};
use crate::fs::api::FileKind;
use crate::fs::committer::Batch;
use crate::fs::content::plan::Urgency;
use crate::fs::content::reclaim::ReclaimStep;
use crate::fs::db::{Database, DbCache, DbPlace};
use crate::fs::inode::InodeMemory;
use crate::fs::key::{self, DataId, Key};
use crate::fs::row::{Orphan, Row, Source};
use crate::telemetry::Failpoints;
use crate::types::{FamilyId, Incarnation, InodeNo, PackId, PoolId, Timestamp};
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

use rig::{INO, Rig, limits, plain};

fn encrypted() -> Keyring {
    WrappedKey::create(PoolId::random(), &Secret::new("correct horse battery staple")).unwrap().1
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, len: usize, seed: u8 },
    Truncate(u64),
    Flush(Urgency),
    Migrate,
    Reclaim,
    Reopen,
}

const SPACE: u64 = 600 << 10;

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![1..5000_usize, Just(4096), 1..150_000_usize];
    prop_oneof![
        12 => (0..SPACE, len, any::<u8>()).prop_map(|(at, len, seed)| Op::Write { at, len, seed }),
        4 => (0..SPACE / 4096, 1..9_usize, any::<u8>())
            .prop_map(|(at, n, seed)| Op::Write { at: at * 4096, len: n * 4096, seed }),
        2 => (0..SPACE).prop_map(Op::Truncate),
        1 => Just(Op::Truncate(0)),
        3 => Just(Op::Flush(Urgency::Now)),
        3 => Just(Op::Flush(Urgency::Background)),
        1 => Just(Op::Migrate),
        1 => Just(Op::Reclaim),
        1 => Just(Op::Reopen),
    ]
}

/// A sixth of all data is zeros, the rest compresses a little.
fn bytes(len: usize, seed: u8) -> Vec<u8> {
    if seed.is_multiple_of(6) {
        return vec![0; len];
    }
    let mut state = u64::from(seed) + 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 60) as u8
        })
        .collect()
}

async fn play(bits: u8, keyring: Keyring, ops: Vec<Op>) {
    let mut rig = Rig::new(bits, keyring, limits()).await;
    let mut model: Vec<u8> = vec![];
    for (step, op) in ops.into_iter().enumerate() {
        match op {
            Op::Write { at, len, seed } => {
                let data = bytes(len, seed);
                model.resize(model.len().max(at as usize + len), 0);
                model[at as usize..at as usize + len].copy_from_slice(&data);
                rig.write(at, data.into()).await.unwrap();
            }
            Op::Truncate(size) => match rig.truncate(size).await {
                Ok(()) => model.resize(size as usize, 0),
                Err(error) => assert!(matches!(error, FsError::Busy(_)), "{error}"),
            },
            Op::Flush(urgency) => {
                rig.contents.flush_as(&rig.node, urgency, flush::Select::All).await.unwrap();
                assert!(!rig.node.content.is_dirty());
            }
            Op::Migrate => rig.contents.migrate_round().await,
            Op::Reclaim => rig.reclaim().await,
            Op::Reopen => rig.reopen().await,
        }
        assert_eq!(rig.node.row.read().size, model.len() as u64);
        rig.exact().await;
        let (from, len) = ((step * 7919) % (model.len() + 1), 50_000);
        let some = rig.read(from as u64, len as u32).await;
        assert!(some == model[from..(from + len).min(model.len())], "step {step}");
    }
    let all = rig.read(0, u32::MAX).await;
    assert!(all == model);
    rig.reopen().await;
    assert!(rig.read(0, u32::MAX).await == model);
    rig.unlink_with(Batch::default()).unwrap();
    assert_eq!(rig.committer.totals().allocated, 0);
    rig.reclaim().await;
    assert!(rig.rows(key::extents(DataId(0)), key::extents(DataId(u64::MAX))).await.is_empty());
    assert!(rig.rows(key::orphan(DataId(0)), key::orphan(DataId(u64::MAX))).await.is_empty());
    assert_eq!(rig.contents.reserved(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24, max_shrink_iters: 200, ..ProptestConfig::default()
    })]
    #[test]
    fn a_file_is_what_was_written(
        bits in prop_oneof![Just(12_u8), Just(14), Just(16), Just(20)],
        sealed in any::<bool>(),
        ops in prop::collection::vec(op(), 1..50)
    ) {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(bits, if sealed { encrypted() } else { plain() }, ops));
    }
}

/// As a lone step of one test would: many truncations of a file of many extents.
#[tokio::test(flavor = "multi_thread")]
async fn masks_hide_at_once_and_are_reclaimed() {
    let rig = Rig::new(12, plain(), limits()).await;
    let extents = 1000_u64;
    rig.write(0, vec![1; (extents << 12) as usize].into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    for keep in (100..extents).rev().step_by(100) {
        rig.truncate((keep << 12) + 5).await.unwrap();
        rig.truncate(extents << 12).await.unwrap();
        rig.exact().await;
        let tail = rig.read(keep << 12, 1 << 20).await;
        assert!(tail[..5] == [1; 5] && tail[5..].iter().all(|b| *b == 0), "cut at {keep}");
        assert!(rig.node.row.read().masks.len() <= 8);
    }
    assert!(!rig.node.row.read().masks.is_empty());
    rig.write(500 << 12, vec![2; 4096].into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    rig.reclaim().await;
    rig.exact().await;
    let row = rig.node.row.read().clone();
    assert_eq!((row.masks.len(), row.allocated), (0, (199 << 12) + 5 + 4096));
    assert_eq!(rig.read(500 << 12, 8192).await, [vec![2; 4096], vec![0; 4096]].concat());
}

/// Small changes of very many extents are more than the committer's queue may hold: they are
/// flushed in steps, as one.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_batch_can_hold_is_flushed_in_steps() {
    let rig = Rig::new(16, plain(), limits()).await;
    let extents = 4000_u64;
    for n in 0..extents {
        rig.write(n << 16, vec![n as u8 | 1; 10].into()).await.unwrap();
    }
    let before = rig.committer.last().0;
    let ticket = rig.contents.flush(&rig.node).await.unwrap().unwrap();
    assert!(ticket.0 - before > 1, "in one batch");
    assert_eq!(ticket, rig.committer.last());
    assert!(!rig.node.content.is_dirty());
    rig.exact().await;
    for n in (0..extents).step_by(97) {
        assert_eq!(rig.read(n << 16, 10).await, vec![n as u8 | 1; 10]);
    }
    // The same for a caller that needs the lock as well.
    for n in 0..extents {
        rig.write((n << 16) + 20, vec![7; 10].into()).await.unwrap();
    }
    drop(rig.contents.flush_and_lock(&rig.node).await.unwrap());
    assert!(!rig.node.content.is_dirty());
    rig.exact().await;
}

/// A flush for the sake of order leaves the error about lost data to COMMIT (R17).
#[tokio::test(flavor = "multi_thread")]
async fn lost_data_is_told_to_the_call_that_promises_it() {
    let rig = Rig::new(12, plain(), limits()).await;
    rig.write(0, vec![1; 100].into()).await.unwrap();
    let freed = rig.node.content.state().lose(7, FsError::Corrupt("lost".into()));
    rig.contents.freed(freed);
    drop(rig.contents.lock_flushed(&rig.node).await.unwrap());
    assert!(rig.contents.flush_for_order(&rig.node).await.unwrap().is_some());
    assert!(rig.node.content.is_dirty(), "the node stays in memory until it is told");
    assert!(matches!(rig.contents.flush(&rig.node).await, Err(FsError::Corrupt(_))));
    assert!(rig.contents.flush(&rig.node).await.unwrap().is_some(), "once");
}

/// A small file's extents go with its name: no reclaim has to find them. What the cache does not
/// know is an orphan's.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_goes_with_its_name() {
    for cached in [true, false] {
        let mut rig = Rig::new(12, plain(), limits()).await;
        rig.write(0, vec![1; 6000].into()).await.unwrap();
        rig.contents.flush(&rig.node).await.unwrap();
        if !cached {
            rig.reopen().await;
        }
        rig.unlink_with(Batch::default()).unwrap();
        assert_eq!(rig.committer.totals().allocated, 0);
        let orphans = rig.rows(key::orphan(DataId(0)), key::orphan(DataId(u64::MAX))).await;
        assert_eq!(orphans.is_empty(), cached);
        if !cached {
            rig.reclaim_of_nobody().await;
        }
        let extents = rig.rows(key::extents(DataId(0)), key::extents(DataId(u64::MAX))).await;
        assert!(extents.is_empty(), "{extents:?}");
        assert!(rig.committer.open_packs().is_empty());
    }
}

/// A removal between two steps over a file's masks: the file stays removed, and its space is given
/// back once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_while_its_masks_are_reclaimed_stays_removed() {
    let rig = Rig::new(12, plain(), limits()).await;
    rig.write(0, vec![1; 3000 << 12].into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    rig.truncate(1 << 12).await.unwrap();
    assert_eq!(rig.contents.reclaim_masked(&rig.node).await.unwrap(), ReclaimStep::More);
    {
        let _lock = rig.node.lock.lock().await;
        rig.unlink_with(Batch::default()).unwrap();
    }
    assert_eq!(rig.contents.reclaim_masked(&rig.node).await.unwrap(), ReclaimStep::Done);
    rig.reclaim_of_nobody().await;
    assert!(rig.committer.get(&key::inode(INO)).await.unwrap().is_none());
    assert_eq!(rig.committer.totals().allocated, 0);
    assert!(rig.rows(key::orphan(DataId(0)), key::orphan(DataId(u64::MAX))).await.is_empty());
    assert!(rig.rows(key::extents(DataId(0)), key::extents(DataId(u64::MAX))).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_sparse_file_costs_what_it_holds() {
    let rig = Rig::new(16, plain(), limits()).await;
    let far = FILE_BYTES_MAX - 4096;
    rig.write(far, vec![9; 4096].into()).await.unwrap();
    assert!(matches!(rig.write(far + 1, vec![9; 4096].into()).await, Err(FsError::TooBig)));
    rig.contents.flush(&rig.node).await.unwrap();
    rig.exact().await;
    assert_eq!(rig.node.row.read().allocated, 4096);
    assert_eq!(rig.read(far - 10, 20).await, [[0; 10], [9; 10]].concat());
    assert!(rig.read(1 << 40, 1 << 20).await.iter().all(|b| *b == 0));
    rig.truncate(far).await.unwrap();
    rig.truncate(FILE_BYTES_MAX).await.unwrap();
    assert_eq!(rig.read(far, 4096).await, vec![0; 4096]);
    rig.exact().await;
    assert_eq!(rig.node.row.read().allocated, 0);
    assert!(matches!(rig.truncate(FILE_BYTES_MAX + 1).await, Err(FsError::TooBig)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_dataset_refuses_growth_and_takes_overwrites() {
    let rig = Rig::new(12, plain(), limits()).await;
    rig.write(0, vec![1; 64 << 10].into()).await.unwrap();
    // Reserved at once: overwriting dirty bytes needs nothing more.
    assert_eq!(rig.contents.reserved(), 64 << 10);
    rig.write(0, vec![2; 64 << 10].into()).await.unwrap();
    assert_eq!(rig.contents.reserved(), 64 << 10);
    // Near the quota, reservations are made exact before a write is refused.
    rig.contents.set_quota(Some(100 << 10));
    assert!(matches!(rig.write(64 << 10, vec![1; 37 << 10].into()).await, Err(FsError::NoSpace)));
    rig.write(64 << 10, vec![1; 36 << 10].into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    assert_eq!((rig.contents.reserved(), rig.committer.totals().allocated), (0, 100 << 10));
    assert!(matches!(rig.write(100 << 10, vec![1; 1].into()).await, Err(FsError::NoSpace)));
    rig.write(1, vec![3; 90 << 10].into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    rig.exact().await;
    assert!(matches!(rig.write(100 << 10, vec![1; 1].into()).await, Err(FsError::NoSpace)));
    rig.truncate(50 << 10).await.unwrap();
    rig.write(50 << 10, vec![1; 50 << 10].into()).await.unwrap();
    // Zeros need no space once they are flushed.
    rig.contents.flush(&rig.node).await.unwrap();
    rig.write(0, vec![0; 40 << 10].into()).await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    assert_eq!(rig.committer.totals().allocated, 60 << 10);
    rig.exact().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_sync_of_a_little_is_one_request() {
    let rig = Rig::new(16, plain(), limits()).await;
    rig.write(0, vec![1; 4096].into()).await.unwrap();
    let ticket = rig.contents.flush(&rig.node).await.unwrap().unwrap();
    rig.committer.durable(ticket).await.unwrap();
    let before = rig.place.bucket.requests();
    for i in 1..9_u64 {
        rig.write(i << 16, vec![i as u8; 4096].into()).await.unwrap();
        let ticket = rig.contents.flush(&rig.node).await.unwrap().unwrap();
        rig.committer.durable(ticket).await.unwrap();
    }
    let after = rig.place.bucket.requests();
    assert_eq!(after.put - before.put, 8);
    // An opened database reads its manifest once by itself, when its task gets to run.
    assert!(after.total() - before.total() <= 10, "{before:?} {after:?}");
    assert!(
        rig.contents.flush(&rig.node).await.unwrap().is_some(),
        "what is on its way has a ticket"
    );
}

/// Writers, cutters and flushers of one file at once: the last state is a whole one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_under_flushes_lose_nothing_and_bring_nothing_back() {
    let rig = Arc::new(Rig::new(12, plain(), limits()).await);
    let flusher = tokio::spawn({
        let rig = rig.clone();
        async move {
            for i in 0..200 {
                let urgency = if i % 2 == 0 { Urgency::Now } else { Urgency::Background };
                rig.contents.flush_as(&rig.node, urgency, flush::Select::All).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let reader = tokio::spawn({
        let rig = rig.clone();
        async move {
            for _ in 0..300 {
                let _ = rig.read(0, 1 << 20).await;
                tokio::task::yield_now().await;
            }
        }
    });
    for round in 1..60_u64 {
        rig.write(0, vec![round as u8; 300 << 10].into()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(round % 3)).await;
        rig.truncate(round * 1111).await.unwrap();
        rig.write(200 << 10, vec![round as u8; 100].into()).await.unwrap();
        let seen = rig.read(0, 1 << 20).await;
        let kept = (round * 1111) as usize;
        assert!(seen.len() == (200 << 10) + 100);
        assert!(seen[..kept].iter().all(|b| *b == round as u8), "round {round}");
        assert!(seen[kept..200 << 10].iter().all(|b| *b == 0), "round {round}");
    }
    flusher.await.unwrap();
    reader.await.unwrap();
    rig.contents.flush(&rig.node).await.unwrap();
    rig.exact().await;
}
