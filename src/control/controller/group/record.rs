//! The record of a group snapshot and those of its members, for calls and for the collector.

use super::super::delete::is_not_held;
use crate::catalog::{CatalogError, GroupMember, GroupSnapshot, Snapshot, State};
use crate::control::{ControlError, Pool};
use crate::types::{Class, Classify, GroupId, SnapshotId, Timestamp};

/// Makes the members of a ready group ready.
pub(super) async fn complete_members(
    pool: &Pool,
    group: &GroupSnapshot,
) -> Result<Vec<Snapshot>, ControlError> {
    let mut members = Vec::new();
    for (member, id) in group.members.iter().zip(group.snapshots()) {
        members.push(complete_member(pool, group, member, id).await?);
    }
    Ok(members)
}

async fn complete_member(
    pool: &Pool,
    group: &GroupSnapshot,
    member: &GroupMember,
    id: SnapshotId,
) -> Result<Snapshot, ControlError> {
    let lost = || CatalogError::Precondition {
        what: format!("group snapshot {}", group.name),
        why: format!("its snapshot {id} was deleted: delete the group snapshot too"),
    };
    let mut completed = false;
    let made = pool.catalog.update_snapshot(id, |snapshot| match snapshot.state {
        State::Ready => Ok(()),
        State::Deleting | State::Dead => Err(lost()),
        State::Creating => {
            completed = true;
            snapshot.state = State::Ready;
            snapshot.created = group.created;
            (snapshot.checkpoint, snapshot.referenced) = (member.checkpoint, member.referenced);
            Ok(())
        }
    });
    let made = match made.await {
        Err(CatalogError::NotFound { .. }) => return Err(lost().into()),
        made => made?,
    };
    if completed {
        pool.step("control.group.member").await?;
    }
    Ok(made.record)
}

/// Begins the deletion of a group that is not ready; `false`: it is ready, or gone.
pub(super) async fn abandon(pool: &Pool, id: GroupId) -> Result<bool, ControlError> {
    begin_deletion(pool, id, |state| *state != State::Ready).await
}

/// Begins the deletion of a group, whatever its state.
pub(super) async fn tombstone(pool: &Pool, id: GroupId) -> Result<bool, ControlError> {
    begin_deletion(pool, id, |_| true).await
}

async fn begin_deletion(
    pool: &Pool,
    id: GroupId,
    allowed: impl Fn(&State) -> bool + Send + Sync,
) -> Result<bool, ControlError> {
    let mut stays = false;
    let changed = pool.catalog.update_group_snapshot(id, |group| {
        stays = !allowed(&group.state);
        if stays {
            let what = format!("group snapshot {}", group.name);
            return Err(CatalogError::Precondition { what, why: "it is ready".to_owned() });
        }
        group.state = State::Deleting;
        Ok(())
    });
    match changed.await {
        Ok(_) => {}
        Err(_) if stays => return Ok(false),
        Err(CatalogError::NotFound { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    pool.step("control.group.tombstone").await?;
    Ok(true)
}

/// Takes back the deletion of a group that was ready, of which no member is a tombstone.
pub(super) async fn revive(pool: &Pool, id: GroupId) -> Result<(), ControlError> {
    let revived = pool.catalog.update_group_snapshot(id, |group| {
        if group.state == State::Deleting {
            group.state = State::Ready;
        }
        Ok(())
    });
    match revived.await {
        Ok(_) | Err(CatalogError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// # Errors
/// `Precondition` when somebody holds a member.
pub(super) async fn are_not_held(pool: &Pool, group: &GroupSnapshot) -> Result<(), ControlError> {
    for id in group.snapshots() {
        if let Some(member) = pool.catalog.snapshot_by_id(id).await? {
            is_not_held(&member.record)?;
        }
    }
    Ok(())
}

/// Returns whether a snapshot may be held: its group, if it has one, is not being deleted.
pub(in crate::control::controller) async fn may_be_held(
    pool: &Pool,
    snapshot: &Snapshot,
) -> Result<bool, ControlError> {
    let Some(group) = snapshot.group else { return Ok(true) };
    let found = pool.catalog.group_snapshot_by_id(group).await?;
    Ok(found.is_none_or(|at| at.record.state == State::Ready))
}

/// Tombstones the members of a group that is being deleted.
///
/// # Errors
/// `Precondition` when one is held: the others are tombstoned, and the deletion is to be retried.
pub(super) async fn tombstone_members(
    pool: &Pool,
    group: &GroupSnapshot,
) -> Result<(), ControlError> {
    are_not_held(pool, group).await?;
    let mut held = Ok(());
    for id in group.snapshots() {
        let tombstoned = pool.catalog.update_snapshot(id, |snapshot| {
            if matches!(snapshot.state, State::Creating | State::Ready) {
                is_not_held(snapshot)?;
                snapshot.state = State::Deleting;
            }
            Ok(())
        });
        match tombstoned.await {
            Ok(_) | Err(CatalogError::NotFound { .. }) => {}
            Err(error @ CatalogError::Precondition { .. }) => held = Err(error.into()),
            Err(error) => return Err(error.into()),
        }
        pool.step("control.group.member-tombstone").await?;
    }
    held
}

/// Removes the record of a group whose members are tombstones.
pub(super) async fn remove(pool: &Pool, id: GroupId) -> Result<(), ControlError> {
    pool.catalog.remove_group_snapshot(id).await?;
    pool.step("control.group.removed").await
}

/// Does what interrupted calls have left: completes ready groups, abandons those that are
/// unfinished and `old`, and ends deletions. For the collector; returns the number of records
/// removed.
pub(in crate::control) async fn finish_groups(
    pool: &Pool,
    old: impl Fn(Timestamp) -> bool,
) -> Result<usize, ControlError> {
    let mut removed = 0;
    for at in pool.catalog.group_snapshots().await? {
        let group = at.record;
        let deleting = match group.state {
            State::Ready => false,
            State::Creating => old(group.created) && abandon(pool, group.id()).await?,
            State::Deleting | State::Dead => true,
        };
        if !deleting {
            continue;
        }
        tracing::info!(group = %group.name, "removing an unfinished or deleted group snapshot");
        match tombstone_members(pool, &group).await {
            Ok(()) => {}
            // Held: whoever deletes it retries once the hold is released.
            Err(error) if error.class() == Class::Precondition => continue,
            Err(error) => return Err(error),
        }
        remove(pool, group.id()).await?;
        removed += 1;
    }
    Ok(removed)
}

/// Decides about an unfinished snapshot of a group on its own, which is to be abandoned: returns
/// whether it may be. Of a ready group it is completed instead.
pub(in crate::control) async fn release_member(
    pool: &Pool,
    snapshot: &Snapshot,
    group: GroupId,
) -> Result<bool, ControlError> {
    let Some(at) = pool.catalog.group_snapshot_by_id(group).await? else { return Ok(true) };
    let id = snapshot.id();
    let mut members = at.record.members.iter().zip(at.record.snapshots());
    let Some((member, _)) = members.find(|(_, member)| *member == id) else { return Ok(true) };
    if at.record.state == State::Ready {
        complete_member(pool, &at.record, member, id).await?;
        return Ok(false);
    }
    abandon(pool, group).await
}
