//! The usage and size of a staged volume, and the write-back of its dirty pages.

use super::super::controller::within;
use super::super::owner::OwnerRequest;
use super::super::{ControlError, Pool};
use super::agent::{NodeAgent, StageState, Staged};
use super::endpoint::Endpoints;
use super::shared::Backing;
use crate::catalog::Dataset;
use crate::fs::api::{FileSystem, StatFs};
use crate::mount::{self, Mounter};
use crate::types::{DatasetId, VolumeHandle};
use crate::volume::{CloseReason, Closing, Volumes};
use futures::future::BoxFuture;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Time limit for the owner of a shared volume to apply a quota.
const OWNER_LIMIT: Duration = Duration::from_secs(30);

/// The mounts of a process, whose dirty pages are written back before a snapshot: data that is only
/// in the kernel's page cache is in no snapshot.
pub trait Mounts: Send + Sync + 'static {
    /// Writes the dirty pages of a volume's mount to it, within a time limit. Not mounted here
    /// counts as done.
    fn sync(&self, dataset: DatasetId) -> BoxFuture<'_, Result<(), ControlError>>;

    /// Closes and releases an unused volume that another node asks for (R27). A staged volume is in
    /// use.
    fn hand_over<'a>(
        &'a self,
        volumes: &'a Volumes,
        dataset: DatasetId,
    ) -> BoxFuture<'a, Result<Closing, ControlError>> {
        Box::pin(async move { Ok(volumes.close_for(dataset, CloseReason::Unused).await?) })
    }
}

/// The mounts of a process that mounts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMounts;

impl Mounts for NoMounts {
    fn sync(&self, _: DatasetId) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl<M: Mounter, E: Endpoints> Mounts for NodeAgent<M, E> {
    fn sync(&self, dataset: DatasetId) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async move {
            match self.state(dataset) {
                StageState::Staged(staged) => Ok(self.mounter.sync(&staged.record.target).await?),
                StageState::Idle | StageState::Opening | StageState::Lost(_) => Ok(()),
            }
        })
    }
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// The volume's bytes and inodes, without touching the mount. `path`: where the volume is
    /// staged or published.
    ///
    /// # Errors
    /// `NotFound` when it is not there.
    pub async fn stats(&self, volume: VolumeHandle, path: &Path) -> Result<StatFs, ControlError> {
        let _present = self.present().await?;
        let staged = self.staged_at(volume, path).await?;
        match &staged.backing {
            Backing::Owned(volume) => Ok(volume.exported.statfs().await?),
            Backing::Shared(_) => Ok(self.endpoints.stats(volume.dataset).await?),
        }
    }

    /// Reads the quota from the dataset's record and applies it to the open volume. The quota in
    /// bytes.
    ///
    /// # Errors
    /// `NotFound` when the volume is not at `path`; `OutOfRange` when it has more than `limit`
    /// bytes.
    pub async fn expand(
        &self,
        volume: VolumeHandle,
        path: &Path,
        limit: Option<u64>,
    ) -> Result<u64, ControlError> {
        let _call = self.enter(volume).await?;
        self.staged_at(volume, path).await?;
        let missing = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pools.by_id(volume.pool)?.ok_or_else(missing)?;
        let record = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(missing)?.record;
        within(&record, limit)?;
        match self.volumes.get(volume.dataset) {
            None => self.tell_owner(pool, &record, &OwnerRequest::ApplyProperties).await?,
            Some(_) => self.volumes.set_quota(&record),
        }
        Ok(record.size.unwrap_or_default())
    }

    /// Presents a volume with a group, where a pod asks for one (R28). Pods with other groups share
    /// the last one, as they would if kubelet changed each file.
    pub(super) async fn set_mount_group(
        &self,
        staged: &Staged,
        group: Option<u32>,
    ) -> Result<(), ControlError> {
        let Some(gid) = group else { return Ok(()) };
        let volume = staged.record.volume;
        if let Backing::Owned(open) = &staged.backing {
            return Ok(open.set_mount_group(gid).await?);
        }
        if let Some(open) = self.volumes.get(volume.dataset) {
            return Ok(open.fs.set_mount_group(gid).await?);
        }
        let missing = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pools.by_id(volume.pool)?.ok_or_else(missing)?;
        let record = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(missing)?.record;
        if record.owner.is_none() {
            return Err(ControlError::Unavailable(format!(
                "volume {volume} is moving to another node, and its group cannot be set; retry"
            )));
        }
        self.tell_owner(pool, &record, &OwnerRequest::MountGroup { gid }).await
    }

    async fn staged_at(
        &self,
        volume: VolumeHandle,
        path: &Path,
    ) -> Result<Arc<Staged>, ControlError> {
        let missing =
            || ControlError::NotFound { what: format!("volume {volume} at {}", path.display()) };
        match self.settled(volume).await? {
            StageState::Idle | StageState::Opening => Err(missing()),
            StageState::Lost(_) => Err(ControlError::Precondition(format!(
                "volume {volume} was lost to another owner while it was staged here: delete its \
                 pods"
            ))),
            StageState::Staged(staged) => {
                let path = mount::resolve_target(path).await?;
                let (ours, _) = self.mounts_of(volume.dataset).await?;
                ours.iter().any(|mount| mount.target == path).then_some(staged).ok_or_else(missing)
            }
        }
    }

    /// Has the owner of a shared volume do something; without one there is nothing to do.
    async fn tell_owner(
        &self,
        pool: &Pool,
        record: &Dataset,
        request: &OwnerRequest,
    ) -> Result<(), ControlError> {
        let Some(owner) = &record.owner else { return Ok(()) };
        let (carriers, about) = (&self.settings.carriers, (record.id(), record.name.as_str()));
        carriers.ask_owner(pool, about, owner, request, OWNER_LIMIT).await.map(drop)
    }
}
