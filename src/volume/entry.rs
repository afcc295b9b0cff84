//! The entry of one dataset among the volumes of a process, and the guard of its users.

use super::claim::ActiveClaim;
use super::lease::LeaseGuard;
use super::lifecycle::{ClaimOutcome, CloseAction, CloseReason, CloseStep, Lifecycle, OpenAction};
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

/// A user of an open volume: while there is a guard, the volume is not closed as unused.
pub struct VolumeGuard(Arc<Volume>);

impl VolumeGuard {
    /// To be called only while the volume cannot begin to close: under the lock of its entry's
    /// state, or from another guard.
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

/// The state of a volume in this process: from before the record is claimed until it says released
/// (R33).
pub(super) struct VolumeEntry {
    pub id: DatasetId,
    pub pool: Catalog,
    /// Locked by whoever opens, closes or hands over the volume. Locked before `state`.
    pub transition: tokio::sync::Mutex<()>,
    state: Mutex<EntryState>,
    /// Wakes the task that closes it.
    pub woken: Notify,
}

#[derive(Default)]
struct EntryState {
    lifecycle: Lifecycle,
    /// The open file system, if there is one.
    open: Option<Open>,
    /// Keeps the lease renewed while the record may name this session, once the file system is
    /// closed.
    guard: Option<Arc<LeaseGuard>>,
    /// The claims of this session that the record may name: more than one while it is unknown
    /// which of them was written.
    claims: Vec<ActiveClaim>,
    /// When the close is retried; none: no task retries it.
    due: Option<Instant>,
    /// Failed attempts to close the volume since it was opened.
    failures: u32,
}

#[derive(Clone)]
pub(super) struct Open {
    pub volume: Arc<Volume>,
    /// The volume may answer until this is dropped.
    pub guard: Arc<LeaseGuard>,
    /// Ends the task that watches the volume.
    pub closed: CancellationToken,
}

pub(super) type Users = AtomicUsize;

impl VolumeEntry {
    pub fn new(id: DatasetId, pool: Catalog) -> Self {
        Self {
            id,
            pool,
            transition: Default::default(),
            state: Default::default(),
            woken: Notify::new(),
        }
    }

    pub fn lifecycle(&self) -> Lifecycle {
        self.state.lock().lifecycle
    }

    pub fn open_action(&self) -> OpenAction {
        self.lifecycle().open_action()
    }

    pub fn step(&self) -> Option<CloseStep> {
        self.lifecycle().step()
    }

    /// The volume if it is open.
    pub fn volume(&self) -> Option<VolumeGuard> {
        let state = self.state.lock();
        let open = state.open.as_ref().filter(|_| state.lifecycle.is_open());
        open.map(|open| VolumeGuard::new(open.volume.clone()))
    }

    pub fn open(&self) -> Option<Open> {
        self.state.lock().open.clone()
    }

    /// Returns whether the record names a claim of this entry.
    pub fn owns(&self, record: &Dataset) -> bool {
        self.state.lock().claims.iter().any(|claim| claim.owns(record))
    }

    /// The record may name this claim from now on.
    pub fn claiming(&self, claim: ActiveClaim) {
        self.state.lock().claims.push(claim);
    }

    /// The record was written with this claim. No earlier claim can be written any more, because
    /// the version that it would be exists now (R31).
    pub fn claimed(&self, claim: ActiveClaim) {
        self.state.lock().claims = vec![claim];
    }

    pub fn begin_opening(&self) {
        self.state.lock().lifecycle.begin_opening();
    }

    pub fn opened(&self, open: Open) -> VolumeGuard {
        let mut state = self.state.lock();
        let guard = VolumeGuard::new(open.volume.clone());
        state.lifecycle.opened();
        (state.open, state.guard, state.failures) = (Some(open), None, 0);
        guard
    }

    pub fn not_opened(&self, claim: ClaimOutcome) {
        self.state.lock().lifecycle.not_opened(claim);
    }

    pub fn begin_closing(&self, reason: CloseReason) -> CloseAction {
        let mut state = self.state.lock();
        let users = state.open.as_ref().map_or(0, |open| open.volume.users.load(Ordering::Acquire));
        state.lifecycle.begin_closing(reason, users)
    }

    pub fn reopened(&self, open: Open) {
        let mut state = self.state.lock();
        state.lifecycle.reopened();
        (state.open, state.guard) = (Some(open), None);
    }

    pub fn flushed(&self) {
        self.shut(Lifecycle::flushed);
    }

    pub fn failed(&self) {
        self.shut(Lifecycle::failed);
    }

    pub fn discarded(&self) {
        self.shut(Lifecycle::discarded);
    }

    /// Ends this opening of the volume, unless it has ended. Whether it was open until now.
    pub fn lost(&self, volume: &Volume) -> bool {
        let is_it = self
            .state
            .lock()
            .open
            .as_ref()
            .is_some_and(|open| open.volume.opening == volume.opening);
        is_it && self.shut(Lifecycle::lost)
    }

    /// Drops the file system once it is closed, and keeps the lease.
    fn shut<T>(&self, change: impl FnOnce(&mut Lifecycle) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state.lifecycle);
        if state.lifecycle.step().is_some_and(|step| step != CloseStep::Flush)
            && let Some(open) = state.open.take()
        {
            open.closed.cancel();
            state.guard = Some(open.guard);
        }
        changed
    }

    pub fn not_ours(&self) {
        self.state.lock().lifecycle.not_ours();
    }

    pub fn released(&self) {
        let mut state = self.state.lock();
        state.lifecycle.released();
        state.claims.clear();
    }

    /// Ends the entry because another process goes on with the volume. The file system, if it is
    /// open.
    pub fn hand_over(&self) -> Option<Open> {
        let mut state = self.state.lock();
        state.lifecycle.released();
        let open = state.open.take();
        if let Some(open) = &open {
            open.closed.cancel();
        }
        self.woken.notify_one();
        open
    }

    /// Counts a failed attempt to close the volume. The number of failures before it.
    pub fn count_failure(&self) -> u32 {
        let failures = &mut self.state.lock().failures;
        std::mem::replace(failures, failures.saturating_add(1))
    }

    /// Sets when the close is retried. Whether a task has to be started that does so.
    pub fn try_again(&self, at: Instant) -> bool {
        let before = self.state.lock().due.replace(at);
        self.woken.notify_one();
        before.is_none()
    }

    /// When the close is to be retried; none: never, and the task that asks ends.
    pub fn due(&self) -> Option<Instant> {
        let mut state = self.state.lock();
        if state.lifecycle.step().is_none() {
            state.due = None;
        }
        state.due
    }
}
