//! The place of one dataset among the volumes of a process, and the guard of its users.

use super::claim::ActiveClaim;
use super::lease::Held;
use super::life::{Claim, Close, Life, Reason, Step, Want};
use super::volumes::Volume;
use crate::catalog::{Catalog, Dataset};
use crate::types::DatasetId;
use parking_lot::Mutex;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Holds an open volume: it is not closed as unused while one of these is there.
pub struct VolumeGuard(Arc<Volume>);

impl VolumeGuard {
    /// Only while the volume cannot begin to close: under its place's lock, or from another guard.
    fn new(volume: Arc<Volume>) -> Self {
        volume.users.fetch_add(1, Ordering::AcqRel);
        Self(volume)
    }
}

impl Clone for VolumeGuard {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl Drop for VolumeGuard {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Deref for VolumeGuard {
    type Target = Volume;

    fn deref(&self) -> &Volume {
        &self.0
    }
}

/// Kept in the process from before the record is claimed until it says released (R33).
pub(super) struct Place {
    pub id: DatasetId,
    pub pool: Catalog,
    /// Held by whoever opens, closes or leaves it. Taken before `inside`.
    pub turn: tokio::sync::Mutex<()>,
    inside: Mutex<Inside>,
    /// Wakes the task that closes it.
    pub woken: Notify,
}

#[derive(Default)]
struct Inside {
    life: Life,
    /// While the file system is open.
    open: Option<Open>,
    /// Keeps the lease renewed while the record may name this session, once the file system is
    /// closed.
    held: Option<Arc<Held>>,
    /// The claims of ours that the record may name: more than one while it is not known which of
    /// them was written.
    claims: Vec<ActiveClaim>,
    /// When a close is tried again; none: no task is there that would.
    due: Option<Instant>,
    /// Tries of its close that failed since it was opened.
    failures: u32,
}

#[derive(Clone)]
pub(super) struct Open {
    pub volume: Arc<Volume>,
    /// The lease guard: it may answer until this is dropped.
    pub held: Arc<Held>,
    /// Ends the watcher.
    pub closed: CancellationToken,
}

pub(super) type Users = AtomicUsize;

impl Place {
    pub fn new(id: DatasetId, pool: Catalog) -> Self {
        Self {
            id,
            pool,
            turn: Default::default(),
            inside: Default::default(),
            woken: Notify::new(),
        }
    }

    pub fn life(&self) -> Life {
        self.inside.lock().life
    }

    pub fn want(&self) -> Want {
        self.life().want()
    }

    pub fn step(&self) -> Option<Step> {
        self.life().step()
    }

    /// The volume if it is open.
    pub fn volume(&self) -> Option<VolumeGuard> {
        let inside = self.inside.lock();
        let open = inside.open.as_ref().filter(|_| inside.life.is_open());
        open.map(|open| VolumeGuard::new(open.volume.clone()))
    }

    pub fn open(&self) -> Option<Open> {
        self.inside.lock().open.clone()
    }

    /// Whether the record names a claim that was made here.
    pub fn owns(&self, record: &Dataset) -> bool {
        self.inside.lock().claims.iter().any(|claim| claim.owns(record))
    }

    /// The record may be written with this claim from now on.
    pub fn claiming(&self, claim: ActiveClaim) {
        self.inside.lock().claims.push(claim);
    }

    /// The record was written with this claim: none of before can be any more, because each is of a
    /// version that is there now (R31).
    pub fn claimed(&self, claim: ActiveClaim) {
        self.inside.lock().claims = vec![claim];
    }

    pub fn begin_opening(&self) {
        self.inside.lock().life.begin_opening();
    }

    pub fn opened(&self, open: Open) -> VolumeGuard {
        let mut inside = self.inside.lock();
        let guard = VolumeGuard::new(open.volume.clone());
        inside.life.opened();
        (inside.open, inside.held, inside.failures) = (Some(open), None, 0);
        guard
    }

    pub fn not_opened(&self, claim: Claim) {
        self.inside.lock().life.not_opened(claim);
    }

    pub fn begin_closing(&self, reason: Reason) -> Close {
        let mut inside = self.inside.lock();
        let users =
            inside.open.as_ref().map_or(0, |open| open.volume.users.load(Ordering::Acquire));
        inside.life.begin_closing(reason, users)
    }

    pub fn reopened(&self, open: Open) {
        let mut inside = self.inside.lock();
        inside.life.reopened();
        (inside.open, inside.held) = (Some(open), None);
    }

    pub fn flushed(&self) {
        self.shut(Life::flushed);
    }

    pub fn failed(&self) {
        self.shut(Life::failed);
    }

    /// Marks this opening as lost. Returns whether it was open until now.
    pub fn lost(&self, volume: &Volume) -> bool {
        let is_it = self
            .inside
            .lock()
            .open
            .as_ref()
            .is_some_and(|open| open.volume.opening == volume.opening);
        is_it && self.shut(Life::lost)
    }

    /// Lets the file system go, and keeps the lease.
    fn shut<T>(&self, change: impl FnOnce(&mut Life) -> T) -> T {
        let mut inside = self.inside.lock();
        let changed = change(&mut inside.life);
        if inside.life.step().is_some_and(|step| step != Step::Flush)
            && let Some(open) = inside.open.take()
        {
            open.closed.cancel();
            inside.held = Some(open.held);
        }
        changed
    }

    pub fn not_ours(&self) {
        self.inside.lock().life.not_ours();
    }

    pub fn released(&self) {
        let mut inside = self.inside.lock();
        inside.life.released();
        inside.claims.clear();
    }

    /// Gives the place up to another process. Returns the open volume, if there is one.
    pub fn leave(&self) -> Option<Open> {
        let mut inside = self.inside.lock();
        inside.life.released();
        let open = inside.open.take();
        if let Some(open) = &open {
            open.closed.cancel();
        }
        self.woken.notify_one();
        open
    }

    /// Another try of its close has failed: how many had before.
    pub fn count_failure(&self) -> u32 {
        let failures = &mut self.inside.lock().failures;
        std::mem::replace(failures, failures.saturating_add(1))
    }

    /// Schedules the next attempt of its close, replacing an earlier time. Returns whether a task
    /// is needed to do it.
    pub fn try_again(&self, at: Instant) -> bool {
        let before = self.inside.lock().due.replace(at);
        self.woken.notify_one();
        before.is_none()
    }

    /// Returns when its close is to be retried. `None`: there is nothing to retry, and a later
    /// schedule needs a new task.
    pub fn due(&self) -> Option<Instant> {
        let mut inside = self.inside.lock();
        if inside.life.step().is_none() {
            inside.due = None;
        }
        inside.due
    }
}
