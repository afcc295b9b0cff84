//! What one that wants a dataset can tell of its owner, without asking it and without believing any clock but its own.

use super::{Clock, LeaseSettings};
use crate::catalog::{Catalog, CatalogError, Owner};
use crate::types::DatasetId;
use std::sync::Arc;
use std::time::Duration;

/// The finding that an owner must have stopped. Only a [`Watch`] makes one. It is of one owner in one time of its tenure: an
/// owner that came back since has changed its record, and is not meant.
#[derive(Clone, Debug)]
pub struct Forfeit {
    dataset: DatasetId,
    owner: Owner,
}

impl Forfeit {
    pub(in crate::volume) fn covers(&self, dataset: DatasetId, owner: &Owner) -> bool {
        self.dataset == dataset && self.owner.session == owner.session && self.owner.regained == owner.regained
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }
}

/// What a look found.
#[derive(Clone, Debug)]
pub enum Verdict {
    Forfeited(Forfeit),
    /// It may be alive: a look after `wait`, if nothing changes, will tell.
    MayLive {
        wait: Duration,
    },
}

/// See the module's text. Begun after the record was read.
pub struct Watch {
    catalog: Catalog,
    dataset: DatasetId,
    owner: Owner,
    clock: Arc<dyn Clock>,
    /// The owner's, or this process's own if that is longer: an owner from before leases says none.
    lease: Duration,
    /// The newest heartbeat, and when it was first known to be it.
    seen: Option<(Option<u64>, Duration)>,
    /// When the grant was first known to be there.
    granted: Option<Duration>,
    alive: bool,
}

impl Watch {
    /// `owner`: as the dataset's record says.
    pub fn new(catalog: &Catalog, dataset: DatasetId, owner: &Owner, settings: &LeaseSettings) -> Self {
        let (catalog, owner, clock) = (catalog.clone(), owner.clone(), settings.clock.clone());
        let lease = settings.lease.max(Duration::from_millis(owner.lease_millis));
        Self { catalog, dataset, owner, clock, lease, seen: None, granted: None, alive: false }
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether the watch is of this owner, in the same time of its tenure.
    pub fn is_of(&self, owner: &Owner) -> bool {
        self.owner.session == owner.session && self.owner.regained == owner.regained
    }

    /// Whether the last change of its heartbeats came while this watched.
    pub fn has_seen_life(&self) -> bool {
        self.alive
    }

    /// Looks at the owner's signs.
    pub async fn look(&mut self) -> Result<Verdict, CatalogError> {
        // A look counts from when it was sent for what it finds unchanged, and from when it came back for what it finds new.
        let sent = self.clock.now();
        let signs = self.catalog.node_signs(self.owner.session).await?;
        let granted = self.granted.is_some()
            || signs.grants.contains(&self.dataset) && self.catalog.grant(self.owner.session, self.dataset).await?.is_some();
        let back = self.clock.now();
        if granted {
            self.granted.get_or_insert(back);
        }
        if !matches!(self.seen, Some((newest, _)) if newest == signs.newest()) {
            self.alive = self.seen.is_some();
            self.seen = Some((signs.newest(), back));
        }
        let since = [self.seen.map(|(_, since)| since), self.granted].into_iter().flatten().min().unwrap_or(back);
        let unchanged = sent.saturating_sub(since);
        if unchanged >= self.lease {
            return Ok(Verdict::Forfeited(Forfeit { dataset: self.dataset, owner: self.owner.clone() }));
        }
        Ok(Verdict::MayLive { wait: self.lease - unchanged })
    }
}
