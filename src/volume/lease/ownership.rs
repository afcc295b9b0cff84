//! Ownership of one dataset: the right to answer for it while the lease is valid.
//!
//! ```text
//! begun ──claimed──▶ holds ◀──── reacquired: claimed again, under another id
//!                     │  └─ expired ─┘
//!                     └──────────────────▶ ended: taken, or revoked
//! ```

use super::renewer::RenewerState;
use crate::catalog::Dataset;
use crate::fs;
use crate::types::{ClaimId, DatasetId};
use crate::volume::ownership::Claims;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Why an ownership ended before its volume was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnershipEnd {
    /// The dataset's record names another owner, or none.
    Taken,
    /// The claim of this id was revoked (R27).
    Revoked(ClaimId),
}

/// Values of [`Ownership::generation_held`] that are no generation: not claimed yet, and ended.
const UNCLAIMED: u64 = 0;
const ENDED: u64 = u64::MAX;

/// See the module's documentation.
pub struct Ownership {
    pub(super) renewer: Arc<RenewerState>,
    pub(super) dataset: DatasetId,
    claims: Mutex<Claims>,
    /// The generation of the lease in which the record was last known to name this session.
    generation_held: AtomicU64,
    end: watch::Sender<Option<OwnershipEnd>>,
}

impl Ownership {
    pub(super) fn new(renewer: Arc<RenewerState>, dataset: DatasetId, claim: ClaimId) -> Self {
        let claims = Mutex::new(Claims::new(claim));
        Self {
            renewer,
            dataset,
            claims,
            generation_held: AtomicU64::new(UNCLAIMED),
            end: watch::Sender::new(None),
        }
    }

    /// Returns whether the id is of the claim that this ownership is based on.
    pub fn is_of(&self, claim: ClaimId) -> bool {
        self.claims.lock().contain(claim)
    }

    /// Claims the record again after the lease expired; `false`: it names another claim.
    pub(super) fn renew(&self, record: &mut Dataset) -> bool {
        self.claims.lock().renew(record, ClaimId::random())
    }

    /// The record was written as [`Self::renew`] changed it, with this claim.
    pub(super) fn renewed(&self, claim: ClaimId) {
        self.claims.lock().renewed(claim);
    }

    /// The record names this claim, by a version written in this generation of the lease.
    pub(super) fn confirm(&self, generation: u64) {
        let raise =
            |generation_held| (generation_held != ENDED).then_some(generation.max(generation_held));
        // An ended ownership never holds again.
        let _ended = self.generation_held.fetch_update(Ordering::AcqRel, Ordering::Acquire, raise);
    }

    /// Returns whether the record has to be claimed again before this holds.
    pub(super) fn needs_reacquiring(&self, generation: u64) -> bool {
        let generation_held = self.generation_held.load(Ordering::Acquire);
        generation_held != UNCLAIMED && generation_held != ENDED && generation_held != generation
    }

    /// Ends the ownership: nothing is answered from here on. The first reason stays.
    pub(super) fn end(&self, end: OwnershipEnd) {
        self.generation_held.store(ENDED, Ordering::Release);
        self.end.send_if_modified(|now| {
            let first = now.is_none();
            now.get_or_insert(end);
            first
        });
    }

    pub(super) fn has_ended(&self) -> bool {
        self.generation_held.load(Ordering::Acquire) == ENDED
    }

    /// Waits for the end.
    pub async fn ended(&self) -> OwnershipEnd {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(OwnershipEnd::Taken),
            // Never happens: the sender is in `self`.
            Err(_) => OwnershipEnd::Taken,
        }
    }
}

impl fs::Lease for Ownership {
    fn holds(&self) -> bool {
        // The lease first: whoever sees it renewed after it expired sees the new generation, too.
        self.renewer.is_valid()
            && self.generation_held.load(Ordering::Acquire) == self.renewer.generation()
    }

    fn renew_soon(&self) {
        self.renewer.renew_soon();
    }

    fn reacquired(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let (mut renewed, mut end) = (self.renewer.renewed(), self.end.subscribe());
            loop {
                if end.borrow().is_some() {
                    return false;
                }
                // Marked as seen before the check: a change after it is not missed.
                renewed.borrow_and_update();
                if self.holds() {
                    return true;
                }
                tokio::select! {
                    changed = renewed.changed() => if changed.is_err() { return false },
                    _ = end.wait_for(Option::is_some) => return false,
                }
            }
        })
    }
}

/// Keeps the lease renewed while the volume of an ownership is open or being opened.
pub struct LeaseGuard(Arc<Ownership>);

impl LeaseGuard {
    pub(super) fn new(ownership: Arc<Ownership>) -> Self {
        Self(ownership)
    }

    pub fn ownership(&self) -> &Arc<Ownership> {
        &self.0
    }

    /// The record names this claim, by a version written in `generation` of the lease (from
    /// [`super::LeaseRenewer::begin`]).
    pub fn claimed(&self, generation: u64) {
        self.0.confirm(generation);
        // The lease may have expired meanwhile.
        if self.0.needs_reacquiring(self.0.renewer.generation()) {
            self.0.renewer.renew_soon();
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.0.renewer.forget(&self.0);
    }
}
