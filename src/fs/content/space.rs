//! Accounts for the space (R19) and memory that written data takes before it is in the database.

use crate::fs::FsError;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// The dataset's byte quota and the part of it that accepted writes may still need.
///
/// A write reserves one byte for every byte that becomes dirty, whatever lies below it. Only when
/// that much is not left are the extents below read and the growth counted exactly, so that
/// overwriting works on a full dataset. A flush never asks again: it allocates at most what was
/// reserved, except for zeros that fill holes where an extent of too many pieces is rewritten as
/// one (less than an extent each).
#[derive(Debug)]
pub(super) struct Space {
    quota: AtomicU64,
    reserved: AtomicU64,
}

impl Default for Space {
    fn default() -> Self {
        Self { quota: AtomicU64::new(u64::MAX), reserved: AtomicU64::new(0) }
    }
}

impl Space {
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.quota.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    /// Returns whether `bytes` more fit, with `allocated` in use.
    pub fn fits(&self, bytes: u64, allocated: u64) -> bool {
        allocated.saturating_add(self.reserved()).saturating_add(bytes)
            <= self.quota.load(Ordering::Relaxed)
    }

    /// Reserves `bytes`, with `allocated` in use. Zero bytes always fit, even on a dataset that is
    /// over its quota.
    pub fn reserve(&self, bytes: u64, allocated: u64) -> Result<(), FsError> {
        if bytes == 0 {
            return Ok(());
        }
        let before = self.reserved.fetch_add(bytes, Ordering::AcqRel);
        if allocated.saturating_add(before).saturating_add(bytes)
            <= self.quota.load(Ordering::Relaxed)
        {
            return Ok(());
        }
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
        Err(FsError::NoSpace)
    }

    pub fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Memory for written data of all volumes of a process.
#[derive(Debug)]
pub struct DirtyMemory {
    max: u64,
    used: AtomicU64,
    freed: Notify,
    /// Each volume's flush task, which can free room.
    flushers: Mutex<Vec<Weak<Notify>>>,
}

/// One volume's share of it. Volumes whose store accepts no writes must not stop the others: each
/// gets [`TIMES_FREE`] what is left free at most, so that something is, however many they are. One
/// volume alone gets three quarters.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<DirtyMemory>,
    used: AtomicU64,
}

const TIMES_FREE: u64 = 3;

/// A writer that found no room for this long gets an error that the store does not answer: its
/// client retries.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Room for one write among the dirty bytes; given back when dropped.
#[must_use = "room is for a write that follows"]
pub struct Admission {
    room: Arc<Room>,
    bytes: u64,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.room.change(-self.bytes.cast_signed());
    }
}

impl DirtyMemory {
    pub fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            max,
            used: AtomicU64::new(0),
            freed: Notify::new(),
            flushers: Mutex::default(),
        })
    }

    fn press(&self) {
        self.flushers.lock().iter().filter_map(Weak::upgrade).for_each(|flush| flush.notify_one());
    }
}

impl Room {
    /// `flush` is notified when there is no room left.
    pub fn new(all: Arc<DirtyMemory>, flush: &Arc<Notify>) -> Self {
        let mut flushers = all.flushers.lock();
        flushers.retain(|flush| flush.strong_count() > 0);
        flushers.push(Arc::downgrade(flush));
        drop(flushers);
        Self { all, used: AtomicU64::new(0) }
    }

    /// Returns whether flushing should begin, before writers have to wait.
    pub fn is_low(&self) -> bool {
        self.all.used.load(Ordering::Acquire) > self.all.max / 2
    }

    /// A write larger than all of it is taken while nothing else is; the first one of a volume
    /// while there is room for it at all.
    fn try_take(&self, bytes: u64) -> bool {
        let own = self.used.load(Ordering::Acquire);
        let take = |all: u64| {
            let fits = match self.all.max.checked_sub(all + bytes) {
                Some(free) => own == 0 || own + bytes <= TIMES_FREE * free,
                None => all == 0,
            };
            fits.then_some(all + bytes)
        };
        let taken = self.all.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok();
        if taken {
            self.used.fetch_add(bytes, Ordering::AcqRel);
        }
        taken
    }

