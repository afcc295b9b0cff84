//! Carrier: a released dataset, under a maintenance claim of this process.

use super::request::{Checkpointed, OwnerReply, OwnerRequest};
use super::restore::{Target, restore};
use crate::catalog::{Catalog, Dataset};
use crate::control::ControlError;
use crate::fs::{Fs, Progress};
use crate::volume::{
    ActiveClaim, VolumeSettings, checkpoint_released, detach_released, seal_released, with_released,
};

/// # Errors
/// [`VolumeError::Owned`](crate::volume::VolumeError::Owned) when a node has opened it meanwhile.
pub(super) async fn act(
    settings: &VolumeSettings,
    pool: &Catalog,
    dataset: &Dataset,
    request: &OwnerRequest,
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
        OwnerRequest::Restore(wanted) => {
            let progress = Progress::default();
            let work = async |fs: &Fs, claim: &ActiveClaim| {
                let target = Target { dataset, fs, claim };
                restore(settings, pool, target, wanted, &progress).await
            };
            Ok(OwnerReply::Restored(with_released(settings, pool, id, work).await??))
        }
        // The dataset has no owner.
        OwnerRequest::HandOver { .. } | OwnerRequest::Ping => Ok(OwnerReply::Done),
    }
}
