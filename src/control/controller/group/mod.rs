//! Group snapshots: snapshots of several volumes at one point in time, made and deleted together.
//!
//! ```text
//!            members' intents,
//!  creating ──── barrier ────▶ ready ───▶ members ready
//!     │                          │
//!     │ failed, or abandoned     │ deleted
//!     ▼                          ▼
//!  deleting ◀────────────────────┘
//!     └──▶ members tombstoned ──▶ record removed
//! ```
//! The record of the group decides about all of its members by one compare-and-swap: before it is
//! ready no member is, and whoever finds it ready completes them. What is not finished is
//! discarded by the next call of that name, or by the collector a day later: the swap to `deleting`
//! comes first, and makes a call that is still in progress fail at its last step.
//!
//! A crash leaves what that repairs, and frozen volumes for the rest of their time limit.

mod barrier;
mod record;

pub(super) use record::may_be_held;
pub(in crate::control) use record::{finish_groups, release_member};

use self::barrier::{Barrier, Cut, Member};
use super::snapshot::{Purpose, intend};
use super::{Controller, SnapshotInfo, check, snapshot_info};
use crate::catalog::{Dataset, GroupMember, GroupSnapshot, State, Versioned};
use crate::control::{ControlError, Pool};
use crate::types::{
    Class, Classify, DatasetId, GroupHandle, Incarnation, SnapshotHandle, SnapshotName, Timestamp,
    VolumeHandle,
};
use crate::volume::VolumeError;
use futures::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;

/// Most volumes of a group: their owners answer within the time limit of a freeze.
const MEMBERS_MAX: usize = 64;
/// Most attempts of one call, while freezes are broken.
const ATTEMPTS_MAX: u32 = 3;
/// Between two attempts, in which those who were held up go on.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct GroupInfo {
    pub handle: GroupHandle,
    /// The time that its snapshots show.
    pub created: Timestamp,
    /// In the order of their volumes' ids.
    pub snapshots: Vec<SnapshotInfo>,
    /// The longest that changes waited for it; `None`: it existed.
    pub frozen: Option<Duration>,
}

impl Controller {
    /// Makes snapshots of volumes of one pool at one point in time, or returns those that exist
    /// under this name.
    ///
    /// # Errors
    /// No snapshot of the group remains then. `InProgress` when a volume was closed, moved or lost
    /// during each of the attempts.
    pub async fn create_group_snapshot(
        &self,
        volumes: &[VolumeHandle],
        name: SnapshotName,
    ) -> Result<GroupInfo, ControlError> {
        check::name(name.may_be_given())?;
        let (pool, wanted) = self.group_of(volumes)?;
        let what = format!("group snapshot {name}");
        let _lock = self.operations.try_lock(format!("{what} of pool {}", pool.name))?;
        if let Some(at) = pool.catalog.group_snapshot(&name).await? {
            let group = at.record;
            let same = group.members.iter().map(|member| member.dataset).eq(wanted.iter().copied());
            match group.state {
                State::Creating | State::Ready if !same => {
                    let why = "it is of other volumes: choose another name, or delete it first";
                    return Err(ControlError::Exists { what, why: why.to_owned() });
                }
                State::Ready => return complete(pool, &group, None).await,
                State::Creating | State::Deleting | State::Dead => {
                    self.discard(pool, &group).await?;
                }
            }
        }
        let mut attempt = 1;
        loop {
            let error = match Box::pin(self.try_group(pool, &name, &wanted)).await {
                Ok(made) => return Ok(made),
                Err(error) => error,
            };
            if error.class() != Class::InProgress || attempt == ATTEMPTS_MAX {
                return Err(error);
            }
            tracing::info!(group = %name, attempt, %error, "group snapshot failed; trying again");
            tokio::time::sleep(ATTEMPT_PAUSE).await;
            attempt += 1;
        }
    }

    /// The pool of the volumes, and their ids in order.
    fn group_of(
        &self,
        volumes: &[VolumeHandle],
    ) -> Result<(&Pool, BTreeSet<DatasetId>), ControlError> {
        let first = volumes
            .first()
            .ok_or_else(|| ControlError::Invalid("no volume is named".to_owned()))?;
        if volumes.iter().any(|volume| volume.pool != first.pool) {
            return Err(ControlError::Invalid(
                "the volumes are in different pools: make a group snapshot for each pool"
                    .to_owned(),
            ));
        }
        let wanted: BTreeSet<DatasetId> = volumes.iter().map(|volume| volume.dataset).collect();
        if wanted.len() != volumes.len() {
            return Err(ControlError::Invalid("a volume is named twice".to_owned()));
        }
        if wanted.len() > MEMBERS_MAX {
            return Err(ControlError::Invalid(format!(
                "a group snapshot may have {MEMBERS_MAX} volumes, not {}: make several",
                wanted.len()
            )));
        }
        Ok((self.known_pool(first.pool, &format!("volume {first}"))?, wanted))
    }

