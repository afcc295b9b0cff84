//! Limits of the calls in flight. Bytes and calls are counted apart, so that a GETATTR never waits
//! behind a thousand READs: a READ beyond its budget waits by itself, with a few hundred bytes,
//! while the calls behind it go on.
//!
//! A WRITE beyond its budget stays in the socket, and so do the calls after it on that connection:
//! this is TCP's back-pressure. It ends by itself, since the file system flushes without a COMMIT
//! (R22).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at a time; a further one is closed.
    pub connections: usize,
    /// Bytes of READ replies that are being built or not sent yet, over all connections (of all
    /// servers that share a [`Budget`]).
    pub read_bytes: usize,
    /// Bytes of WRITE payload received and not answered, likewise.
    pub write_bytes: usize,
    /// READs of one connection that wait for bytes, or for their volume's limits.
    pub reads_waiting: usize,
    /// Other calls of one connection that wait for the file system.
    pub calls: usize,
    /// Bytes of unsent replies of one connection, without READ data.
    pub reply_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            read_bytes: 64 << 20,
            write_bytes: 64 << 20,
            reads_waiting: 16 << 10,
            calls: 4096,
            reply_bytes: 4 << 20,
        }
    }
}

/// The part of the bytes that one connection may take: a client that does not read its replies
/// blocks itself, not others.
const CONNECTION_SHARE: usize = 2;

/// A budget of bytes, of one server and of one connection of it.
#[derive(Clone, Debug)]
pub struct Bytes {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    own_max: usize,
}

/// Bytes of calls in flight, which several servers of a process may share.
#[derive(Clone, Debug)]
pub struct Budget {
    pub(super) read: Bytes,
    pub(super) write: Bytes,
}

impl Budget {
    pub fn new(limits: &Limits) -> Self {
        Self { read: Bytes::new(limits.read_bytes), write: Bytes::new(limits.write_bytes) }
    }
}

/// Bytes taken; returned when dropped.
#[derive(Debug)]
pub struct Taken {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Bytes {
    /// `max` must have room for a few of the largest calls.
    pub fn new(max: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(max)),
            own: Arc::new(Semaphore::new(0)),
            own_max: max / CONNECTION_SHARE,
        }
    }

    /// The same budget, with a share for another connection.
    pub fn share(&self) -> Self {
        Self {
            all: self.all.clone(),
            own: Arc::new(Semaphore::new(self.own_max)),
            own_max: self.own_max,
        }
    }

    fn units(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.own_max)).unwrap_or(u32::MAX)
    }

    /// Takes bytes if they are available now.
    pub fn try_take(&self, bytes: usize) -> Option<Taken> {
        let units = self.units(bytes);
        let own = self.own.clone().try_acquire_many_owned(units).ok()?;
        let all = self.all.clone().try_acquire_many_owned(units).ok()?;
        Some(Taken { _own: own, _all: all })
    }

    /// Waits for bytes, first come, first served. `None`: the server has ended.
    pub async fn take(&self, bytes: usize) -> Option<Taken> {
        let units = self.units(bytes);
        let own = self.own.clone().acquire_many_owned(units).await.ok()?;
        let all = self.all.clone().acquire_many_owned(units).await.ok()?;
        Some(Taken { _own: own, _all: all })
    }
}

/// Counts calls in flight; the count decreases when the [`Counted`] is dropped.
#[derive(Clone, Debug, Default)]
pub struct Count(Arc<CountState>);

#[derive(Debug, Default)]
struct CountState {
    now: AtomicUsize,
    fewer: tokio::sync::Notify,
}

#[derive(Debug)]
pub struct Counted(Arc<CountState>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::AcqRel);
        self.0.fewer.notify_one();
    }
}

impl Count {
    pub fn enter(&self) -> Counted {
        self.0.now.fetch_add(1, Ordering::AcqRel);
        Counted(self.0.clone())
    }

    pub fn now(&self) -> usize {
        self.0.now.load(Ordering::Acquire)
    }

    /// Waits until fewer than `max` are in flight. One waiter at a time.
    pub async fn below(&self, max: usize) {
        while self.now() >= max {
            self.0.fewer.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_cannot_take_what_belongs_to_all() {
        let bytes = Bytes::new(200);
        let (one, two) = (bytes.share(), bytes.share());
        let _held = one.try_take(100).unwrap();
        assert!(one.try_take(1).is_none());
        assert!(two.try_take(100).is_some());
        // More than a share counts as the share: a call is never refused for ever.
        drop(_held);
        assert!(one.try_take(usize::MAX).is_some());
    }

    #[tokio::test]
    async fn waiting_ends_when_bytes_come_back() {
        let bytes = Bytes::new(200).share();
        let held = bytes.try_take(100).unwrap();
        let waiting = tokio::spawn({
            let bytes = bytes.clone();
            async move { bytes.take(50).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn the_count_goes_down() {
        let count = Count::default();
        let one = count.enter();
        let _two = count.enter();
        let waiting = tokio::spawn({
            let count = count.clone();
            async move { count.below(2).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(one);
        waiting.await.unwrap();
        assert_eq!(count.now(), 1);
    }
}
