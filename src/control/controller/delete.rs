//! DeleteVolume and DeleteSnapshot: a tombstone, answered at once. The collector does the rest when
//! nothing depends (R14).

use super::Controller;
use crate::catalog::{CatalogError, Dataset, Owner, Snapshot, State};
use crate::control::{Collector, ControlError, Pool};
use crate::types::{ClaimId, DatasetId, GroupId, SnapshotHandle, SnapshotId, VolumeHandle};
use crate::volume::is_maintenance;
use std::time::Duration;

/// Time that DeleteVolume waits for the lease of a silent node: within the minute of
/// csi-provisioner's call.
const DELETE_PATIENCE: Duration = Duration::from_secs(50);

impl Controller {
    /// Absent counts as deleted. A volume of a dead node is taken from it first.
    ///
    /// # Errors
    /// [`ControlError::Precondition`] while a node has the volume open.
    pub async fn delete_volume(&self, volume: VolumeHandle) -> Result<(), ControlError> {
        self.delete_volume_within(volume, DELETE_PATIENCE).await
    }

    /// [`Self::delete_volume`], which waits for the lease of a silent node for this long.
    pub(super) async fn delete_volume_within(
        &self,
        volume: VolumeHandle,
        patience: Duration,
    ) -> Result<(), ControlError> {
        let pool = self.pool_to_delete_from(volume.pool)?;
        let _lock = self.lock_volume(volume.dataset)?;
        if let Some((dataset, owner)) = tombstone_dataset(pool, volume.dataset).await? {
            let released = self.delete_from_dead(pool, &dataset, &owner, patience).await?;
            let still = if released {
                tombstone_dataset(pool, volume.dataset).await?
            } else {
                Some((dataset, owner))
            };
            if let Some((dataset, owner)) = still {
                let (name, node) = (&dataset.name, &owner.node);
                let why = format!(
                    "volume {name} is open on node {node}: unmount it there (`serve` closes it \
                     some minutes later, or when it stops), then retry; or revoke that node's \
                     claim with `zerofs-csi dataset release {name} --force`"
                );
                return Err(ControlError::Precondition(why));
            }
        }
        pool.step("control.delete.tombstone").await?;
        self.tombstoned.notify_one();
        Ok(())
    }

    /// Absent counts as deleted. Clones made from it retain its data, not its name.
    ///
    /// # Errors
    /// [`ControlError::Precondition`] while somebody holds it, or the group snapshot that it is
    /// part of exists.
    pub async fn delete_snapshot(&self, snapshot: SnapshotHandle) -> Result<(), ControlError> {
        let pool = self.pool_to_delete_from(snapshot.pool)?;
        let id = snapshot.snapshot;
        let _lock = self.operations.try_lock(format!("snapshot {id}"))?;
        let mut group = None;
        let alone = |snapshot: &Snapshot| {
            group = snapshot.group;
            match snapshot.group {
                None => is_not_held(snapshot),
                Some(group) => Err(part_of(snapshot, group)),
            }
        };
        let deleted = self.tombstone_snapshot_if(pool, id, alone).await;
        let Some(group) = group else { return deleted };
        match pool.catalog.group_snapshot_by_id(group).await? {
            Some(at) if matches!(at.record.state, State::Creating | State::Ready) => deleted,
            // The rest of a group snapshot that was deleted.
            _ => self.tombstone_snapshot(pool, id).await,
        }
    }

    pub(super) async fn tombstone_snapshot(
        &self,
        pool: &Pool,
        id: SnapshotId,
    ) -> Result<(), ControlError> {
        self.tombstone_snapshot_if(pool, id, is_not_held).await
    }

    /// Deletes a snapshot that a policy made, unless somebody needs it by now.
    ///
    /// # Errors
    /// [`ControlError::Catalog`] of class `Precondition` when it must stay.
    pub(in crate::control) async fn expire_snapshot(
        &self,
        pool: &Pool,
        id: SnapshotId,
        stays: impl Fn(&Snapshot) -> Option<String> + Send + Sync,
    ) -> Result<(), ControlError> {
        let allowed = |snapshot: &Snapshot| match stays(snapshot) {
            None => Ok(()),
            Some(why) => {
                let what = format!("snapshot {}", snapshot.name);
                Err(CatalogError::Precondition { what, why })
            }
        };
        self.tombstone_snapshot_if(pool, id, allowed).await
    }

