//! Memory for packs that are filled and stored, shared by all packers of the process.
//!
//! Bytes in packs on their way come back by themselves; bytes in packs that are still open come
//! back only when someone closes them. So when someone waits and nothing is on its way, every
//! packer is asked to close, and closes at once what it fills from then on: a waiter always gets
//! its room. While something is on its way nobody is asked, so that a bucket slower than its
//! writers still gets full packs.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What holds room and can give it back.
pub(super) trait Filler: Send + Sync {
    /// Closes the open pack, so that its bytes are on their way.
    fn close(self: Arc<Self>);
}

pub(super) struct Room {
    bytes: u32,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Packs on their way. With `waiting` in one order for all: who begins to wait and who arrives
    /// last, one of them sees the other.
    moving: AtomicUsize,
    fillers: Mutex<Vec<Weak<dyn Filler>>>,
}

impl Room {
    pub(super) fn new(bytes: u32) -> Self {
        Self {
            bytes,
            free: Arc::new(Semaphore::new(bytes as usize)),
            waiting: AtomicUsize::new(0),
            moving: AtomicUsize::new(0),
            fillers: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn register(&self, filler: Weak<dyn Filler>) {
        let mut fillers = self.fillers.lock();
        fillers.retain(|filler| filler.strong_count() > 0);
        fillers.push(filler);
    }

    /// Room for `bytes`, at most all there is. Waits in turn.
    pub(super) async fn take(&self, bytes: u32) -> OwnedSemaphorePermit {
        let bytes = bytes.min(self.bytes);
        if let Ok(permit) = self.free.clone().try_acquire_many_owned(bytes) {
            return permit;
        }
        let _waiting = Waiting::on(&self.waiting);
        if self.is_stuck() {
            self.press();
        }
        match self.free.clone().acquire_many_owned(bytes).await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Whether someone waits and nothing will give room back by itself.
    pub(super) fn is_stuck(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0 && self.moving.load(Ordering::SeqCst) == 0
    }

    /// A pack is on its way.
    pub(super) fn departed(&self) {
        self.moving.fetch_add(1, Ordering::SeqCst);
    }

    /// A pack was stored or lost, and its room given back.
    pub(super) fn arrived(&self) {
        self.moving.fetch_sub(1, Ordering::SeqCst);
        // When the runtime goes down nobody is left to be served, and nothing can be sent.
        if self.is_stuck() && tokio::runtime::Handle::try_current().is_ok() {
            self.press();
        }
    }

    fn press(&self) {
        let fillers: Vec<_> = self.fillers.lock().iter().filter_map(Weak::upgrade).collect();
        for filler in fillers {
            filler.close();
        }
    }
}

/// Counts one waiter for as long as it waits, cancelled or not.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn on(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
