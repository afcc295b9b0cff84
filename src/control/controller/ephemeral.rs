//! Inline ephemeral volumes whose node is gone: nobody unpublishes them any more.

use super::Controller;
use crate::catalog::{Dataset, State};
use crate::control::{ControlError, Pool};
use crate::types::{DatasetId, SessionId, VolumeHandle};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// A node that shows no sign of life for this long is not expected back: after a reboot, or a
/// failed upgrade of its plugin, its pods go on with the data that they had.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Time beyond a lease in which its expiry is noticed.
const LEASE_MARGIN: Duration = Duration::from_secs(15);

/// Inline volumes and the heartbeats of their owners, as this process has seen them. Its memory
/// alone counts: a process that has not watched for a day deletes nothing.
#[derive(Debug, Default)]
pub struct EphemeralWatch(HashMap<DatasetId, Seen>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// Its owner, and the number of the owner's newest heartbeat.
    owner: Option<(SessionId, Option<u64>)>,
    since: Instant,
}

impl EphemeralWatch {
    /// Returns whether nothing has changed for a day.
    fn is_abandoned(
        &mut self,
        id: DatasetId,
        owner: Option<(SessionId, Option<u64>)>,
        now: Instant,
    ) -> bool {
        let seen = self.0.entry(id).or_insert(Seen { owner, since: now });
        if seen.owner != owner {
            *seen = Seen { owner, since: now };
        }
        now.saturating_duration_since(seen.since) >= PATIENCE
    }
}

impl Controller {
    /// Deletes the inline ephemeral volumes that have shown no sign of life for a day. For calls
    /// now and then; `now` is the time of this one.
    ///
    /// # Errors
    /// The first failure, after all were tried.
    pub async fn delete_abandoned(
        &self,
        watch: &mut EphemeralWatch,
        now: Instant,
    ) -> Result<(), ControlError> {
        let mut failed = Ok(());
        let mut live = HashSet::new();
        for pool in self.pools.iter() {
            let datasets = match pool.catalog.datasets().await {
                Ok(datasets) => datasets,
                Err(error) => {
                    live.extend(watch.0.keys().copied());
                    failed = failed.and(Err(error.into()));
                    continue;
                }
            };
            for at in datasets {
                let dataset = at.record;
                if !dataset.ephemeral || dataset.state != State::Ready {
                    continue;
                }
                live.insert(dataset.id());
                let deleted = self.delete_if_abandoned(pool, &dataset, watch, now).await;
                failed = failed.and(deleted);
            }
        }
        watch.0.retain(|id, _| live.contains(id));
        failed
    }

    async fn delete_if_abandoned(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        watch: &mut EphemeralWatch,
        now: Instant,
    ) -> Result<(), ControlError> {
        let owner = match &dataset.owner {
            None => None,
            Some(owner) => {
                let status = pool.catalog.node_status(owner.session).await?;
                Some((owner.session, status.newest()))
            }
        };
        if !watch.is_abandoned(dataset.id(), owner, now) {
            return Ok(());
        }
        tracing::warn!(
            pool = pool.name,
            dataset = %dataset.name,
            node = dataset.owner.as_ref().map(|owner| owner.node.as_str()),
            "deleting an inline ephemeral volume: its node has not used it for a day"
        );
        // No caller waits: the node's lease expires first, however long it is.
        let lease = dataset.owner.as_ref().map_or(0, |owner| owner.lease_millis);
        let lease = self.volumes.lease().lease.max(Duration::from_millis(lease));
        let volume = VolumeHandle { pool: pool.id(), dataset: dataset.id() };
        self.delete_volume_within(volume, lease + LEASE_MARGIN).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Incarnation, NameKey};

    #[test]
    fn a_day_without_any_change_is_long_enough() {
        let id = DatasetId {
            key: NameKey::of("dataset", "d"),
            incarnation: Incarnation::from_bytes([1; 16]),
        };
        let (mut watch, begun) = (EphemeralWatch::default(), Instant::now());
        let owner = |heartbeat| Some((SessionId::from_bytes([1; 16]), Some(heartbeat)));
        let hours = |n: u32| begun + n * Duration::from_secs(3600);
        for (owner, hour, abandoned) in [
            (None, 0, false),
            (None, 23, false),
            (owner(1), 24, false),
            (owner(1), 47, false),
            (owner(2), 48, false),
            (owner(2), 71, false),
            (owner(2), 72, true),
            (None, 73, false),
            (None, 97, true),
        ] {
            assert_eq!(
                watch.is_abandoned(id, owner, hours(hour)),
                abandoned,
                "{hour} h, {owner:?}"
            );
        }
    }
}
