//! CreateSnapshot: write the intent, have the owner make the checkpoint, mark the record ready
//! (R3).

use super::{Controller, SNAPSHOTS_MAX, SnapshotInfo, check, snapshot_info, writable};
use crate::catalog::{CatalogError, Dataset, Snapshot, SnapshotSlot, State, Versioned};
use crate::control::owner::{Checkpointed, OwnerRequest};
use crate::control::{ControlError, Pool};
use crate::fs::db::{CheckpointId, ClosedDatabase};
use crate::types::{
    Classify, DatasetId, GroupId, Incarnation, NameKey, SNAPSHOT_SERIAL_MAX as SERIAL_MAX,
    SnapshotId, SnapshotName, Timestamp, VolumeHandle,
};
use crate::volume::{VolumeError, closed_database};

/// The scope in which a snapshot's name is unique.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NameScope {
    Dataset,
    Pool,
}

/// The answer when the snapshot exists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// The call may be a retry: it gets the existing one.
    Return,
    /// Somebody wants a snapshot of the current state.
    Refuse,
}

/// A snapshot to make.
struct Wanted {
    name: SnapshotName,
    scope: NameScope,
    existing: Existing,
    purpose: Purpose,
}

impl Wanted {
    fn named(name: SnapshotName) -> Self {
        let (scope, existing) = (NameScope::Dataset, Existing::Return);
        Self { name, scope, existing, purpose: Purpose::Named }
    }
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
        self.snapshot_of(volume, Wanted::named(name)).await
    }

    /// Makes a snapshot of a dataset whose record the caller has just read.
    ///
    /// # Errors
    /// `Exists` for an earlier one of that name, unless it is still unfinished: then this call
    /// finishes it.
    pub(in crate::control) async fn create_new_snapshot(
        &self,
        pool: &Pool,
        of: Versioned<Dataset>,
        name: SnapshotName,
    ) -> Result<SnapshotInfo, ControlError> {
        let wanted = Wanted { existing: Existing::Refuse, ..Wanted::named(name) };
        Box::pin(self.snapshot_wanted(pool, &of, wanted)).await
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
        let made = self.snapshot_of(volume, Wanted { purpose, ..Wanted::named(name) }).await?;
        Ok(made.snapshot)
    }

    /// Makes a snapshot whose name is unique in the pool, as CSI demands.
    pub async fn create_csi_snapshot(
        &self,
        volume: VolumeHandle,
        name: SnapshotName,
    ) -> Result<SnapshotInfo, ControlError> {
        let wanted = Wanted { scope: NameScope::Pool, ..Wanted::named(name) };
        self.snapshot_of(volume, wanted).await
    }

    async fn snapshot_of(
        &self,
        volume: VolumeHandle,
        wanted: Wanted,
    ) -> Result<SnapshotInfo, ControlError> {
        check::name(wanted.name.may_be_given())?;
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pool(volume.pool)?.ok_or_else(absent)?;
        let source = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?;
        Box::pin(self.snapshot_wanted(pool, &source, wanted)).await
    }

    async fn snapshot_wanted(
        &self,
        pool: &Pool,
        source: &Versioned<Dataset>,
        wanted: Wanted,
    ) -> Result<SnapshotInfo, ControlError> {
        let (dataset, name) = (&source.record, &wanted.name);
        check::name(name.may_be_given())?;
        let volume = dataset.id();
        let within = match wanted.scope {
            NameScope::Dataset => format!("volume {volume}"),
            NameScope::Pool => format!("pool {}", pool.name),
        };
        let _lock = self.operations.try_lock(format!("snapshot {name} of {within}"))?;
        match dataset.state {
            State::Ready => {}
            State::Creating => {
                return Err(VolumeError::Creating { dataset: dataset.name.to_string() }.into());
            }
            State::Deleting | State::Dead => {
                let volume = VolumeHandle { pool: pool.id(), dataset: volume };
                return Err(ControlError::NotFound { what: format!("volume {volume}") });
            }
        }
        check::has_database(dataset)?;
        let (slot, writable) = tokio::join!(
            pool.catalog.snapshot_slot(volume, name),
            writable_of_name(pool, dataset, &wanted)
        );
        let slot = slot?;
        let mut is_new = slot.record().is_none();
        let mut id = match slot.record() {
            Some(at) => match at.record.state {
                State::Ready if wanted.existing == Existing::Refuse => {
                    return Err(already_exists(dataset, name, at.record.created));
                }
                State::Ready if at.record.group.is_some() => return Err(in_group(&at.record)),
                State::Creating if at.record.group.is_some() => {
                    return Err(ControlError::InProgress {
                        what: format!("group snapshot {name}"),
                    });
                }
                State::Ready => return Ok(snapshot_info(pool, at.record.clone())),
                State::Creating => at.record.id(),
                State::Deleting | State::Dead => return Err(self.name_in_use(name)),
            },
            None => {
                is_not_writable(dataset, &wanted, writable?)?;
                new_id(dataset, name)
            }
        };
        if wanted.scope == NameScope::Pool {
            let claimed = claim_name(pool, dataset, name, id).await?;
            is_new &= claimed == id;
            id = claimed;
            pool.step("control.snapshot.claimed").await?;
        }
        let Wanted { name, purpose, .. } = wanted;
        let at = match is_new {
            // Nobody else knows this id: there is no record to look for.
            true => {
                let at = intend_at(pool, source, slot, id, name, purpose).await?;
                self.complete_snapshot(pool, dataset, at).await?
            }
            false => self.make_snapshot(pool, source, id, name, purpose).await?,
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

    /// Returns the database of a dataset that is released, so that its checkpoint needs no opening.
    /// Where it cannot be read, the opening tells why.
    ///
    /// Called after the snapshot's record is durable, which then keeps the dataset from being
    /// reaped, and what the checkpoint refers to from being collected (R3, R11): `before`, which
    /// was read earlier, may be of a dataset that was deleted since.
    async fn closed_database(&self, pool: &Pool, before: &Dataset) -> Option<ClosedDatabase> {
        if before.owner.is_some() {
            return None;
        }
        let now = pool.catalog.dataset_by_id(before.id()).await.ok().flatten()?;
        let settings = self.volumes.settings();
        closed_database(settings, &pool.catalog, &now.record).await.ok().flatten()
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
        let snapshot = id.snapshot.incarnation;
        let made = match self.closed_database(pool, dataset).await {
            Some(closed) => closed.checkpoint(&snapshot.to_string()).await?,
            None => None,
        };
        let Checkpointed { checkpoint, referenced } = match made {
            Some(CheckpointId(checkpoint)) => Checkpointed { checkpoint, referenced: None },
            None => {
                let request = OwnerRequest::Checkpoint { snapshot };
                self.owners.perform(pool, dataset, &request).await?
            }
        };
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

/// The writable snapshot of that name, where the two kinds share their names.
async fn writable_of_name(
    pool: &Pool,
    dataset: &Dataset,
    wanted: &Wanted,
) -> Result<Option<Dataset>, ControlError> {
    match wanted.scope {
        NameScope::Dataset => writable::find(pool, dataset, &wanted.name).await,
        NameScope::Pool => Ok(None),
    }
}

fn is_not_writable(
    dataset: &Dataset,
    wanted: &Wanted,
    writable: Option<Dataset>,
) -> Result<(), ControlError> {
    match writable {
        None => Ok(()),
        Some(clone) if wanted.existing == Existing::Refuse && clone.state == State::Ready => {
            Err(already_exists(dataset, &wanted.name, clone.created))
        }
        Some(_) => Err(writable::is_writable(dataset, &wanted.name)),
    }
}

fn already_exists(dataset: &Dataset, name: &SnapshotName, since: Timestamp) -> ControlError {
    ControlError::already_exists(&format!("{}@{name}", dataset.name), since)
}

/// Checks that the dataset may have one more snapshot. Their records are read only where the
/// names alone are too many: those of snapshots that are gone stay for a while.
async fn has_room(pool: &Pool, dataset: &Dataset, slot: &SnapshotSlot) -> Result<(), ControlError> {
    if slot.names() < SNAPSHOTS_MAX
        || pool.catalog.snapshots(Some(dataset.incarnation)).await?.len() < SNAPSHOTS_MAX
    {
        return Ok(());
    }
    Err(ControlError::Exhausted(format!(
        "volume {} has {SNAPSHOTS_MAX} snapshots, which is the limit: delete some first",
        dataset.name
    )))
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
    let slot = pool.catalog.snapshot_slot(source.record.id(), &name).await?;
    intend_at(pool, source, slot, id, name, purpose).await
}

async fn intend_at(
    pool: &Pool,
    source: &Versioned<Dataset>,
    slot: SnapshotSlot,
    id: SnapshotId,
    name: SnapshotName,
    purpose: Purpose,
) -> Result<Versioned<Snapshot>, ControlError> {
    let dataset = &source.record;
    has_room(pool, dataset, &slot).await?;
    let serial = next_serial(pool, source).await?;
    pool.step("control.snapshot.serial").await?;
    let (policy_slot, created) = match purpose {
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
        slot: policy_slot,
        holds: Default::default(),
        group: match purpose {
            Purpose::Group { group, .. } => Some(group),
            Purpose::Named | Purpose::Clone | Purpose::Policy { .. } => None,
        },
    };
    let what = format!("snapshot {}", snapshot.name);
    pool.step("control.snapshot.begin").await?;
    match pool.catalog.insert_snapshot_at(slot, snapshot).await {
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
