//! The catalog's side of a restore in place: the snapshot that a dataset restores from, and depends
//! on until the restored rows are durable (R10).
//!
//! Only the claim that the dataset's record names begins and ends one (R31). A process that does
//! not know yet that its claim has ended must not remove the snapshot from a restore under the next
//! claim, even one of the same session: a dependant is removed only from the version of the
//! snapshot's record that was read *before* the claim was seen to be the record's, and the next
//! owner changes that record before it refers to anything.
//!
//! A crash leaves the dependant and the intent; the next opening, by a node or for maintenance,
//! removes both.

use super::VolumeError;
use super::claim::ActiveClaim;
use super::volumes::Volume;
use crate::catalog::{Catalog, CatalogError};
use crate::types::{DatasetId, SnapshotId};

/// Attempts, while others change the record.
const TRIES: u32 = 16;

/// Ends an interrupted restore: its replayed rows are made durable, so the snapshot need not be
/// retained for them. If this fails, the next opening retries.
pub(super) async fn end_restore(pool: &Catalog, volume: &Volume) {
    let Some(snapshot) = volume.dataset.restoring else { return };
    let ended = match volume.fs.sync().await {
        Ok(()) => forget_restore(pool, volume.dataset.id(), snapshot, &volume.claim)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = ended {
        tracing::warn!(
            dataset = %volume.dataset.name,
            error,
            "an interrupted restore retains its snapshot until the next opening"
        );
    }
}

/// Removes the dataset from the snapshot's dependants: everything restored from it is durable. Does
/// nothing where the record names another claim than `claim`: that one ends the restore.
pub async fn forget_restore(
    pool: &Catalog,
    id: DatasetId,
    snapshot: SnapshotId,
    claim: &ActiveClaim,
) -> Result<(), VolumeError> {
    for _ in 0..TRIES {
        let found = pool.snapshot_by_id(snapshot).await?;
        let Some(dataset) = pool.dataset_by_id(id).await?.map(|at| at.record) else {
            return Ok(());
        };
        if !claim.owns(&dataset) || dataset.restoring != Some(snapshot) {
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
            if record.restoring == Some(snapshot) && claim.owns(record) {
                record.restoring = None;
            }
            Ok(())
        });
        return cleared.await.map(drop).map_err(VolumeError::from);
    }
    Err(CatalogError::Contended { what: format!("snapshot {snapshot}"), tries: TRIES }.into())
}
