//! The memory budget of open packs and packs being put, shared by all packers of the process.
//!
//! Bytes of packs being put are freed by themselves; bytes of open packs are freed only once these
//! are closed. When a caller waits and no put is in flight, every packer is therefore asked to
//! close its open pack, and closes each following one at once: a waiter always gets its bytes.
//! While a put is in flight no packer is asked, so that a bucket slower than its writers still gets
//! full packs.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A user of the budget that can return bytes by closing its open pack.
pub(super) trait BudgetUser: Send + Sync {
    /// Closes the open pack, so that it is put.
    fn close(self: Arc<Self>);
}

pub(super) struct WriteBudget {
    bytes: u32,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Packs in flight. In one total order with `waiting` (SeqCst): of a caller that begins to wait
    /// and the last put that ends, at least one sees the other.
    in_flight: AtomicUsize,
    users: Mutex<Vec<Weak<dyn BudgetUser>>>,
}

impl WriteBudget {
    pub(super) fn new(bytes: u32) -> Self {
        Self {
            bytes,
            free: Arc::new(Semaphore::new(bytes as usize)),
            waiting: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            users: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn register(&self, user: Weak<dyn BudgetUser>) {
        let mut users = self.users.lock();
        users.retain(|user| user.strong_count() > 0);
        users.push(user);
    }

    /// Takes `bytes`, at most the whole budget. Waiters are served in order.
    pub(super) async fn take(&self, bytes: u32) -> OwnedSemaphorePermit {
        let bytes = bytes.min(self.bytes);
        if let Ok(permit) = self.free.clone().try_acquire_many_owned(bytes) {
            return permit;
        }
        let _waiting = Waiting::on(&self.waiting);
        if self.is_deadlocked() {
            self.close_open_packs();
        }
        match self.free.clone().acquire_many_owned(bytes).await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// True if a caller waits and no put is in flight that would return bytes.
    pub(super) fn is_deadlocked(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0 && self.in_flight.load(Ordering::SeqCst) == 0
    }

    /// A put of a pack began.
    pub(super) fn put_began(&self) {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
    }

    /// A put of a pack ended, stored or lost, and its bytes were returned.
    pub(super) fn put_ended(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        // When the runtime shuts down no waiter is left, and nothing can be sent.
        if self.is_deadlocked() && tokio::runtime::Handle::try_current().is_ok() {
            self.close_open_packs();
        }
    }

    fn close_open_packs(&self) {
        let users: Vec<_> = self.users.lock().iter().filter_map(Weak::upgrade).collect();
        for user in users {
            user.close();
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
