//! Volumes and snapshots of the configured pools.

use super::ControlError;
use crate::catalog::{Dataset, Properties, Snapshot};
use crate::types::{DatasetName, SnapshotHandle, SnapshotName, VolumeHandle};
use std::collections::BTreeMap;

/// Where a new volume's content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Snapshot(SnapshotHandle),
    Volume(VolumeHandle),
}

#[derive(Clone, Debug)]
pub struct NewVolume {
    pub name: DatasetName,
    /// Byte quota; `None`: the default of [`SIZE_DEFAULT`], or the source's.
    pub size: Option<u64>,
    /// The largest size acceptable to the caller (CSI's limit_bytes).
    pub size_limit: Option<u64>,
    pub source: Option<Source>,
    pub properties: Properties,
    pub access_modes: Vec<String>,
    pub parameters: BTreeMap<String, String>,
}

pub const SIZE_DEFAULT: u64 = 10 << 30;
pub const SIZE_MIN: u64 = 1 << 20;
pub const SIZE_MAX: u64 = 1 << 50;

#[derive(Clone, Debug)]
pub struct VolumeInfo {
    pub handle: VolumeHandle,
    pub dataset: Dataset,
}

#[derive(Clone, Debug)]
pub struct SnapshotInfo {
    pub handle: SnapshotHandle,
    pub snapshot: Snapshot,
}

/// The use cases of the controller, over every configured pool. Stateless but for serialising calls on one object; any number may run (R30).
pub struct Controller {}

impl Controller {
    /// Creates, or answers the existing volume when it is the same (R30). `pool`: its configured name; `None`: the only or default one.
    pub async fn create_volume(&self, _pool: Option<&str>, _new: NewVolume) -> Result<VolumeInfo, ControlError> {
        todo!()
    }

    /// Absent counts as deleted.
    pub async fn delete_volume(&self, _volume: VolumeHandle) -> Result<(), ControlError> {
        todo!()
    }

    pub async fn volume(&self, _volume: VolumeHandle) -> Result<VolumeInfo, ControlError> {
        todo!()
    }

    /// Every live volume of every pool, in a stable order.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>, ControlError> {
        todo!()
    }

    /// Raises the byte quota; a smaller or equal size changes nothing. Answers the quota in force.
    pub async fn expand_volume(&self, _volume: VolumeHandle, _bytes: u64) -> Result<u64, ControlError> {
        todo!()
    }

    /// `csi_name`: the name is unique in the pool, as CSI demands; otherwise only in the dataset.
    pub async fn create_snapshot(
        &self,
        _volume: VolumeHandle,
        _name: SnapshotName,
        _csi_name: bool,
    ) -> Result<SnapshotInfo, ControlError> {
        todo!()
    }

    /// Absent counts as deleted.
    pub async fn delete_snapshot(&self, _snapshot: SnapshotHandle) -> Result<(), ControlError> {
        todo!()
    }

    pub async fn snapshot(&self, _snapshot: SnapshotHandle) -> Result<SnapshotInfo, ControlError> {
        todo!()
    }

    /// Every live snapshot of every pool or of one volume, in a stable order.
    pub async fn snapshots(&self, _of: Option<VolumeHandle>) -> Result<Vec<SnapshotInfo>, ControlError> {
        todo!()
    }

    /// Free bytes of a pool, where it can be known: only of a folder.
    pub async fn capacity(&self, _pool: Option<&str>) -> Result<Option<u64>, ControlError> {
        todo!()
    }
}
