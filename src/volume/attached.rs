//! A dataset as a node or `serve` exports it: opened by its owner, or, where it is a read-only
//! volume of a snapshot, read without an owner.

use super::VolumeError;
use super::entry::VolumeGuard;
use super::exported::ExportedFs;
use super::open_snapshots::RetainedBy;
use super::volumes::Volumes;
use crate::catalog::{Catalog, Dataset, Form, State};
use crate::fs::FsError;
use crate::types::{DatasetId, PoolId, SnapshotId};
use std::sync::Arc;

/// Cheap to clone.
#[derive(Clone)]
pub struct Attached {
    pub pool: PoolId,
    pub dataset: DatasetId,
    pub exported: Arc<ExportedFs>,
    /// The key that file handles are authenticated with (R7).
    pub handle_key: [u8; 16],
    /// Held while the volume is attached, so that it is not closed as unused.
    owned: Option<VolumeGuard>,
}

impl From<VolumeGuard> for Attached {
    fn from(volume: VolumeGuard) -> Self {
        Self {
            pool: volume.pool,
            dataset: volume.dataset.id(),
            exported: volume.exported.clone(),
            handle_key: volume.handle_key,
            owned: Some(volume),
        }
    }
}

impl Attached {
    /// Returns whether this process owns the dataset.
    pub fn is_owned(&self) -> bool {
        self.owned.is_some()
    }

    /// Presents the volume's files with a group (R28). Those of a snapshot stay as they are: as in
    /// any read-only mount.
    pub async fn set_mount_group(&self, gid: u32) -> Result<(), FsError> {
        match &self.owned {
            Some(volume) => volume.fs.set_mount_group(gid).await,
            None => Ok(()),
        }
    }

    /// See [`Volume::opening`](super::Volume::opening); `None`: the dataset needs no owner.
    pub fn opening(&self) -> Option<u64> {
        self.owned.as_ref().map(|volume| volume.opening)
    }
}

impl Volumes {
    /// Opens a writable volume, or reads the snapshot that a read-only one is: that needs no owner,
    /// so every node does it independently.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn attach(&self, pool: &Catalog, id: DatasetId) -> Result<Attached, VolumeError> {
        match self.open(pool, id).await {
            Err(VolumeError::ReadOnly { .. }) => self.attach_snapshot(pool, id).await,
            opened => opened.map(Attached::from),
        }
    }

    async fn attach_snapshot(
        &self,
        pool: &Catalog,
        id: DatasetId,
    ) -> Result<Attached, VolumeError> {
        let absent = || VolumeError::NotFound { what: format!("dataset {id}") };
        let dataset = pool.dataset_by_id(id).await?.ok_or_else(absent)?.record;
        let source = match (dataset.form, &dataset.state, dataset.origin) {
            (Form::Snapshot, State::Ready, Some(origin)) => origin,
            (_, State::Deleting, _) => {
                return Err(VolumeError::Deleting { dataset: dataset.name.to_string() });
            }
            _ => return Err(absent()),
        };
        let one = ExportedFs::snapshot(
            self.open_snapshots(),
            pool,
            source,
            RetainedBy::Volume(dataset.incarnation),
        )
        .await;
        let one =
            one.map_err(|source| VolumeError::Fs { dataset: dataset.name.to_string(), source })?;
        let handle_key = handle_key(pool, &dataset);
        Ok(Attached {
            pool: pool.pool().id,
            dataset: id,
            exported: Arc::new(one.limited(dataset.properties.limits)),
            handle_key,
            owned: None,
        })
    }

    /// Opens a snapshot by itself, for an export of its own. Its handles are authenticated with a
    /// key other than its dataset's.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`] when the snapshot is not ready, or is deleted.
    pub async fn export_snapshot(
        &self,
        pool: &Catalog,
        id: SnapshotId,
    ) -> Result<(Arc<ExportedFs>, [u8; 16]), VolumeError> {
        let absent = || VolumeError::NotFound { what: format!("snapshot {id}") };
        let snapshot = pool.snapshot_by_id(id).await?.ok_or_else(absent)?.record;
        let dataset = pool.dataset_by_id(snapshot.dataset).await?.ok_or_else(absent)?.record;
        let one = ExportedFs::snapshot(self.open_snapshots(), pool, id, RetainedBy::Reader).await;
        let one = one.map_err(|source| match source {
            FsError::Stale => absent(),
            source => {
                VolumeError::Fs { dataset: format!("{}@{}", dataset.name, snapshot.name), source }
            }
        })?;
        let key = pool.keyring().handle_key(snapshot.incarnation, &dataset.handle_secret);
        Ok((Arc::new(one), key))
    }
}

fn handle_key(pool: &Catalog, dataset: &Dataset) -> [u8; 16] {
    pool.keyring().handle_key(dataset.incarnation, &dataset.handle_secret)
}
