//! Queries of volumes and snapshots, and expansion.

use super::{Controller, SIZE_MAX, SnapshotInfo, VolumeInfo, snapshot_info, volume_info};
use crate::catalog::{CatalogError, Dataset, State};
use crate::control::ControlError;
use crate::types::{SnapshotHandle, VolumeHandle};

/// Returns whether it is a volume of its own: one that a pod declares lives and goes with the pod.
fn is_listed(dataset: &Dataset) -> bool {
    dataset.state == State::Ready && !dataset.ephemeral
}

impl Controller {
    pub async fn volume(&self, volume: VolumeHandle) -> Result<VolumeInfo, ControlError> {
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pool(volume.pool)?.ok_or_else(absent)?;
        let dataset = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?.record;
        if dataset.state == State::Ready { Ok(volume_info(pool, dataset)) } else { Err(absent()) }
    }

    /// Every live volume of every pool, in a stable order.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, ControlError> {
        let mut found = Vec::new();
        for pool in self.pools.all()? {
            let datasets = pool.catalog.datasets().await?.into_iter().map(|at| at.record);
            found.extend(datasets.filter(is_listed).map(|d| volume_info(pool, d)));
        }
        Ok(found)
    }

    /// Raises the byte quota; a smaller or equal size changes nothing. Returns the quota in force.
    ///
    /// # Errors
    /// `OutOfRange` when the volume has more than `limit` bytes already.
    pub async fn expand_volume(
        &self,
        volume: VolumeHandle,
        bytes: u64,
        limit: Option<u64>,
    ) -> Result<u64, ControlError> {
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pool(volume.pool)?.ok_or_else(absent)?;
        let _lock = self.lock_volume(volume.dataset)?;
        let now = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?.record;
        if now.state != State::Ready {
            return Err(absent());
        }
        if bytes > SIZE_MAX {
            let why = format!(
                "volume {}: {bytes} bytes are more than the {SIZE_MAX} supported",
                now.name
            );
            return Err(ControlError::OutOfRange(why));
        }
        within(&now, limit)?;
        if let Some(size) = now.size.filter(|size| *size >= bytes) {
            return Ok(size);
        }
        let grown = pool
            .catalog
            .update_dataset(volume.dataset, |dataset| {
                if dataset.state != State::Ready {
                    return Err(CatalogError::NotFound {
                        what: format!("volume {}", dataset.name),
                    });
                }
                dataset.size = Some(dataset.size.map_or(bytes, |size| size.max(bytes)));
                Ok(())
            })
            .await?;
        pool.step("control.expand.recorded").await?;
        self.volumes.set_quota(&grown.record);
        within(&grown.record, limit)?;
        Ok(grown.record.size.unwrap_or(bytes))
    }

    pub async fn snapshot(&self, snapshot: SnapshotHandle) -> Result<SnapshotInfo, ControlError> {
        let absent = || ControlError::NotFound { what: format!("snapshot {snapshot}") };
        let pool = self.pool(snapshot.pool)?.ok_or_else(absent)?;
        let record =
            pool.catalog.snapshot_by_id(snapshot.snapshot).await?.ok_or_else(absent)?.record;
        if record.state == State::Ready { Ok(snapshot_info(pool, record)) } else { Err(absent()) }
    }

    /// Every live snapshot of every pool or of one volume, in a stable order. Those implied by
    /// clones are not shown.
    pub async fn snapshots(
        &self,
        of: Option<VolumeHandle>,
    ) -> Result<Vec<SnapshotInfo>, ControlError> {
        let mut found = Vec::new();
        for pool in self
            .pools
            .all()?
            .into_iter()
            .filter(|pool| of.is_none_or(|volume| volume.pool == pool.id()))
        {
            let snapshots =
                pool.catalog.snapshots(of.map(|volume| volume.dataset.incarnation)).await?;
            let live = snapshots
                .into_iter()
                .map(|at| at.record)
                .filter(|s| s.state == State::Ready && !s.implied);
            found.extend(live.map(|s| snapshot_info(pool, s)));
        }
        Ok(found)
    }

    /// Free bytes of a pool, where it can be known: only of a folder.
    pub async fn capacity(&self, pool: Option<&str>) -> Result<Option<u64>, ControlError> {
        let pool = self.pools.get(pool)?;
        let Some(folder) = pool.folder.clone() else { return Ok(None) };
        let stat = tokio::task::spawn_blocking({
            let folder = folder.clone();
            move || rustix::fs::statvfs(&folder)
        });
        match stat.await {
            Ok(Ok(stat)) => Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize))),
            Ok(Err(error)) => Err(ControlError::Unavailable(format!(
                "pool {}: free space of {}: {error}",
                pool.name,
                folder.display()
            ))),
            Err(error) => Err(ControlError::Internal(format!("pool {}: {error}", pool.name))),
        }
    }
}

/// CSI's limit_bytes: a volume never shrinks, so one that is larger cannot meet the limit.
pub(in crate::control) fn within(volume: &Dataset, limit: Option<u64>) -> Result<(), ControlError> {
    match (volume.size, limit) {
        (Some(size), Some(limit)) if size > limit => Err(ControlError::OutOfRange(format!(
            "volume {} has {size} bytes already, at most {limit} are asked for, and a volume never \
             shrinks",
            volume.name
        ))),
        _ => Ok(()),
    }
}
