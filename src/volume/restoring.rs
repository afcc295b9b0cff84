//! The catalog's side of a restore in place: the snapshot that a dataset restores from, and depends
//! on until the restored rows are durable (R10).
//!
//! Only the dataset's owner, the session that its record names, begins and ends one. A session that
//! does not know yet that it is no longer the owner must not take the snapshot from the next
//! owner's restore: a dependant is removed only from the version of the snapshot's record that was
//! read *before* this session was seen to be the owner, and the next owner changes that record
//! before it refers to anything.
//!
//! A crash leaves the dependant and the intent; the next opening, by a node or under a maintenance
//! claim, ends both.

use super::VolumeError;
use super::volumes::Volume;
use crate::catalog::{Catalog, CatalogError};
use crate::types::{DatasetId, SessionId, SnapshotId};

/// Attempts while others change the record.
const TRIES: u32 = 16;

/// Ends a restore that was cut short: the replay is durable, so the snapshot need not be retained
/// for it. If this fails, the next opening does it.
pub(super) async fn end_restore(pool: &Catalog, volume: &Volume, session: SessionId) {
    let Some(snapshot) = volume.dataset.restoring else { return };
    let ended = match volume.fs.sync().await {
        Ok(()) => forget_restore(pool, volume.dataset.id(), snapshot, session)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = ended {
        tracing::warn!(
            dataset = %volume.dataset.name,
            error,
            "a restore that was cut short keeps its snapshot until the next opening"
        );
    }
}

/// Ends the dataset's dependence on the snapshot: everything restored from it is durable. Does
/// nothing where `session` is not the owner: the owner ends the restore.
pub async fn forget_restore(
    pool: &Catalog,
    id: DatasetId,
    snapshot: SnapshotId,
    session: SessionId,
) -> Result<(), VolumeError> {
    for _ in 0..TRIES {
        let found = pool.snapshot_by_id(snapshot).await?;
        let Some(dataset) = pool.dataset_by_id(id).await?.map(|at| at.record) else {
            return Ok(());
        };
        if dataset.owner.is_none_or(|owner| owner.session != session)
            || dataset.restoring != Some(snapshot)
        {
            return Ok(());
        }
        let step = pool.bucket().failpoints().step("volume.restore.forget").await;
        step.map_err(|injected| VolumeError::Io(injected.to_string()))?;
        if let Some(mut at) = found
            && at.record.dependants.contains(&id.incarnation)
        {
            let mut next = at.record.clone();
            next.dependants.retain(|dependant| *dependant != id.incarnation);
            match pool.swap_snapshot(&mut at, next).await {
                Err(CatalogError::Contended { .. }) => continue,
                swapped => swapped?,
            }
        }
        let cleared = pool.update_dataset(id, |record| {
            if record.restoring == Some(snapshot)
                && record.owner.as_ref().is_some_and(|owner| owner.session == session)
            {
                record.restoring = None;
            }
            Ok(())
        });
        return cleared.await.map(drop).map_err(VolumeError::from);
    }
    Err(CatalogError::Contended { what: format!("snapshot {snapshot}"), tries: TRIES }.into())
}