    /// One attempt; when it fails, nothing of it remains.
    async fn try_group(
        &self,
        pool: &Pool,
        name: &SnapshotName,
        wanted: &BTreeSet<DatasetId>,
    ) -> Result<GroupInfo, ControlError> {
        let found = join_all(wanted.iter().map(|id| source(pool, *id))).await;
        let sources = found.into_iter().collect::<Result<Vec<_>, _>>()?;
        let member = |id: &DatasetId| GroupMember {
            dataset: *id,
            snapshot: Incarnation::random(),
            checkpoint: None,
            referenced: None,
        };
        let group = GroupSnapshot {
            name: name.clone(),
            incarnation: Incarnation::random(),
            state: State::Creating,
            created: Timestamp::now(),
            members: wanted.iter().map(member).collect(),
        };
        pool.step("control.group.begin").await?;
        let mut at = pool.catalog.insert_group_snapshot(group).await?;
        match Box::pin(self.make_ready(pool, &sources, &mut at)).await {
            Ok(frozen) => complete(pool, &at.record, Some(frozen)).await,
            Err(error) => {
                if let Err(left) = self.discard(pool, &at.record).await {
                    tracing::warn!(
                        group = %name,
                        error = %left,
                        "an unfinished group snapshot was not discarded: its next call does that, \
                         or a collection a day later"
                    );
                }
                Err(error)
            }
        }
    }

    async fn make_ready(
        &self,
        pool: &Pool,
        sources: &[Versioned<Dataset>],
        at: &mut Versioned<GroupSnapshot>,
    ) -> Result<Duration, ControlError> {
        pool.step("control.group.intent").await?;
        let (id, begun, name) = (at.record.id(), at.record.created, &at.record.name);
        let purpose = Purpose::Group { group: id, begun };
        let intents =
            sources.iter().zip(at.record.snapshots()).map(|(source, snapshot)| async move {
                self.free_name(pool, &source.record, name).await?;
                intend(pool, source, snapshot, name.clone(), purpose).await
            });
        join_all(intents).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        pool.step("control.group.intents").await?;
        let members: Vec<Member<'_>> = sources
            .iter()
            .zip(&at.record.members)
            .map(|(source, member)| Member { dataset: &source.record, snapshot: member.snapshot })
            .collect();
        let (owners, limit) = (&self.owners, self.freeze_limit);
        let barrier = Barrier { owners, pool, members: &members, limit };
        let Cut { at: created, checkpoints, frozen } = Box::pin(barrier.cut()).await?;
        let mut ready = GroupSnapshot { state: State::Ready, created, ..at.record.clone() };
        for (member, made) in ready.members.iter_mut().zip(checkpoints) {
            (member.checkpoint, member.referenced) = (Some(made.checkpoint), made.referenced);
        }
        pool.catalog.swap_group_snapshot(at, ready).await?;
        pool.step("control.group.ready").await?;
        Ok(frozen)
    }

    /// Checks that a dataset has no snapshot of the group's name. The rest of an earlier group
    /// snapshot that nobody finished goes.
    async fn free_name(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        name: &SnapshotName,
    ) -> Result<(), ControlError> {
        let Some(there) = pool.catalog.snapshot(dataset.id(), name).await? else { return Ok(()) };
        match (&there.record.state, &there.record.group) {
            (State::Deleting | State::Dead, _) => Err(self.name_in_use(name)),
            (State::Creating, Some(group)) => {
                // The group may be that of another controller, whose call has overtaken this one.
                if pool.catalog.group_snapshot_by_id(*group).await?.is_some() {
                    return Err(ControlError::InProgress {
                        what: format!("group snapshot {name}"),
                    });
                }
                self.tombstone_snapshot(pool, there.record.id()).await?;
                self.collector(pool).reap_snapshot(there.record.id()).await.map(drop)
            }
            (State::Creating | State::Ready, _) => Err(ControlError::Exists {
                what: format!("snapshot {name} of volume {}", dataset.name),
                why: "it is not part of this group: choose another name for the group".to_owned(),
            }),
        }
    }

