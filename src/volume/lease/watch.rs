//! A watch follows the heartbeats of a dataset's owner for whoever wants the dataset: without
//! asking the owner, and without believing any clock but its own.

use super::{Clock, LeaseSettings};
use crate::catalog::{Catalog, CatalogError, Owner};
use crate::types::DatasetId;
use std::sync::Arc;
use std::time::Duration;

/// The finding that an owner must have stopped answering. Only a [`Watch`] makes one. It is about
/// one claim, and void for an owner that has claimed the dataset again since, even if it is the
/// same session (R31).
#[derive(Clone, Debug)]
pub struct ExpiredLease {
    dataset: DatasetId,
    owner: Owner,
}

impl ExpiredLease {
    /// Makes a finding from evidence other than heartbeats.
    pub(in crate::volume) fn of(dataset: DatasetId, owner: Owner) -> Self {
        Self { dataset, owner }
    }

    pub(in crate::volume) fn covers(&self, dataset: DatasetId, owner: &Owner) -> bool {
        self.dataset == dataset && self.owner.claim == owner.claim
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }
}

/// The result of a look.
#[derive(Clone, Debug)]
pub enum Verdict {
    Expired(ExpiredLease),
    /// The owner may be alive. Unless something changes, its lease has expired after `wait`.
    NotExpired {
        wait: Duration,
    },
}

/// Observations of the heartbeats of a claim's owner, by the watcher's clock. Pure: [`Watch`] makes
/// the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::volume) struct Observed {
    /// The newest heartbeat, and the time when it was first known to be the newest.
    newest: Option<(Option<u64>, Duration)>,
    /// The time when the claim's revocation was first known to exist.
    revoked: Option<Duration>,
    /// Set when the last change of the heartbeats came between two observations.
    alive: bool,
}

impl Observed {
    /// Adds a look that was sent at `sent` and answered at `back`: an unchanged heartbeat counts
    /// until the look was sent, a new one from when it was answered. Returns how long to wait until
    /// the lease has expired; `None`: it has.
    pub fn add(
        &mut self,
        (sent, back): (Duration, Duration),
        newest: Option<u64>,
        revoked: bool,
        lease: Duration,
    ) -> Option<Duration> {
        if revoked {
            self.revoked.get_or_insert(back);
        }
        if !matches!(self.newest, Some((before, _)) if before == newest) {
            self.alive = self.newest.is_some();
            self.newest = Some((newest, back));
        }
        let since = [self.newest.map(|(_, since)| since), self.revoked]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(back);
        let unchanged = sent.saturating_sub(since);
        lease.checked_sub(unchanged).filter(|left| !left.is_zero())
    }
}

/// Watches the owner of one claim. Begun after the record was read.
pub struct Watch {
    catalog: Catalog,
    dataset: DatasetId,
    owner: Owner,
    clock: Arc<dyn Clock>,
    /// The owner's lease, or this process's own if that is longer: an owner of an old version
    /// without leases names none.
    lease: Duration,
    observed: Observed,
}

impl Watch {
    /// `owner`: from the dataset's record.
    pub fn new(
        catalog: &Catalog,
        dataset: DatasetId,
        owner: &Owner,
        settings: &LeaseSettings,
    ) -> Self {
        let (catalog, owner, clock) = (catalog.clone(), owner.clone(), settings.clock.clone());
        let lease = settings.lease.max(Duration::from_millis(owner.lease_millis));
        Self { catalog, dataset, owner, clock, lease, observed: Observed::default() }
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Returns whether this watches the owner's present claim.
    pub fn is_of(&self, owner: &Owner) -> bool {
        self.owner.claim == owner.claim
    }

    /// Returns whether a heartbeat was written while this watched.
    pub fn saw_heartbeat(&self) -> bool {
        self.observed.alive
    }

    /// Reads the owner's heartbeats, and its revocation if there is one.
    pub async fn look(&mut self) -> Result<Verdict, CatalogError> {
        let (session, claim) = (self.owner.session, self.owner.claim);
        let sent = self.clock.now();
        let status = self.catalog.node_status(session).await?;
        let revoked = self.observed.revoked.is_some()
            || status.revocations.contains(&claim)
                && self.catalog.revocation(session, claim).await?.is_some();
        let look = (sent, self.clock.now());
        Ok(match self.observed.add(look, status.newest(), revoked, self.lease) {
            Some(wait) => Verdict::NotExpired { wait },
            None => {
                Verdict::Expired(ExpiredLease { dataset: self.dataset, owner: self.owner.clone() })
            }
        })
    }
}
