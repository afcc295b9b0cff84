//! The right to answer for one dataset.
//!
//! ```text
//! begun ──claimed──▶ holds ◀──── regained: claimed again, under another id
//!                     │  └─ lapsed ──┘
//!                     └──────────────────▶ ended: taken, or revoked
//! ```

use super::keeper::Shared;
use crate::catalog::Dataset;
use crate::fs;
use crate::types::{ClaimId, DatasetId};
use crate::volume::ownership::Claims;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Why a tenure is over before its volume was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The dataset's record names somebody else, or nobody.
    Taken,
    /// The claim of this id was revoked (R27).
    Revoked(ClaimId),
}

/// The lease generation for which the ownership is valid: none yet, and none after its end.
const UNCLAIMED: u64 = 0;
const ENDED: u64 = u64::MAX;

/// See the module's documentation.
pub struct Tenure {
    pub(super) shared: Arc<Shared>,
    pub(super) dataset: DatasetId,
    claims: Mutex<Claims>,
    /// The lease generation in which the record was last known to name this session.
    good_for: AtomicU64,
    end: watch::Sender<Option<End>>,
}

impl Tenure {
    pub(super) fn new(shared: Arc<Shared>, dataset: DatasetId, claim: ClaimId) -> Self {
        let claims = Mutex::new(Claims::new(claim));
        Self {
            shared,
            dataset,
            claims,
            good_for: AtomicU64::new(UNCLAIMED),
            end: watch::Sender::new(None),
        }
    }

    /// Whether a claim found in the record, or revoked, is the one that this is of.
    pub fn is_of(&self, claim: ClaimId) -> bool {
        self.claims.lock().contain(claim)
    }

    /// Claims the record again after the lease expired; `false`: it is another claim's.
    pub(super) fn renew(&self, record: &mut Dataset) -> bool {
        self.claims.lock().renew(record, ClaimId::random())
    }

    /// What [`Self::renew`] had made of the record was written, with this claim.
    pub(super) fn renewed(&self, claim: ClaimId) {
        self.claims.lock().renewed(claim);
    }

    /// Notes that the record names this claim, and was written in this lease generation.
    pub(super) fn confirm(&self, life: u64) {
        let raise = |good_for| (good_for != ENDED).then_some(life.max(good_for));
        // An end is final: then there is nothing to raise.
        let _ended = self.good_for.fetch_update(Ordering::AcqRel, Ordering::Acquire, raise);
    }

    /// Whether the record has to be written anew before this holds again.
    pub(super) fn needs_confirming(&self, life: u64) -> bool {
        let good_for = self.good_for.load(Ordering::Acquire);
        good_for != UNCLAIMED && good_for != ENDED && good_for != life
    }

    /// Ends the ownership: no call is answered from here on. The first reason stays.
    pub(super) fn end(&self, end: End) {
        self.good_for.store(ENDED, Ordering::Release);
        self.end.send_if_modified(|now| {
            let first = now.is_none();
            now.get_or_insert(end);
            first
        });
    }

    pub(super) fn has_ended(&self) -> bool {
        self.good_for.load(Ordering::Acquire) == ENDED
    }

    /// Waits for the end.
    pub async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(End::Taken),
            // Never happens: the sender is in `self`.
            Err(_) => End::Taken,
        }
    }
}

impl fs::Tenure for Tenure {
    fn holds(&self) -> bool {
        // The lease first: who sees it renewed after a lapse sees that it is in another life, too.
        self.shared.is_valid() && self.good_for.load(Ordering::Acquire) == self.shared.life()
    }

    fn renew_soon(&self) {
        self.shared.renew_soon();
    }

    fn regained(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let (mut renewed, mut end) = (self.shared.renewed(), self.end.subscribe());
            loop {
                if end.borrow().is_some() {
                    return false;
                }
                // Marked as seen before the check, so that a change after it is not missed.
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

/// A tenure while its volume is open or being opened: the lease is renewed as long as one of these
/// is there.
pub struct Held(Arc<Tenure>);

impl Held {
    pub(super) fn new(tenure: Arc<Tenure>) -> Self {
        Self(tenure)
    }

    pub fn tenure(&self) -> &Arc<Tenure> {
        &self.0
    }

    /// The record is of this claim, by a change made while `life` was the lease's (from
    /// [`super::Keeper::begin`]).
    pub fn claimed(&self, life: u64) {
        self.0.confirm(life);
        // It may have lapsed meanwhile.
        if self.0.needs_confirming(self.0.shared.life()) {
            self.0.shared.renew_soon();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.shared.forget(&self.0);
    }
}
