//! Carrier: this process, which has the volume open. The mailbox server's requests are carried out
//! here too.

use super::request::{Checkpointed, FreezeToken, OwnerReply, OwnerRequest};
use super::restore::{Target, restore};
use crate::catalog::Catalog;
use crate::control::ControlError;
use crate::control::node::Mounts;
use crate::fs::api::FileSystem;
use crate::fs::db::CheckpointId;
use crate::fs::{FsError, Progress};
use crate::types::{ClaimId, Class, Classify, DatasetId, Incarnation};
use crate::volume::{Closing, Volume, Volumes};
use std::sync::Arc;
use std::time::Duration;

/// Time that other requests wait while a volume is closed for one; the close is completed all the
/// same.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(5);
/// Limit for syncing the mounts of a volume before its snapshot: well below what askers wait
/// (`ownerTimeout`), so that a mount that is too slow does not stop the snapshot.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// The volumes of this process and their mounts.
#[derive(Clone)]
pub(super) struct Local {
    pub(super) volumes: Volumes,
    pub(super) mounts: Arc<dyn Mounts>,
}

impl Local {
    /// Carries out a request if the volume is open here. A hand-over also applies to a volume that
    /// this session owns and does not have open (R33).
    pub(super) async fn act(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        request: &OwnerRequest,
        progress: &Progress,
    ) -> Option<Result<OwnerReply, ControlError>> {
        if let OwnerRequest::HandOver { claim } = request {
            return Some(self.hand_over(pool, dataset, *claim).await);
        }
        let volume = self.volumes.get(dataset)?;
        Some(Box::pin(self.act_on(pool, &volume, request, progress)).await)
    }

    /// Carries out a request on an open volume.
    pub(super) async fn act_on(
        &self,
        pool: &Catalog,
        volume: &Volume,
        request: &OwnerRequest,
        progress: &Progress,
    ) -> Result<OwnerReply, ControlError> {
        let settings = self.volumes.settings();
        match request {
            OwnerRequest::Checkpoint { snapshot } => self.checkpoint(volume, *snapshot).await,
            OwnerRequest::Seal { packs } => {
                volume.fs.seal(packs).await?;
                Ok(OwnerReply::Done)
            }
            OwnerRequest::Detach => Ok(OwnerReply::Detached(volume.fs.detach().await?)),
            OwnerRequest::Restore { wanted, replaced } => {
                let target =
                    Target { dataset: &volume.dataset, fs: &volume.fs, claim: &volume.claim };
                let done = restore(settings, pool, target, wanted, *replaced, progress);
                Ok(OwnerReply::Restored(Box::pin(done).await?))
            }
            // The caller holds the volume.
            OwnerRequest::HandOver { .. } => Err(in_use()),
            // A restore of another process was stopped before this; one of this process is stopped
            // by its progress.
            OwnerRequest::Ping | OwnerRequest::StopRestore { .. } => Ok(OwnerReply::Done),
            OwnerRequest::MountGroup { gid } => {
                volume.fs.set_mount_group(*gid).await?;
                Ok(OwnerReply::Done)
            }
            OwnerRequest::PrepareFreeze => {
                self.sync_mounts(volume).await;
                volume.fs.sync().await?;
                Ok(OwnerReply::Done)
            }
            OwnerRequest::Freeze { token, limit_millis } => {
                let limit = Duration::from_millis(u64::from(*limit_millis));
                volume.fs.freeze(*token, limit).await?;
                Ok(OwnerReply::Frozen(FreezeToken::Open(*token)))
            }
            OwnerRequest::CheckpointFrozen { snapshot, freeze } => {
                let name = snapshot.to_string();
                let FreezeToken::Open(token) = freeze else { return Err(opened_since()) };
                let cut = volume.fs.snapshot_frozen(&name, *token).await?;
                Ok(OwnerReply::CheckpointFrozen(checkpointed(volume, cut).await?, *freeze))
            }
            OwnerRequest::Thaw { freeze } => {
                let FreezeToken::Open(token) = freeze else { return Err(opened_since()) };
                let thawed = volume.fs.thaw(*token).await?;
                tracing::info!(
                    dataset = %volume.dataset.name,
                    millis = thawed.lasted.as_millis(),
                    waited = thawed.waited,
                    "frozen for a group snapshot: changes waited no longer than this"
                );
                Ok(OwnerReply::Done)
            }
            OwnerRequest::ApplyProperties => {
                if let Some(at) = pool.dataset_by_id(volume.dataset.id()).await? {
                    self.volumes.set_properties(&at.record).await?;
                }
                Ok(OwnerReply::Done)
            }
        }
    }