    async fn tombstone_snapshot_if(
        &self,
        pool: &Pool,
        id: SnapshotId,
        mut allowed: impl FnMut(&Snapshot) -> Result<(), CatalogError> + Send,
    ) -> Result<(), ControlError> {
        let changed = pool
            .catalog
            .update_snapshot(id, |snapshot| {
                if matches!(snapshot.state, State::Ready | State::Creating) {
                    allowed(snapshot)?;
                    snapshot.state = State::Deleting;
                }
                Ok(())
            })
            .await;
        match changed {
            Ok(at) => {
                pool.step("control.snapshot-delete.tombstone").await?;
                pool.catalog.release_csi_snapshot_name(at.record.name.as_str(), id).await?;
            }
            Err(CatalogError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.tombstoned.notify_one();
        Ok(())
    }

    /// A pool that is not configured here may well exist: answering "deleted" would leak its data.
    pub(super) fn pool_to_delete_from(
        &self,
        id: crate::types::PoolId,
    ) -> Result<&Pool, ControlError> {
        self.pool(id)?.ok_or_else(|| {
            ControlError::Precondition(format!(
                "pool {id} is not configured here: configure it, then retry the deletion"
            ))
        })
    }

    /// The collector of one of this controller's pools.
    pub fn collector(&self, pool: &Pool) -> Collector {
        Collector::new(
            pool.clone(),
            self.volumes.clone(),
            self.owners.clone(),
            self.memory.clone(),
            self.threshold,
            self.damage_reported.clone(),
        )
    }
}

/// Tombstones a dataset. Returns the owner that has it open, if there is one.
pub(in crate::control) async fn tombstone_dataset(
    pool: &Pool,
    id: DatasetId,
) -> Result<Option<(Dataset, Owner)>, ControlError> {
    let mut open = None;
    let changed = pool
        .catalog
        .update_dataset(id, |dataset| {
            open = dataset
                .owner
                .clone()
                .filter(|owner| !is_maintenance(owner))
                .map(|owner| (dataset.clone(), owner));
            if open.is_some() {
                return Err(CatalogError::Precondition {
                    what: format!("volume {}", dataset.name),
                    why: "it is open".into(),
                });
            }
            if matches!(dataset.state, State::Ready | State::Creating) {
                dataset.state = State::Deleting;
            }
            Ok(())
        })
        .await;
    match (changed, open) {
        (Ok(_), _) | (Err(CatalogError::NotFound { .. }), _) => Ok(None),
        (Err(_), Some(open)) => Ok(Some(open)),
        (Err(error), None) => Err(error.into()),
    }
}

/// Tombstones a dataset whose owner has stopped, unless its record names another claim by now.
///
/// Its database is not opened, which may be damaged. That a dataset is deleted makes its owner's
/// journal void (R34), in the version of the record that takes the owner away: nobody opens it
/// again. The collector fences the database before it removes it.
pub(super) async fn tombstone_lost(
    pool: &Pool,
    id: DatasetId,
    claim: ClaimId,
) -> Result<(), ControlError> {
    let lost = pool.catalog.update_dataset(id, |dataset| {
        let is_ready = matches!(dataset.state, State::Ready | State::Creating);
        if is_ready && dataset.owner.as_ref().is_some_and(|owner| owner.claim == claim) {
            (dataset.owner, dataset.state) = (None, State::Deleting);
        }
        Ok(())
    });
    match lost.await {
        Ok(_) | Err(CatalogError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn part_of(snapshot: &Snapshot, group: GroupId) -> CatalogError {
    let (what, name) = (format!("snapshot {}", snapshot.name), &snapshot.name);
    let why = format!(
        "it is part of group snapshot {name} ({group}), which has to stay whole: delete that \
         instead (in Kubernetes the VolumeGroupSnapshot, elsewhere `zerofs-csi dataset \
         delete-group {name}`)"
    );
    CatalogError::Precondition { what, why }
}

pub(super) fn is_not_held(snapshot: &Snapshot) -> Result<(), CatalogError> {
    if snapshot.holds.is_empty() {
        return Ok(());
    }
    let tags: Vec<&str> = snapshot.holds.iter().map(String::as_str).collect();
    let (what, tags) = (format!("snapshot {}", snapshot.name), tags.join(", "));
    let why = format!(
        "it is held ({tags}): release each hold with `zerofs-csi dataset snapshot unhold`, then \
         delete it"
    );
    Err(CatalogError::Precondition { what, why })
}
