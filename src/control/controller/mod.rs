//! Volumes and snapshots of the configured pools.

mod check;
mod clone;
mod create;
mod delete;
mod ephemeral;
pub(super) mod group;
mod holds;
mod properties;
mod query;
mod release;
mod rename;
mod restore;
mod snapshot;
mod writable;

pub(super) use check::properties as check_properties;
pub(super) use create::KnownRecords;
pub(super) use delete::tombstone_dataset;
pub use ephemeral::EphemeralWatch;
pub use group::GroupInfo;
pub use properties::PropertyChanges;
pub(super) use query::within;
pub use release::ReleaseMode;
pub use writable::writable_name;

use super::collect::{Memory, RewriteThreshold};
use super::locks::{KeyedMutex, OperationLock, OperationLocks};
use super::node::Mounts;
use super::owner::{Carriers, Owners};
use super::{ControlError, Pool, Pools};
use crate::catalog::{Dataset, Form, Properties, Snapshot};
use crate::fs::FREEZE_MAX;
use crate::types::{DatasetId, DatasetName, Incarnation, PoolId, SnapshotHandle, VolumeHandle};
use crate::volume::Volumes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The source of a new volume's content.
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
    /// [`Form::Snapshot`] only of a snapshot.
    pub form: Form,
    pub parameters: BTreeMap<String, String>,
}

pub const SIZE_DEFAULT: u64 = 10 << 30;
pub const SIZE_MIN: u64 = 1 << 20;
pub const SIZE_MAX: u64 = 1 << 50;

/// Default time limit for an owner in another process.
const OWNER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most snapshots of one dataset, tombstoned ones included: each lengthens the database's manifest
/// and every collection.
pub(super) const SNAPSHOTS_MAX: usize = 500;
/// Most clones of one snapshot: each keeps a checkpoint in the source's manifest (R13).
const CLONES_MAX: usize = 250;
/// Most databases that a clone may read beside its own and its source's (R13): one that would read
/// more is detached before it is ready.
const ANCESTORS_MAX: usize = 8;

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

/// The use cases of the controller, over every configured pool. Stateless except for serialising
/// calls on one object; any number may run (R30).
pub struct Controller {
    pools: Pools,
    volumes: Volumes,
    owners: Owners,
    operations: OperationLocks,
    /// Clones of one dataset swap its manifest and its snapshot's record one after the other:
    /// concurrently they would force each other to retry (R13).
    sources: KeyedMutex<Incarnation>,
    /// Notified when an object is tombstoned.
    tombstoned: Arc<Notify>,
    /// Notified when a collection meets a report of a damaged volume.
    damage_reported: Arc<Notify>,
    /// Memory that collections of this process share.
    memory: Memory,
    threshold: RewriteThreshold,
    /// The longest that a group snapshot keeps changes waiting.
    freeze_limit: Duration,
}

impl Controller {
    /// `volumes`: those of this process, whose snapshots are made right here.
    pub fn new(pools: Pools, volumes: Volumes) -> Self {
        Self {
            pools,
            owners: Owners::new(volumes.clone(), OWNER_TIMEOUT),
            volumes,
            operations: OperationLocks::default(),
            sources: KeyedMutex::default(),
            tombstoned: Arc::default(),
            damage_reported: Arc::default(),
            memory: Memory::default(),
            threshold: RewriteThreshold::default(),
            freeze_limit: FREEZE_MAX,
        }
    }

    /// Sets the mounts of this process, whose dirty pages a snapshot shall contain.
    #[must_use]
    pub fn with_mounts(mut self, mounts: Arc<dyn Mounts>) -> Self {
        self.owners = self.owners.with_mounts(mounts);
        self
    }

    /// Sets how owners in other processes are asked.
    #[must_use]
    pub fn with_carriers(mut self, carriers: Carriers) -> Self {
        self.owners = self.owners.with_carriers(carriers);
        self
    }

    #[must_use]
    pub fn with_owner_timeout(mut self, limit: Duration) -> Self {
        self.owners = self.owners.with_timeout(limit);
        self
    }

    /// Sets the longest time, of [`FREEZE_MAX`] at most, that a group snapshot keeps changes
    /// waiting. Tests of owners that do not answer set it: it is no option of the program.
    #[must_use]
    pub fn with_freeze_limit(mut self, limit: Duration) -> Self {
        self.freeze_limit = limit;
        self
    }

    /// Sets the thresholds for rewriting packs. Tests set it, whose packs are small: it is no
    /// option of the program.
    #[must_use]
    pub fn with_rewrite_threshold(mut self, threshold: RewriteThreshold) -> Self {
        self.threshold = threshold;
        self
    }

    /// The volumes of this process.
    pub(in crate::control) fn own_volumes(&self) -> &Volumes {
        &self.volumes
    }

    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Notified after each tombstone, so that a collector need not wait for its interval.
    pub fn tombstoned(&self) -> Arc<Notify> {
        self.tombstoned.clone()
    }

    /// Notified when a collection of this process meets a report of a damaged volume.
    pub fn damage_reported(&self) -> Arc<Notify> {
        self.damage_reported.clone()
    }

    /// The pool of a handle; `None`: not one of ours.
    fn pool(&self, id: PoolId) -> Result<Option<&Pool>, ControlError> {
        self.pools.by_id(id)
    }

    fn known_pool(&self, id: PoolId, what: &str) -> Result<&Pool, ControlError> {
        self.pool(id)?.ok_or_else(|| ControlError::NotFound {
            what: format!("{what} (its pool {id} is not configured here)"),
        })
    }

    fn lock_volume(&self, id: DatasetId) -> Result<OperationLock, ControlError> {
        self.operations.try_lock(format!("volume {id}"))
    }
}

fn volume_info(pool: &Pool, dataset: Dataset) -> VolumeInfo {
    VolumeInfo { handle: VolumeHandle { pool: pool.id(), dataset: dataset.id() }, dataset }
}

fn snapshot_info(pool: &Pool, snapshot: Snapshot) -> SnapshotInfo {
    SnapshotInfo { handle: SnapshotHandle { pool: pool.id(), snapshot: snapshot.id() }, snapshot }
}
