//! CreateSnapshot: write the intent, have the owner make the checkpoint, mark the record ready
//! (R3).

use super::{Controller, SNAPSHOTS_MAX, SnapshotInfo, check, snapshot_info};
use crate::catalog::{CatalogError, Dataset, Snapshot, State, Versioned};
use crate::control::owner::{Checkpointed, OwnerRequest};
use crate::control::{ControlError, Pool};
use crate::types::{
    Classify, DatasetId, GroupId, Incarnation, NameKey, SNAPSHOT_SERIAL_MAX as SERIAL_MAX,
    SnapshotId, SnapshotName, Timestamp, VolumeHandle,
};
use crate::volume::VolumeError;

/// The scope in which a snapshot's name is unique.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NameScope {
    Dataset,
    Pool,
}

/// The reason why a snapshot is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A caller requested it by name.
    Named,
    /// A clone of the live dataset starts from it, and nothing else.
    Clone,
    /// The dataset's policy makes it for a slot, at this time of the policy's clock.
    Policy { slot: Timestamp, now: Timestamp },
    /// The snapshot is part of a group snapshot that was begun at this time.
    Group { group: GroupId, begun: Timestamp },
}

impl Controller {
    /// Makes a snapshot whose name is unique in its dataset, or returns the existing one.
    pub async fn create_snapshot(
        &self,
        volume: VolumeHandle,
        name: SnapshotName,
    ) -> Result<SnapshotInfo, ControlError> {
        self.snapshot_named(volume, name, NameScope::Dataset, Purpose::Named).await
    }

    /// Makes the snapshot of a slot of the dataset's policy, or returns the existing one.
    pub(in crate::control) async fn create_policy_snapshot(
        &self,
        volume: VolumeHandle,
        name: SnapshotName,
        slot: Timestamp,
        now: Timestamp,
    ) -> Result<Snapshot, ControlError> {
        let purpose = Purpose::Policy { slot, now };
        let made = self.snapshot_named(volume, name, NameScope::Dataset, purpose).await?;
        Ok(made.snapshot)
    }

    /// Makes a snapshot whose name is unique in the pool, as CSI demands.
    pub async fn create_csi_snapshot(
        &self,
        volume: VolumeHandle,
        name: SnapshotName,
    ) -> Result<SnapshotInfo, ControlError> {
        self.snapshot_named(volume, name, NameScope::Pool, Purpose::Named).await
    }

    async fn snapshot_named(
        &self,
        volume: VolumeHandle,
        name: SnapshotName,
        scope: NameScope,
        purpose: Purpose,
    ) -> Result<SnapshotInfo, ControlError> {
        check::name(name.may_be_given())?;
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pool(volume.pool)?.ok_or_else(absent)?;
        let within = match scope {
            NameScope::Dataset => format!("volume {}", volume.dataset),
            NameScope::Pool => format!("pool {}", pool.name),
        };
        let _lock = self.operations.try_lock(format!("snapshot {name} of {within}"))?;
        let source = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?;
        let dataset = &source.record;
        match dataset.state {
            State::Ready => {}
            State::Creating => {
                return Err(VolumeError::Creating { dataset: dataset.name.to_string() }.into());
            }
            State::Deleting | State::Dead => return Err(absent()),
        }
        check::has_database(dataset)?;
        let found = pool.catalog.snapshot(dataset.id(), &name).await?;
        let mut is_new = found.is_none();
        let mut id = match found {
            Some(at) => match at.record.state {
                State::Ready if at.record.group.is_some() => return Err(in_group(&at.record)),
                State::Creating if at.record.group.is_some() => {
                    return Err(ControlError::InProgress {
                        what: format!("group snapshot {name}"),
                    });
                }
                State::Ready => return Ok(snapshot_info(pool, at.record)),
                State::Creating => at.record.id(),
                State::Deleting | State::Dead => return Err(self.name_in_use(&name)),
            },
            None if scope == NameScope::Pool => new_id(dataset, &name),
            None => {
                self.is_free_of_writable(pool, dataset, &name).await?;
                new_id(dataset, &name)
            }
        };
        if scope == NameScope::Pool {
            let claimed = claim_name(pool, dataset, &name, id).await?;
            is_new &= claimed == id;
            id = claimed;
            pool.step("control.snapshot.claimed").await?;
        }
        let at = match is_new {
            // Nobody else knows this id: there is no record to look for.
            true => {
                let at = intend(pool, &source, id, name, purpose).await?;
                self.complete_snapshot(pool, dataset, at).await?
            }
            false => self.make_snapshot(pool, &source, id, name, purpose).await?,
        };
        Ok(snapshot_info(pool, at.record))
    }

    /// Completes a snapshot from wherever an earlier attempt left it.
    pub(super) async fn make_snapshot(
        &self,
        pool: &Pool,
        source: &Versioned<Dataset>,
        id: SnapshotId,
        name: SnapshotName,
        purpose: Purpose,
    ) -> Result<Versioned<Snapshot>, ControlError> {
        let at = match pool.catalog.snapshot_by_id(id).await? {
            Some(at) => at,
            None => intend(pool, source, id, name, purpose).await?,
        };
        self.complete_snapshot(pool, &source.record, at).await
    }