    /// Waits for room. Flushes are started when there is none at once.
    pub async fn admit(self: &Arc<Self>, bytes: u64) -> Result<Admission, FsError> {
        let admitted = || Admission { room: self.clone(), bytes };
        if self.try_take(bytes) {
            return Ok(admitted());
        }
        let wait = async {
            loop {
                let freed = self.all.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.try_take(bytes) {
                    return;
                }
                self.all.press();
                freed.await;
            }
        };
        let timeout = || {
            FsError::Unavailable(
                "written data is not taken: see the log of this node for the store's errors"
                    .to_owned(),
            )
        };
        tokio::time::timeout(ADMIT_TIMEOUT, wait).await.map_err(|_| timeout())?;
        Ok(admitted())
    }

    /// Takes (or, if negative, frees) bytes without a check.
    pub fn change(&self, bytes: i64) {
        let size = bytes.unsigned_abs();
        if bytes >= 0 {
            self.used.fetch_add(size, Ordering::AcqRel);
            self.all.used.fetch_add(size, Ordering::AcqRel);
        } else {
            self.used.fetch_sub(size, Ordering::AcqRel);
            self.all.used.fetch_sub(size, Ordering::AcqRel);
            self.all.freed.notify_waiters();
        }
    }

    #[cfg(test)]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }
}

/// Frees the room that a dropped volume still held.
impl Drop for Room {
    fn drop(&mut self) {
        let held = self.used.load(Ordering::Acquire);
        self.all.used.fetch_sub(held, Ordering::AcqRel);
        self.all.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_counts_against_the_quota() {
        let space = Space::default();
        space.reserve(u64::MAX / 2, 0).unwrap();
        space.release(u64::MAX / 2);
        space.set_quota(Some(100));
        space.reserve(60, 30).unwrap();
        assert!(matches!(space.reserve(11, 30), Err(FsError::NoSpace)));
        assert_eq!(space.reserved(), 60, "a refused write reserves nothing");
        space.reserve(0, 1000).unwrap();
        space.release(60);
        space.reserve(70, 30).unwrap();
    }

    fn room(all: &Arc<DirtyMemory>) -> (Arc<Room>, Arc<Notify>) {
        let flush = Arc::new(Notify::new());
        (Arc::new(Room::new(all.clone(), &flush)), flush)
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_for_room_and_not_for_ever() {
        let all = DirtyMemory::new(1000);
        let (one, _one) = room(&all);
        let first = one.admit(800).await.unwrap();
        let second = tokio::spawn({
            let room = one.clone();
            async move { room.admit(800).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap().unwrap();
        let large = one.admit(10_000).await.unwrap();
        assert!(matches!(one.admit(1).await, Err(FsError::Unavailable(_))));
        drop(large);
        assert_eq!((one.used(), all.used.load(Ordering::Acquire)), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn volumes_share_the_memory_and_press_each_other() {
        let all = DirtyMemory::new(1000);
        let ((one, flush_one), (two, _two)) = (room(&all), room(&all));
        let held = one.admit(700).await.unwrap();
        let more = one.admit(50).await.unwrap();
        assert!(one.admit(1).await.is_err(), "not all of it is for one volume");
        let small = two.admit(100).await.unwrap();
        drop((small, more));
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { two.admit(500).await.map(|_| ()) }
        });
        flush_one.notified().await;
        drop(held);
        waiting.await.unwrap().unwrap();
        one.change(300);
        drop(one);
        assert_eq!(all.used.load(Ordering::Acquire), 0, "a volume that is gone holds nothing");
    }

    /// As many as a pool that is away may have of a node's volumes.
    #[tokio::test(start_paused = true)]
    async fn volumes_that_are_stuck_leave_room_for_those_that_are_not() {
        const WRITE: u64 = 1 << 10;
        let all = DirtyMemory::new(1000 * WRITE);
        let mut stuck = Vec::new();
        for _ in 0..4 {
            let (volume, _) = room(&all);
            while volume.try_take(WRITE) {}
            assert!(volume.used() >= WRITE, "each has something");
            stuck.push(volume);
        }
        let (well, _) = room(&all);
        drop(well.admit(WRITE).await.unwrap());
    }
}
