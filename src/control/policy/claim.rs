//! Which process runs the policies of a pool: a claim in the bucket, taken when something is due
//! and released, with the time up to which every slot is done, when that was done.
//!
//! ```text
//! free ──take──▶ held ──renew──▶ held ──release: done up to …──▶ free
//!                  └─ not renewed for a lease, by the waiter's clock ──take──▶ held by another
//! ```
//! Two holders at once do no harm: they make snapshots of the same names, and delete the same. So
//! whoever loses the claim continues.
//!
//! The store's time of the claim shows whether this machine's clock is right. By a wrong one too
//! many snapshots seem old: then none is deleted.
//!
//! A crash leaves a claim that expires; the next holder finds the snapshots made.

use super::CLOCK_SKEW;
use crate::catalog::{Catalog, CatalogError, PolicyRun, Versioned};
use crate::control::{ControlError, Pool};
use crate::types::{Incarnation, Timestamp};
use crate::volume::{LeaseSettings, Volumes};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Most datasets that the claim names as failed: with more, nothing counts as done.
const FAILED_MAX: usize = 1000;

/// The claim's newest version, and since when it is known.
#[derive(Default)]
pub(super) struct Seen(Option<(u64, Duration)>);

impl Seen {
    /// Returns for how long the version has been known as the newest.
    fn unchanged_for(&mut self, version: u64, now: Duration) -> Duration {
        match self.0 {
            Some((seen, since)) if seen == version => now.saturating_sub(since),
            _ => {
                self.0 = Some((version, now));
                Duration::ZERO
            }
        }
    }

    /// The node of another process that holds the claim.
    pub fn held_elsewhere(
        &mut self,
        at: Option<&Versioned<PolicyRun>>,
        volumes: &Volumes,
    ) -> Option<String> {
        let at = at?;
        let holder = at.record.holder?;
        let settings = volumes.lease();
        let lease = settings.lease.max(Duration::from_millis(at.record.lease_millis));
        let expired = self.unchanged_for(at.version, settings.clock.now()) >= lease;
        (holder != volumes.settings().session && !expired).then(|| at.record.node.clone())
    }
}

/// The comparison of this machine's clock with the store's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClockCheck {
    Agrees,
    Differs,
}

/// Compares this machine's clock with the store's time of what it has just written. A pool in a
/// folder of this machine has no other clock.
async fn check_clock(pool: &Pool, at: &Versioned<PolicyRun>) -> ClockCheck {
    let written = match pool.catalog.policy_run_written(at).await {
        Ok(Some(written)) => Timestamp::from(written),
        // Another process took the claim, and deletes.
        Ok(None) => return ClockCheck::Differs,
        Err(error) => {
            tracing::debug!(%error, "cannot compare the clock with the store's; deleting nothing");
            return ClockCheck::Differs;
        }
    };
    let now = Timestamp::now();
    let apart = now.since(written).max(written.since(now));
    if apart <= CLOCK_SKEW {
        return ClockCheck::Agrees;
    }
    tracing::warn!(
        pool = pool.name,
        apart_secs = apart.as_secs(),
        "the clock of this machine differs from the object store's: snapshot policies make \
         snapshots, and delete none; correct the clock"
    );
    ClockCheck::Differs
}

/// A claim that is held, and renewed until it is released.
pub(super) struct Held {
    pool: Pool,
    pub clock: ClockCheck,
    run: PolicyRun,
    stop: CancellationToken,
    /// Returns the version that it wrote last, unless another process took the claim.
    renewing: JoinHandle<Option<Versioned<PolicyRun>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Held {
    /// Takes the claim over the version that was read; `None`: another process was faster.
    pub async fn take(
        pool: &Pool,
        volumes: &Volumes,
        at: Option<Versioned<PolicyRun>>,
    ) -> Result<Option<Self>, ControlError> {
        let (owner, before) = (volumes.owner(), at.as_ref().map(|at| at.record.clone()));
        let run = PolicyRun {
            holder: Some(volumes.settings().session),
            node: owner.node,
            lease_millis: owner.lease_millis,
            done: before.as_ref().and_then(|before| before.done),
            failed: before.map(|before| before.failed).unwrap_or_default(),
        };
        pool.step("control.policy.claim").await?;
        let at = match pool.catalog.write_policy_run(at, run.clone()).await {
            Ok(at) => at,
            Err(CatalogError::Contended { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let clock = check_clock(pool, &at).await;
        let stop = CancellationToken::new();
        let renewing =
            tokio::spawn(renew(pool.catalog.clone(), at, volumes.lease().clone(), stop.clone()));
        Ok(Some(Self { pool: pool.clone(), clock, run, stop, renewing }))
    }

    /// Releases the claim. `done`: every slot up to there is, but for those of the failed datasets;
    /// `None`: as before.
    pub async fn release(
        mut self,
        done: Option<(Timestamp, Vec<Incarnation>)>,
    ) -> Result<(), ControlError> {
        self.stop.cancel();
        let Ok(Some(at)) = (&mut self.renewing).await else { return Ok(()) };
        self.pool.step("control.policy.claim-released").await?;
        let mut run = PolicyRun { holder: None, ..self.run.clone() };
        if let Some((done, failed)) = done.filter(|(_, failed)| failed.len() <= FAILED_MAX) {
            (run.done, run.failed) = (Some(done), failed);
        }
        match self.pool.catalog.write_policy_run(Some(at), run).await {
            Ok(_) | Err(CatalogError::Contended { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

async fn renew(
    catalog: Catalog,
    mut at: Versioned<PolicyRun>,
    lease: LeaseSettings,
    stop: CancellationToken,
) -> Option<Versioned<PolicyRun>> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Some(at),
            () = tokio::time::sleep(lease.interval()) => {}
        }
        match catalog.write_policy_run(Some(at.clone()), at.record.clone()).await {
            Ok(now) => at = now,
            Err(CatalogError::Contended { .. }) => return None,
            Err(error) => {
                tracing::debug!(%error, "renewing the claim to run policies failed; retrying");
            }
        }
    }
}
