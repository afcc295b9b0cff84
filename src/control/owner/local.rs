//! Carrier: this process, which has the volume open. The mailbox server's requests are carried out
//! here too.

use super::request::{Checkpointed, OwnerReply, OwnerRequest};
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
    ) -> Option<Result<OwnerReply, ControlError>> {
        if let OwnerRequest::HandOver { claim } = request {
            return Some(self.hand_over(pool, dataset, *claim).await);
        }
        let volume = self.volumes.get(dataset)?;
        Some(Box::pin(self.act_on(pool, &volume, request, &Progress::default())).await)
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
            OwnerRequest::Restore(wanted) => {
                let target =
                    Target { dataset: &volume.dataset, fs: &volume.fs, claim: &volume.claim };
                let done = restore(settings, pool, target, wanted, progress);
                Ok(OwnerReply::Restored(Box::pin(done).await?))
            }
            // The caller holds the volume.
            OwnerRequest::HandOver { .. } => Err(in_use()),
            OwnerRequest::Ping => Ok(OwnerReply::Done),
        }
    }

    /// A mount that is too slow does not stop a snapshot.
    async fn checkpoint(
        &self,
        volume: &Volume,
        snapshot: Incarnation,
    ) -> Result<OwnerReply, ControlError> {
        if let Err(error) = self.mounts.sync(volume.dataset.id()).await {
            tracing::warn!(
                dataset = %volume.dataset.name,
                %error,
                "syncing the mount timed out or failed: the snapshot holds what the server \
                 acknowledged, and may lack what programs wrote and did not sync"
            );
        }
        let made = async {
            let CheckpointId(checkpoint) = volume.fs.snapshot(&snapshot.to_string()).await?;
            let stat = volume.fs.statfs().await?;
            let referenced = Some(stat.total_bytes.saturating_sub(stat.free_bytes));
            Ok::<_, FsError>(OwnerReply::Checkpoint(Checkpointed { checkpoint, referenced }))
        };
        Ok(made.await.inspect_err(|error| {
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
        let owner = pool.dataset_by_id(dataset).await?.and_then(|at| at.record.owner);
        if owner.is_some_and(|owner| owner.claim != claim) {
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

fn in_use() -> ControlError {
    ControlError::Precondition("the volume is in use there".to_owned())
}
