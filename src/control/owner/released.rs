//! Carrier: a released dataset, under a maintenance claim of this process.

use super::request::{Checkpointed, FreezeToken, OwnerReply, OwnerRequest};
use super::restore::{Target, restore};
use crate::catalog::{Catalog, Dataset, Owner};
use crate::control::ControlError;
use crate::fs::db::{self, CheckpointId};
use crate::fs::{Fs, FsError, Progress};
use crate::types::{Epoch, Incarnation};
use crate::volume::{
    ActiveClaim, VolumeError, VolumeSettings, checkpoint_released, checkpoint_unchanged,
    detach_released, is_maintenance, seal_released, with_released,
};

/// # Errors
/// [`VolumeError::Owned`](crate::volume::VolumeError::Owned) when a node has opened it meanwhile.
pub(super) async fn act(
    settings: &VolumeSettings,
    pool: &Catalog,
    dataset: &Dataset,
    request: &OwnerRequest,
    progress: &Progress,
) -> Result<OwnerReply, ControlError> {
    let id = dataset.id();
    match request {
        OwnerRequest::Checkpoint { snapshot } => {
            let made = checkpoint_released(settings, pool, id, &snapshot.to_string()).await?;
            let made = Checkpointed { checkpoint: made.0, referenced: None };
            Ok(OwnerReply::Checkpoint(made))
        }
        OwnerRequest::Seal { packs } => {
            seal_released(settings, pool, id, packs).await?;
            Ok(OwnerReply::Done)
        }
        OwnerRequest::Detach => {
            Ok(OwnerReply::Detached(detach_released(settings, pool, id).await?))
        }
        OwnerRequest::Restore { wanted, replaced } => {
            let work = async |fs: &Fs, claim: &ActiveClaim| {
                let target = Target { dataset, fs, claim };
                restore(settings, pool, target, wanted, *replaced, progress).await
            };
            Ok(OwnerReply::Restored(with_released(settings, pool, id, work).await??))
        }
        OwnerRequest::MountGroup { gid } => {
            let work = async |fs: &Fs, _: &ActiveClaim| fs.set_mount_group(*gid).await;
            with_released(settings, pool, id, work).await??;
            Ok(OwnerReply::Done)
        }
        OwnerRequest::Freeze { .. } => freeze(settings, pool, dataset).await,
        OwnerRequest::CheckpointFrozen { snapshot, freeze } => {
            checkpoint_frozen(settings, pool, dataset, *snapshot, *freeze).await
        }
        OwnerRequest::Thaw { freeze } => thaw(settings, pool, dataset, *freeze).await,
        // Everything is in the store.
        OwnerRequest::PrepareFreeze => Ok(OwnerReply::Done),
        // The dataset has no owner; the next one reads its record.
        OwnerRequest::HandOver { .. }
        | OwnerRequest::Ping
        | OwnerRequest::ApplyProperties
        | OwnerRequest::StopRestore { .. } => Ok(OwnerReply::Done),
    }
}

/// Nobody changes a released dataset without opening it, which raises its writer epoch before the
/// first change. So the freeze is an epoch, read before the record says that nobody has it open.
async fn freeze(
    settings: &VolumeSettings,
    pool: &Catalog,
    dataset: &Dataset,
) -> Result<OwnerReply, ControlError> {
    let epoch = epoch(settings, pool, dataset).await?;
    let absent = || ControlError::NotFound { what: format!("volume {}", dataset.name) };
    let now = pool.dataset_by_id(dataset.id()).await?.ok_or_else(absent)?.record;
    match now.owner.filter(|owner: &Owner| !is_maintenance(owner)) {
        None => Ok(OwnerReply::Frozen(FreezeToken::Released(epoch))),
        Some(owner) => {
            let (dataset, node) = (dataset.name.to_string(), owner.node.clone());
            Err(VolumeError::Owned { dataset, node, owner: Box::new(owner) }.into())
        }
    }
}

async fn checkpoint_frozen(
    settings: &VolumeSettings,
    pool: &Catalog,
    dataset: &Dataset,
    snapshot: Incarnation,
    freeze: FreezeToken,
) -> Result<OwnerReply, ControlError> {
    let FreezeToken::Released(expected) = freeze else { return Err(changed()) };
    let (id, name) = (dataset.id(), snapshot.to_string());
    let Some((CheckpointId(checkpoint), epoch)) =
        checkpoint_unchanged(settings, pool, id, &name, expected).await?
    else {
        return Err(changed());
    };
    let made = Checkpointed { checkpoint, referenced: None };
    Ok(OwnerReply::CheckpointFrozen(made, FreezeToken::Released(epoch)))
}

async fn thaw(
    settings: &VolumeSettings,
    pool: &Catalog,
    dataset: &Dataset,
    freeze: FreezeToken,
) -> Result<OwnerReply, ControlError> {
    let unchanged = freeze == FreezeToken::Released(epoch(settings, pool, dataset).await?);
    if unchanged { Ok(OwnerReply::Done) } else { Err(changed()) }
}

async fn epoch(
    settings: &VolumeSettings,
    pool: &Catalog,
    dataset: &Dataset,
) -> Result<Epoch, FsError> {
    db::epoch(&settings.place(pool, dataset.family, dataset.incarnation)).await
}

fn changed() -> ControlError {
    FsError::Busy("it was opened or released since it was frozen for a group snapshot").into()
}
