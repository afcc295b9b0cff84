//! Space (R19) and memory that written data takes before it is in the database.

use crate::fs::FsError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// The dataset's byte quota and what accepted writes may still need of it.
///
/// A write reserves one byte for every byte that becomes dirty, whatever lies below it. Only when that much is not left are the records below read
/// and the growth counted exactly, so that overwriting works on a full dataset. A flush never asks again: what it allocates is at most what was
/// reserved, but for zeros that fill holes where a record of too many pieces is rewritten as one (less than a record each).
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

    /// Whether `bytes` more fit, with `allocated` in use.
    pub fn fits(&self, bytes: u64, allocated: u64) -> bool {
        allocated.saturating_add(self.reserved()).saturating_add(bytes) <= self.quota.load(Ordering::Relaxed)
    }

    /// Reserves `bytes`, with `allocated` in use. Nothing needs no room, even on a dataset that is over its quota.
    pub fn reserve(&self, bytes: u64, allocated: u64) -> Result<(), FsError> {
        if bytes == 0 {
            return Ok(());
        }
        let before = self.reserved.fetch_add(bytes, Ordering::AcqRel);
        if allocated.saturating_add(before).saturating_add(bytes) <= self.quota.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
        Err(FsError::NoSpace)
    }

    pub fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Room for dirty bytes in memory.
#[derive(Debug)]
pub(super) struct Room {
    max: u64,
    used: AtomicU64,
    freed: Notify,
}

/// A writer that found no room for this long is told that the store does not answer: its client asks again.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Room for one write among the volume's dirty bytes; given back when dropped.
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

impl Room {
    pub fn new(max: u64) -> Self {
        Self { max, used: AtomicU64::new(0), freed: Notify::new() }
    }

    /// Flushing begins here: before writers have to wait.
    pub fn is_low(&self) -> bool {
        self.used.load(Ordering::Acquire) > self.max / 4
    }

    fn try_take(&self, bytes: u64) -> bool {
        let fits = |used: u64| (used == 0 || used + bytes <= self.max).then_some(used + bytes);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    /// Waits for room; `full` is called when there is none at once.
    pub async fn admit(self: &Arc<Self>, bytes: u64, full: impl Fn()) -> Result<Admission, FsError> {
        let admitted = || Admission { room: self.clone(), bytes };
        if self.try_take(bytes) {
            return Ok(admitted());
        }
        let wait = async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.try_take(bytes) {
                    return;
                }
                full();
                freed.await;
            }
        };
        let timeout =
            || FsError::Unavailable("written data is not taken: see the log of this node for the store's errors".to_owned());
        tokio::time::timeout(ADMIT_TIMEOUT, wait).await.map_err(|_| timeout())?;
        Ok(admitted())
    }

    /// Takes (or, negative, frees) bytes without asking.
    pub fn change(&self, bytes: i64) {
        if bytes >= 0 {
            self.used.fetch_add(bytes.unsigned_abs(), Ordering::AcqRel);
        } else {
            self.used.fetch_sub(bytes.unsigned_abs(), Ordering::AcqRel);
            self.freed.notify_waiters();
        }
    }

    #[cfg(test)]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
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

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_for_room_and_not_for_ever() {
        let room = Arc::new(Room::new(100));
        let first = room.admit(80, || {}).await.unwrap();
        let second = tokio::spawn({
            let room = room.clone();
            async move { room.admit(80, || {}).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        second.await.unwrap().unwrap();
        let large = room.admit(1000, || {}).await.unwrap();
        assert!(matches!(room.admit(1, || {}).await, Err(FsError::Unavailable(_))));
        drop(large);
        assert_eq!(room.used(), 0);
    }
}
