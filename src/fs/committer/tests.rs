//! The committer over a database in memory.

use super::*;
use crate::bucket::{Bucket, Requests};
use crate::fs::db::{DbCache, DbPlace, NewClone};
use crate::fs::key;
use crate::types::Incarnation;
use std::path::{Path, PathBuf};

struct Storage {
    place: DbPlace,
    folder: tempfile::TempDir,
}

impl Storage {
    fn new() -> Self {
        let place = DbPlace::new(
            Bucket::memory(),
            Incarnation::from_bytes([5; 16]),
            None,
            DbCache::new(8 << 20),
        );
        Self { place, folder: tempfile::tempdir().unwrap() }
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    async fn open(&self, journal: Option<&Path>) -> Result<Committer, FsError> {
        let db = Database::open(&self.place, None).await?;
        Committer::start(db, journal, Box::new(|| 0), Failpoints::default()).await
    }

    async fn plain(&self) -> Committer {
        self.open(None).await.unwrap()
    }

    async fn journaled(&self) -> Committer {
        self.open(Some(&self.journal())).await.unwrap()
    }
}

fn row(n: u64, value: u64) -> Batch {
    let mut batch =
        Batch { inodes: 1, allocated: 10, refs: vec![(pack(n % 3), 1)], ..Batch::default() };
    batch.rows.push((key::inode(InodeNo(n)), Some(Bytes::from(value.to_string()))));
    batch
}

fn pack(seq: u64) -> PackId {
    PackId { creator: Incarnation::from_bytes([5; 16]), epoch: Epoch(1), seq }
}

async fn inodes(committer: &Committer) -> usize {
    committer
        .scan(Bytes::from_static(b"I"), Bytes::from_static(b"J"), usize::MAX)
        .await
        .unwrap()
        .len()
}

#[tokio::test]
async fn a_batch_is_visible_at_once_and_durable_when_it_says_so() {
    let storage = Storage::new();
    let committer = storage.plain().await;
    assert!(committer.is_new() && !committer.is_dirty());
    let first = committer.submit(row(2, 20)).unwrap();
    assert_eq!(committer.get(&key::inode(InodeNo(2))).await.unwrap().unwrap(), "20");
    assert_eq!(inodes(&committer).await, 1);
    assert!(committer.is_dirty());
    committer.durable(first).await.unwrap();
    assert!(!committer.is_dirty());
    committer.submit(row(3, 30)).unwrap();
    committer.abandon().await;
    assert!(committer.submit(row(4, 40)).is_err());
    assert!(committer.durable(first).await.is_err(), "nothing is acknowledged after a stop");

    let again = storage.plain().await;
    assert_eq!((inodes(&again).await, again.totals()), (1, Totals { inodes: 1, allocated: 10 }));
    assert_eq!((again.usage(pack(2)).refs, again.usage(pack(0)).refs), (1, 0));
    assert!(again.epoch() > committer.epoch());
    assert_eq!(again.superblock().writer_epoch, again.epoch().0);
}

#[tokio::test]
async fn a_lone_durable_is_one_put_and_waiters_share() {
    let storage = Storage::new();
    let committer = storage.plain().await;
    committer.durable(committer.submit(row(2, 1)).unwrap()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = storage.place.bucket.requests();
    committer.durable(committer.submit(row(3, 1)).unwrap()).await.unwrap();
    assert_eq!(storage.place.bucket.requests(), Requests { put: before.put + 1, ..before });
    let waiters = (10..74).map(|n| {
        let committer = &committer;
        async move { committer.durable(committer.submit(row(n, 1)).unwrap()).await.unwrap() }
    });
    futures::future::join_all(waiters).await;
    let puts = storage.place.bucket.requests().put - before.put;
    assert!(puts <= 4, "{puts} PUTs for 64 waiters");
}

#[tokio::test]
async fn scans_merge_what_is_pending() {
    let storage = Storage::new();
    let committer = storage.plain().await;
    for n in 2..200 {
        committer.submit(row(n, n)).unwrap();
    }
    committer.durable(committer.last()).await.unwrap();
    let mut batch = Batch::default();
    (2..200).step_by(2).for_each(|n| batch.delete(key::inode(InodeNo(n))));
    batch.rows.push((key::inode(InodeNo(1000)), Some(Bytes::from_static(b"new"))));
    committer.submit(batch).unwrap();
    for limit in [1, 2, 7, 99, 100, 1000] {
        let mut from = key::inode(InodeNo(0));
        let mut found = Vec::new();
        loop {
            let page = committer.scan(from.clone(), Bytes::from_static(b"J"), limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some((last, _)) = page.last() else { break };
            from = key::after(last);
            found.extend(page);
        }
        let expected: Vec<_> =
            (3..200).step_by(2).chain([1000]).map(|n| key::inode(InodeNo(n))).collect();
        assert_eq!(
            found.into_iter().map(|(k, _)| k).collect::<Vec<_>>(),
            expected,
            "pages of {limit}"
        );
    }
}

#[tokio::test]
async fn the_journal_brings_back_what_was_applied() {
    let storage = Storage::new();
    let committer = storage.journaled().await;
    let first = committer.submit(row(2, 1)).unwrap();
    committer.durable(first).await.unwrap();
    let before = storage.place.bucket.requests();
    let mut last = first;
    for n in 3..50 {
        last = committer.submit(row(n, n)).unwrap();
    }
    let (ino, generation) = committer.new_inode().unwrap();
    committer.submit(Batch { fs_group: Some(7), ..Batch::default() }).unwrap();
    last = last.max(committer.last());
    committer.applied(last).await.unwrap();
    assert_eq!(storage.place.bucket.requests(), before, "applied needs no request");
    committer.abandon().await;

    let again = storage.journaled().await;
    assert_eq!((inodes(&again).await, again.totals().inodes), (48, 48));
    assert_eq!((again.superblock().fs_group, again.usage(pack(0)).refs), (Some(7), 16));
    assert!(again.superblock().batch_seq >= last.0);
    let (next, another) = again.new_inode().unwrap();
    assert!((next, another) != (ino, generation) && another >> 32 > generation >> 32);
    again.close().await.unwrap();
    assert!(!storage.journal().exists());
    assert_eq!(inodes(&storage.plain().await).await, 48);
}

/// A pack that the journal brings back through a pin that is gone is sealed, as it was (R12).
#[tokio::test]
async fn a_replay_seals_what_came_back_by_a_pin() {
    let storage = Storage::new();
    let db = Database::open(&storage.place, None).await.unwrap();
    let epoch = db.epoch();
    let own = |seq| PackId { epoch, ..pack(seq) };
    let older = PackId { epoch: Epoch(epoch.0 - 1), ..pack(1) };
    let origins = PackId { creator: Incarnation::from_bytes([6; 16]), ..own(9) };
    let refs = |pack: PackId, delta| Batch { refs: vec![(pack, delta)], ..Batch::default() };
    let committer =
        Committer::start(db, Some(&storage.journal()), Box::new(|| 2), Failpoints::default())
            .await
            .unwrap();
    let unsettled = own(3);
    committer.refer_only_to(Arc::new(move |asked| asked == unsettled));
    let pin = committer.pin([own(1), own(2), older, origins].into());
    committer.durable(committer.submit(refs(own(2), 1)).unwrap()).await.unwrap();
    for batch in [
        refs(own(1), 1),
        refs(own(2), -1),
        refs(own(2), 2),
        refs(own(3), 1),
        refs(older, 1),
        refs(origins, 1),
    ] {
        committer.submit(batch).unwrap();
    }
    committer.applied(committer.last()).await.unwrap();
    drop(pin);
    committer.abandon().await;

    for replays in [true, false] {
        let again = if replays { storage.journaled().await } else { storage.plain().await };
        let usage = [own(1), own(2), older, origins, own(3)].map(|pack| again.usage(pack));
        let sealed = |refs| Usage { refs, sealed: true };
        assert_eq!(
            usage,
            [sealed(1), sealed(2), sealed(1), sealed(1), Usage { refs: 1, sealed: false }],
            "{replays}"
        );
        again.abandon().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_many_tasks_applied_at_once_is_in_the_journal_without_a_gap() {
    let storage = Storage::new();
    let committer = Arc::new(storage.journaled().await);
    let before = committer.last();
    let task = |first: u64| {
        let committer = committer.clone();
        async move {
            for n in first..first + 50 {
                committer.applied(committer.submit(row(n, n)).unwrap()).await.unwrap();
                if n % 20 == 0 {
                    committer.durable(committer.last()).await.unwrap();
                }
            }
        }
    };
    let tasks: Vec<_> = (0..8).map(|n| tokio::spawn(task(1000 * (n + 1)))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(committer.last().0, before.0 + 400);
    committer.abandon().await;
    assert_eq!(inodes(&storage.journaled().await).await, 400);
}

#[tokio::test]
async fn a_journal_of_a_lost_epoch_is_discarded() {
    let storage = Storage::new();
    let committer = storage.journaled().await;
    committer.applied(committer.submit(row(2, 1)).unwrap()).await.unwrap();
    committer.abandon().await;
    // Another node takes over meanwhile, without this journal.
    let other = storage.plain().await;
    other.durable(other.submit(row(3, 1)).unwrap()).await.unwrap();
    other.close().await.unwrap();
    let again = storage.journaled().await;
    assert_eq!((inodes(&again).await, again.totals().inodes), (1, 1));
    assert!(again.get(&key::inode(InodeNo(2))).await.unwrap().is_none());
}

#[tokio::test]
async fn a_failing_journal_means_waiting_for_the_store() {
    let storage = Storage::new();
    let db = Database::open(&storage.place, None).await.unwrap();
    let failpoints = Failpoints::default();
    let committer =
        Committer::start(db, Some(&storage.journal()), Box::new(|| 0), failpoints.clone())
            .await
            .unwrap();
    committer.applied(committer.submit(row(2, 1)).unwrap()).await.unwrap();
    failpoints.set("fs.journal.disk", "return").unwrap();
    let before = storage.place.bucket.requests().put;
    let full = committer.submit(row(3, 1)).unwrap();
    committer.applied(full).await.unwrap();
    assert!(storage.place.bucket.requests().put > before, "applied has waited for the store");
    failpoints.set("fs.journal.disk", "off").unwrap();
    let before = storage.place.bucket.requests().put;
    committer.applied(committer.submit(row(4, 1)).unwrap()).await.unwrap();
    assert_eq!(storage.place.bucket.requests().put, before, "the journal works again");
    committer.abandon().await;
    assert_eq!(inodes(&storage.journaled().await).await, 3);
}

/// A batch that a caller wants durable may be behind a full journal, and the journal has room only
/// when the batches before it are durable.
#[tokio::test]
async fn a_full_journal_makes_room_for_who_waits_behind_it() {
    let storage = Storage::new();
    let committer = storage.journaled().await;
    // More than a segment, and little for the database: one row again and again.
    let large = || {
        let row = |n: u8| (key::inode(InodeNo(2)), Some(Bytes::from(vec![n; 4 << 20])));
        Batch { rows: (0..9).map(row).collect(), ..Batch::default() }
    };
    for _ in 0..2 {
        committer.ready().await.unwrap();
        committer.applied(committer.submit(large()).unwrap()).await.unwrap();
    }
    committer.ready().await.unwrap();
    let behind = committer.submit(large()).unwrap();
    tokio::time::timeout(Duration::from_secs(30), committer.durable(behind))
        .await
        .expect("no deadlock")
        .unwrap();
}

/// A disk with no room for a journal costs speed, not the volume (R16).
#[tokio::test]
async fn without_room_for_a_journal_every_change_waits_for_the_store() {
    let storage = Storage::new();
    std::os::unix::fs::symlink("/no/such/folder/segment", storage.folder.path().join("journal.0"))
        .unwrap();
    let committer = storage.journaled().await;
    let before = storage.place.bucket.requests().put;
    committer.applied(committer.submit(row(2, 1)).unwrap()).await.unwrap();
    assert!(storage.place.bucket.requests().put > before, "applied has waited for the store");
    committer.close().await.unwrap();
    // Not even for the lock; but a journal that is there and cannot be opened holds what was
    // acknowledged.
    let file = storage.folder.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let committer = storage.open(Some(&file.join("journal"))).await.unwrap();
    committer.applied(committer.submit(row(3, 1)).unwrap()).await.unwrap();
    committer.close().await.unwrap();
    let folder = storage.folder.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    assert!(storage.open(Some(&folder)).await.is_err());
}

#[tokio::test]
async fn a_fenced_committer_stops_for_good() {
    let storage = Storage::new();
    let committer = storage.plain().await;
    let ticket = committer.submit(row(2, 1)).unwrap();
    committer.durable(ticket).await.unwrap();
    let other = storage.plain().await;
    // Whichever notices first: the submission, when the engine's own tasks have met the fence, or
    // the flush.
    let lost = match committer.submit(row(3, 1)) {
        Ok(ticket) => committer.durable(ticket).await,
        Err(error) => Err(error),
    };
    assert!(matches!(lost, Err(FsError::Fenced)), "{lost:?}");
    assert!(matches!(committer.stopped().await, FsError::Fenced));
    assert!(matches!(committer.submit(row(4, 1)), Err(FsError::Fenced)));
    assert!(matches!(committer.durable(ticket).await, Err(FsError::Fenced)));
    assert_eq!(inodes(&other).await, 1);
}

/// A pack of which more references go than were counted is a broken invariant (R4).
#[tokio::test]
async fn a_negative_count_stops_the_committer() {
    let storage = Storage::new();
    let committer = storage.plain().await;
    assert!(matches!(
        committer.submit(Batch { refs: vec![(pack(1), -1)], ..Batch::default() }),
        Err(FsError::Corrupt(_))
    ));
    assert!(matches!(committer.submit(Batch::default()), Err(FsError::Corrupt(_))));
    assert!(matches!(committer.stopped().await, FsError::Corrupt(_)));
}

#[tokio::test]
async fn a_snapshot_holds_every_batch_before_it_and_its_clone_is_a_dataset_of_its_own() {
    let storage = Storage::new();
    let committer = storage.plain().await;
    for n in 2..12 {
        committer.submit(row(n, n)).unwrap();
    }
    let checkpoint = committer.checkpoint("snap").await.unwrap();
    committer.submit(row(99, 1)).unwrap();
    let mut clone = storage.place.clone();
    clone.incarnation = Incarnation::from_bytes([6; 16]);
    let new = NewClone::read(&clone, storage.place.incarnation, checkpoint).await.unwrap();
    new.make().await.unwrap();
    let cloned = Database::open(&clone, None).await.unwrap();
    let cloned =
        Committer::start(cloned, None, Box::new(|| 0), Failpoints::default()).await.unwrap();
    assert_eq!((inodes(&cloned).await, cloned.totals().inodes), (10, 10));
    assert_eq!(cloned.superblock().name_key, committer.superblock().name_key);
    assert_eq!(cloned.superblock().writer_epoch, cloned.epoch().0);
    let view = committer.view().await.unwrap();
    assert!(view.get(&key::inode(InodeNo(99))).await.unwrap().is_some());
}

/// A close that met an outage longer than its time limit has stopped nothing, and a retry after the
/// outage finishes it.
#[tokio::test]
async fn closing_in_an_outage_may_be_repeated() {
    let (storage, failpoints) = (Storage::new(), Failpoints::default());
    let db = Database::open(&storage.place, None).await.unwrap();
    let committer =
        Committer::start(db, Some(&storage.journal()), Box::new(|| 0), failpoints.clone())
            .await
            .unwrap();
    failpoints.set("fs.commit.before-flush", "pause").unwrap();
    let applied = committer.submit(row(2, 20)).unwrap();
    committer.applied(applied).await.unwrap();
    for _ in 0..2 {
        let closing = committer.close();
        tokio::pin!(closing);
        assert!(futures::poll!(&mut closing).is_pending());
        tokio::time::pause();
        tokio::time::advance(WAIT_LIMIT * 2).await;
        tokio::time::resume();
        assert!(matches!(closing.await, Err(FsError::Unavailable(_))));
        assert!(committer.has_not_stopped() && committer.submit(row(3, 30)).is_err());
        assert!(storage.journal().exists());
    }
    failpoints.set("fs.commit.before-flush", "off").unwrap();
    committer.close().await.unwrap();
    assert!(!storage.journal().exists(), "the store has it all");
}

/// A node whose clock is far behind that of the last owner writes all the same.
#[test]
fn an_owner_with_a_slow_clock_goes_on() {
    let storage = Storage::new();
    for hours in [3, 1, 2, 0] {
        // Time that is passed in one runtime has not passed in the next.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let committer = storage.plain().await;
            tokio::time::advance(Duration::from_secs(3600 * hours)).await;
            committer.durable(committer.submit(row(hours + 2, 1)).unwrap()).await.unwrap();
            if hours == 2 {
                committer.close().await.unwrap();
            }
        });
    }
}