    /// Removes a group snapshot that is not ready, with its snapshots.
    async fn discard(&self, pool: &Pool, group: &GroupSnapshot) -> Result<(), ControlError> {
        pool.step("control.group.discard").await?;
        if !record::abandon(pool, group.id()).await? {
            return Ok(());
        }
        record::tombstone_members(pool, group).await?;
        let collector = self.collector(pool);
        for snapshot in group.snapshots() {
            // Others may still depend on a group that was ready.
            Box::pin(collector.reap_snapshot(snapshot)).await?;
        }
        record::remove(pool, group.id()).await
    }

    /// Absent counts as deleted. `named`: the snapshots that the caller takes for its members;
    /// `None`: it does not say.
    ///
    /// # Errors
    /// [`ControlError::Precondition`] while somebody holds one of the snapshots, and
    /// [`ControlError::Invalid`] when `named` are others.
    pub async fn delete_group_snapshot(
        &self,
        group: GroupHandle,
        named: Option<&[SnapshotHandle]>,
    ) -> Result<(), ControlError> {
        let pool = self.pool_to_delete_from(group.pool)?;
        let _lock = self.operations.try_lock(format!("group snapshot {}", group.group))?;
        let Some(at) = pool.catalog.group_snapshot_by_id(group.group).await? else {
            return Ok(());
        };
        same_members(pool, &at.record, named)?;
        record::tombstone(pool, group.group).await?;
        // Whoever holds a member from here on finds the group being deleted, and lets go.
        if at.record.state == State::Ready
            && let Err(held) = record::are_not_held(pool, &at.record).await
        {
            record::revive(pool, group.group).await?;
            return Err(held);
        }
        record::tombstone_members(pool, &at.record).await?;
        record::remove(pool, group.group).await?;
        self.tombstoned.notify_one();
        Ok(())
    }

    /// # Errors
    /// [`ControlError::NotFound`] when it does not exist, or not completely, and
    /// [`ControlError::Invalid`] when `named`, if given, are not its snapshots.
    pub async fn group_snapshot(
        &self,
        group: GroupHandle,
        named: Option<&[SnapshotHandle]>,
    ) -> Result<GroupInfo, ControlError> {
        let absent = || ControlError::NotFound { what: format!("group snapshot {group}") };
        let pool = self.pool(group.pool)?.ok_or_else(absent)?;
        let at = pool.catalog.group_snapshot_by_id(group.group).await?.ok_or_else(absent)?;
        same_members(pool, &at.record, named)?;
        match at.record.state {
            State::Ready => complete(pool, &at.record, None).await,
            State::Creating | State::Deleting | State::Dead => Err(absent()),
        }
    }
}

fn same_members(
    pool: &Pool,
    group: &GroupSnapshot,
    named: Option<&[SnapshotHandle]>,
) -> Result<(), ControlError> {
    let Some(named) = named else { return Ok(()) };
    let of_group = |snapshot| SnapshotHandle { pool: pool.id(), snapshot }.to_string();
    let members: BTreeSet<String> = group.snapshots().map(of_group).collect();
    let named: BTreeSet<String> = named.iter().map(ToString::to_string).collect();
    if named == members {
        return Ok(());
    }
    Err(ControlError::Invalid(format!(
        "the snapshots named are not those of group snapshot {}, which are {}",
        group.name,
        members.into_iter().collect::<Vec<_>>().join(", ")
    )))
}

async fn source(pool: &Pool, id: DatasetId) -> Result<Versioned<Dataset>, ControlError> {
    let absent = || ControlError::NotFound { what: format!("volume {id}") };
    let source = pool.catalog.dataset_by_id(id).await?.ok_or_else(absent)?;
    match source.record.state {
        State::Ready => {}
        State::Creating => {
            return Err(VolumeError::Creating { dataset: source.record.name.to_string() }.into());
        }
        State::Deleting | State::Dead => return Err(absent()),
    }
    check::has_database(&source.record)?;
    Ok(source)
}

/// The answer about a group snapshot that is ready: its members become so.
async fn complete(
    pool: &Pool,
    group: &GroupSnapshot,
    frozen: Option<Duration>,
) -> Result<GroupInfo, ControlError> {
    let members = record::complete_members(pool, group).await?;
    Ok(GroupInfo {
        handle: GroupHandle { pool: pool.id(), group: group.id() },
        created: group.created,
        snapshots: members.into_iter().map(|snapshot| snapshot_info(pool, snapshot)).collect(),
        frozen,
    })
}