    /// A mount that is too slow does not stop a snapshot.
    async fn sync_mounts(&self, volume: &Volume) {
        let syncing = self.mounts.sync(volume.dataset.id());
        let error = match tokio::time::timeout(SYNC_LIMIT, syncing).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not done within {} s", SYNC_LIMIT.as_secs()),
        };
        tracing::warn!(
            dataset = %volume.dataset.name,
            error,
            "syncing the mount timed out or failed: the snapshot holds what the server \
             acknowledged, and may lack what programs wrote and did not sync"
        );
    }

    async fn checkpoint(
        &self,
        volume: &Volume,
        snapshot: Incarnation,
    ) -> Result<OwnerReply, ControlError> {
        self.sync_mounts(volume).await;
        let made = async {
            let cut = volume.fs.snapshot(&snapshot.to_string()).await?;
            Ok(OwnerReply::Checkpoint(checkpointed(volume, cut).await?))
        };
        Ok(made.await.inspect_err(|error: &FsError| {
            if error.class() != Class::Fenced {
                tracing::warn!(
                    dataset = %volume.dataset.name,
                    %error,
                    "snapshot failed: its caller retries"
                );
            }
        })?)
    }

    /// Closes and releases the volume, if it is not in use.
    async fn hand_over(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        claim: ClaimId,
    ) -> Result<OwnerReply, ControlError> {
        let record = pool.dataset_by_id(dataset).await?.map(|at| at.record);
        let record = record.ok_or_else(|| ControlError::NotFound {
            what: format!("dataset {dataset} in this pool"),
        })?;
        let owner = record.owner.map(|owner| owner.claim);
        if owner.is_none() && self.volumes.get(dataset).is_none_or(|open| !open.claim.is(claim)) {
            // That claim has ended. A later one of this process may not be in the record yet.
            return Ok(OwnerReply::Done);
        }
        if owner.is_some_and(|owner| owner != claim) {
            return Err(ControlError::Precondition(
                "the request is about an earlier claim of the dataset; read its record again and \
                 retry"
                    .to_owned(),
            ));
        }
        let (mounts, volumes, pool) = (self.mounts.clone(), self.volumes.clone(), pool.clone());
        // A task of its own: it goes on when no caller waits for it.
        let closing = tokio::spawn(async move {
            // A guard counts as a use: it is dropped in this line.
            let is_open = volumes.get(dataset).is_some();
            match is_open {
                true => mounts.hand_over(&volumes, dataset).await,
                false => Ok(volumes.release_unopened(&pool, dataset).await?),
            }
        });
        match tokio::time::timeout(HAND_OVER_LIMIT, closing).await {
            Ok(Ok(Ok(Closing::Closed))) => Ok(OwnerReply::Done),
            Ok(Ok(Ok(Closing::InUse))) => Err(in_use()),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(error)) => Err(ControlError::Internal(error.to_string())),
            Err(_) => Err(ControlError::Refused {
                class: Class::InProgress,
                why: "closing the volume is in progress; retry".to_owned(),
            }),
        }
    }
}

async fn checkpointed(
    volume: &Volume,
    CheckpointId(checkpoint): CheckpointId,
) -> Result<Checkpointed, FsError> {
    let stat = volume.fs.statfs().await?;
    let referenced = Some(stat.total_bytes.saturating_sub(stat.free_bytes));
    Ok(Checkpointed { checkpoint, referenced })
}

/// For a freeze of a dataset that was released.
fn opened_since() -> ControlError {
    FsError::Busy("it was opened since it was frozen for a group snapshot").into()
}

fn in_use() -> ControlError {
    ControlError::Precondition("the volume is in use there".to_owned())
}