    async fn complete_snapshot(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        mut at: Versioned<Snapshot>,
    ) -> Result<Versioned<Snapshot>, ControlError> {
        let id = at.record.id();
        match at.record.state {
            State::Creating => {}
            State::Ready => return Ok(at),
            // Its name may still be reserved for it; the collector frees it.
            State::Deleting | State::Dead => return Err(self.name_in_use(&at.record.name)),
        }
        let request = OwnerRequest::Checkpoint { snapshot: id.snapshot.incarnation };
        let Checkpointed { checkpoint, referenced } =
            self.owners.perform(pool, dataset, &request).await?;
        pool.step("control.snapshot.checkpoint").await?;
        let ready = Snapshot {
            state: State::Ready,
            checkpoint: Some(checkpoint),
            referenced,
            ..at.record.clone()
        };
        pool.catalog.swap_snapshot(&mut at, ready).await?;
        pool.step("control.snapshot.ready").await?;
        Ok(at)
    }

    /// The name is free once the earlier one is gone.
    pub(super) fn name_in_use(&self, name: &SnapshotName) -> ControlError {
        self.tombstoned.notify_one();
        let why = "clones may still depend on it: delete those, retry after a collection, or \
            choose another name";
        ControlError::NameInUse { what: format!("snapshot {name}"), why }
    }
}

fn new_id(dataset: &Dataset, name: &SnapshotName) -> SnapshotId {
    let snapshot = DatasetId {
        key: NameKey::of("snapshot", name.as_str()),
        incarnation: Incarnation::random(),
    };
    SnapshotId { dataset: dataset.incarnation, snapshot }
}

fn in_group(snapshot: &Snapshot) -> ControlError {
    let what = format!("snapshot {}", snapshot.name);
    let why = "it is part of the group snapshot of that name: choose another name";
    ControlError::Exists { what, why: why.to_owned() }
}

/// The id under which the CSI name is reserved: ours, or that of an earlier attempt for the same
/// volume, which is adopted.
async fn claim_name(
    pool: &Pool,
    dataset: &Dataset,
    name: &SnapshotName,
    id: SnapshotId,
) -> Result<SnapshotId, ControlError> {
    let holder = pool.catalog.claim_csi_snapshot_name(name.as_str(), id).await?;
    if holder.dataset != dataset.incarnation {
        let why = "it is of another volume".to_owned();
        return Err(ControlError::Exists { what: format!("snapshot {name}"), why });
    }
    Ok(holder)
}

/// Takes a serial that no snapshot of the dataset ever had. An unused one is lost.
async fn next_serial(pool: &Pool, source: &Versioned<Dataset>) -> Result<u32, ControlError> {
    let mut full = false;
    let counted = pool
        .catalog
        .update_dataset_from(source, |dataset| {
            let what = format!("volume {}", dataset.name);
            if dataset.state != State::Ready {
                return Err(CatalogError::NotFound { what });
            }
            full = dataset.snapshot_serial >= SERIAL_MAX;
            if full {
                return Err(CatalogError::Precondition {
                    what,
                    why: "its serials are used up".into(),
                });
            }
            dataset.snapshot_serial += 1;
            Ok(())
        })
        .await;
    match counted {
        Ok(at) => Ok(at.record.snapshot_serial),
        Err(_) if full => {
            let name = &source.record.name;
            Err(ControlError::Exhausted(format!(
                "volume {name} has had {SERIAL_MAX} snapshots, which is the limit: clone it, and \
                 use the clone"
            )))
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn intend(
    pool: &Pool,
    source: &Versioned<Dataset>,
    id: SnapshotId,
    name: SnapshotName,
    purpose: Purpose,
) -> Result<Versioned<Snapshot>, ControlError> {
    let dataset = &source.record;
    let others = pool.catalog.snapshots(Some(dataset.incarnation)).await?;
    if others.len() >= SNAPSHOTS_MAX {
        return Err(ControlError::Exhausted(format!(
            "volume {} has {SNAPSHOTS_MAX} snapshots, which is the limit: delete some first",
            dataset.name
        )));
    }
    let serial = next_serial(pool, source).await?;
    pool.step("control.snapshot.serial").await?;
    let (slot, created) = match purpose {
        Purpose::Policy { slot, now } => (Some(slot), now),
        Purpose::Group { begun, .. } => (None, begun),
        Purpose::Named | Purpose::Clone => (None, Timestamp::now()),
    };
    let snapshot = Snapshot {
        name,
        incarnation: id.snapshot.incarnation,
        dataset: dataset.id(),
        family: dataset.family,
        state: State::Creating,
        created,
        checkpoint: None,
        size: dataset.size,
        referenced: None,
        properties: dataset.properties.clone(),
        dependants: vec![],
        serial,
        implied: purpose == Purpose::Clone,
        slot,
        holds: Default::default(),
        group: match purpose {
            Purpose::Group { group, .. } => Some(group),
            Purpose::Named | Purpose::Clone | Purpose::Policy { .. } => None,
        },
    };
    let what = format!("snapshot {}", snapshot.name);
    pool.step("control.snapshot.begin").await?;
    match pool.catalog.insert_snapshot(snapshot).await {
        Ok(at) => {
            pool.step("control.snapshot.intent").await?;
            Ok(at)
        }
        Err(CatalogError::Exists { .. }) => Err(ControlError::InProgress { what }),
        Err(error) => {
            tracing::debug!(%what, class = ?error.class(), %error, "the intent was not written");
            Err(error.into())
        }
    }
}
