//! One collector of a pool at a time: a claim in the bucket, taken when there is something to read
//! or to remove, and released when that is done.
//!
//! ```text
//! free ──take──▶ held ──renew──▶ held ──release──▶ free
//!                  └─ not renewed for a lease, by the waiter's clock ──take──▶ held by another
//! ```
//! Concurrent collections are safe (because of R11, R12 and the swaps to `dead`), so a claim that
//! is lost, or taken from a holder that was only slow, costs requests and nothing else. A
//! collection that has nothing to read takes none.
//!
//! A crash leaves a claim that expires.

use super::{Collector, Memory};
use crate::catalog::{CatalogError, CollectorClaim, Versioned};
use crate::control::{ControlError, Pool};
use crate::types::{PoolId, SessionId};
use crate::volume::{LeaseSettings, Volumes};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Interval at which a waiting process reads the claim.
pub(super) const POLL: Duration = Duration::from_secs(2);

/// The collector claim of each pool, as far as this process knows it.
#[derive(Default)]
pub(super) struct Claims(HashMap<PoolId, ClaimVersions>);

#[derive(Default)]
struct ClaimVersions {
    /// The newest version, and when it was first known to be that.
    seen: Option<(u64, Duration)>,
    /// The newest version when this process last considered collecting.
    considered: Option<u64>,
}

impl Claims {
    fn of(&mut self, pool: PoolId) -> &mut ClaimVersions {
        self.0.entry(pool).or_default()
    }
}

impl ClaimVersions {
    /// Returns for how long the version has been known as the newest.
    fn unchanged_for(&mut self, version: u64, now: Duration) -> Duration {
        match self.seen {
            Some((seen, since)) if seen == version => now.saturating_sub(since),
            _ => {
                self.seen = Some((version, now));
                Duration::ZERO
            }
        }
    }
}

/// The claim of one collection: taken when it is first needed.
pub(super) struct Claim {
    pool: Pool,
    volumes: Volumes,
    memory: Memory,
    held: OnceCell<Renewal>,
    /// The node that holds the claim instead.
    refused: Mutex<Option<String>>,
}

struct Renewal {
    stop: CancellationToken,
    /// Returns the version that it wrote last, unless another process took the claim.
    renewing: JoinHandle<Option<Versioned<CollectorClaim>>>,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Claim {
    pub fn new(pool: &Pool, volumes: &Volumes, memory: &Memory) -> Self {
        Self {
            pool: pool.clone(),
            volumes: volumes.clone(),
            memory: memory.clone(),
            held: OnceCell::new(),
            refused: Mutex::default(),
        }
    }

    /// Takes and holds the claim.
    ///
    /// # Errors
    /// [`ControlError::InProgress`] while another holds it.
    pub async fn hold(&self) -> Result<(), ControlError> {
        self.held.get_or_try_init(|| self.take()).await.map(drop)
    }

    async fn take(&self) -> Result<Renewal, ControlError> {
        let (catalog, lease) = (&self.pool.catalog, self.volumes.lease().clone());
        let session = self.volumes.settings().session;
        let at = catalog.collector_claim().await?;
        if let Some(at) = at.as_ref().filter(|at| is_of_another(&at.record, session)) {
            if !has_expired(at, self.memory.lock().claims.of(self.pool.id()), &lease) {
                return Err(self.held_by(&at.record.node));
            }
            tracing::info!(
                pool = self.pool.name,
                node = at.record.node,
                "the previous collector has stopped: its claim has expired"
            );
        }
        let claim = self.claim(Some(session));
        self.pool.step("collect.claim").await?;
        match catalog.write_collector_claim(at, claim).await {
            Ok(at) => Ok(self.renewed(at, lease)),
            Err(CatalogError::Contended { .. }) => Err(self.held_by("another process")),
            Err(error) => Err(error.into()),
        }
    }

    fn claim(&self, holder: Option<SessionId>) -> CollectorClaim {
        let owner = self.volumes.owner();
        CollectorClaim { holder, node: owner.node, lease_millis: owner.lease_millis }
    }

    /// Returns the node that held the claim when it was needed.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().clone()
    }

