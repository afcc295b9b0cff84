//! A restore in place, as the catalog knows it: the snapshot that a dataset restores from, and
//! depends on until the restored rows are durable (R10).
//!
//! Only the dataset's owner, the session that its record names, begins and ends one. A session that
//! does not know yet that it is the owner no more must not take the snapshot from a restore of the
//! next one: a dependant is taken away only from the version of the snapshot's record that was read
//! *before* this session was seen to be the owner, and whoever is the owner after it changes that
//! record before it refers to anything.
//!
//! A crash leaves the dependant and the intent; the next opening, by a node or by a caretaker, ends
//! both.

use super::VolumeError;
use super::volumes::Volume;
use crate::catalog::{Catalog, CatalogError};
use crate::types::{DatasetId, SessionId, SnapshotId};

/// How often others may change the record meanwhile.
const TRIES: u32 = 16;

/// What a restore that was cut short left: the replay is durable, so the snapshot need not be kept
/// for it. What fails now is done by the next opening.
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

/// The dataset depends on the snapshot no more: all that was restored from it is durable. Nothing
/// where `session` is not its owner: the one that is ends the restore.
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