    fn held_by(&self, node: &str) -> ControlError {
        *self.refused.lock() = Some(node.to_owned());
        ControlError::InProgress {
            what: format!("pool {} (a collection by {node})", self.pool.name),
        }
    }

    fn renewed(&self, mut at: Versioned<CollectorClaim>, lease: LeaseSettings) -> Renewal {
        let (catalog, stop) = (self.pool.catalog.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let renewing = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return Some(at),
                    () = tokio::time::sleep(lease.interval()) => {}
                }
                match catalog.write_collector_claim(Some(at.clone()), at.record.clone()).await {
                    Ok(now) => at = now,
                    Err(CatalogError::Contended { .. }) => return None,
                    Err(error) => {
                        tracing::debug!(%error, "renewing the collector claim failed; retrying");
                    }
                }
            }
        });
        Renewal { stop, renewing }
    }

    /// Releases the claim, if it was taken.
    pub async fn release(mut self) -> Result<(), ControlError> {
        let Some(mut held) = self.held.take() else { return Ok(()) };
        held.stop.cancel();
        let Ok(Some(at)) = (&mut held.renewing).await else { return Ok(()) };
        self.pool.step("collect.claim-released").await?;
        match self.pool.catalog.write_collector_claim(Some(at), self.claim(None)).await {
            Ok(now) => {
                self.memory.lock().claims.of(self.pool.id()).considered = Some(now.version);
                Ok(())
            }
            Err(CatalogError::Contended { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_of_another(claim: &CollectorClaim, session: SessionId) -> bool {
    claim.holder.is_some_and(|holder| holder != session)
}

/// Returns whether a claim has not been renewed for a whole lease, on this process's clock.
fn has_expired(
    at: &Versioned<CollectorClaim>,
    known: &mut ClaimVersions,
    settings: &LeaseSettings,
) -> bool {
    let lease = settings.lease.max(Duration::from_millis(at.record.lease_millis));
    known.unchanged_for(at.version, settings.clock.now()) >= lease
}

/// The collections of other processes in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Others {
    Nothing,
    /// Another process has collected, or begun to, since this process last did, or last called
    /// this.
    Collected,
    /// The process of this node holds the claim.
    Collecting(String),
}

impl Collector {
    /// Looks at the claim alone: while another process collects, this one lists nothing.
    pub async fn others(&self) -> Result<Others, ControlError> {
        let at = self.pool.catalog.collector_claim().await?;
        let newest = at.as_ref().map_or(0, |at| at.version);
        let before = {
            let mut memory = self.memory.lock();
            memory.claims.of(self.pool.id()).considered.replace(newest)
        };
        if before.is_some_and(|before| before != newest) {
            return Ok(Others::Collected);
        }
        Ok(self.held_elsewhere(at).map_or(Others::Nothing, Others::Collecting))
    }

    /// The node of another process that collects.
    pub(super) async fn another_collects(&self) -> Result<Option<String>, ControlError> {
        let at = self.pool.catalog.collector_claim().await?;
        Ok(self.held_elsewhere(at))
    }

    fn held_elsewhere(&self, at: Option<Versioned<CollectorClaim>>) -> Option<String> {
        let at = at.filter(|at| is_of_another(&at.record, self.volumes.settings().session))?;
        let mut memory = self.memory.lock();
        let known = memory.claims.of(self.pool.id());
        (!has_expired(&at, known, self.volumes.lease())).then_some(at.record.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_expires_on_the_clock_of_whoever_waits() {
        let (mut versions, secs) = (ClaimVersions::default(), Duration::from_secs);
        assert_eq!(versions.unchanged_for(3, secs(100)), secs(0));
        assert_eq!(versions.unchanged_for(3, secs(140)), secs(40));
        assert_eq!(versions.unchanged_for(4, secs(141)), secs(0));
        assert_eq!(versions.unchanged_for(4, secs(200)), secs(59));
    }
}
