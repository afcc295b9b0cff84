//! Stage and unstage: a volume is opened, served and mounted once on this node.

use super::super::{ControlError, takeover};
use super::address::candidates;
use super::agent::{NodeAgent, Staged, State};
use super::endpoint::{EndpointError, Endpoints};
use super::ports;
use super::record::Record;
use crate::mount::{self, MountPoint, Mounter, NfsMount};
use crate::types::{Class, Classify, DatasetId, VolumeHandle};
use crate::volume::Attached;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// The request of a NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    pub volume: VolumeHandle,
    pub target: PathBuf,
    pub access: Access,
    /// Mount options beyond the driver's own.
    pub options: Vec<String>,
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Opens, serves and mounts a volume. A retry of the same call succeeds.
    ///
    /// # Errors
    /// `Exists` when it is staged there in another way; `Precondition` when it is staged elsewhere,
    /// or open on another node.
    pub async fn stage(&self, mut wanted: Stage) -> Result<(), ControlError> {
        let _call = self.enter(wanted.volume).await?;
        mount::check_options(&wanted.options)?;
        wanted.target = mount::resolve_target(&wanted.target).await?;
        let deadline = Instant::now() + self.settings.hold;
        match self.settled(wanted.volume).await? {
            State::Idle => self.stage_new(wanted, deadline).await,
            State::Staged(staged) => self.stage_again(&staged, &wanted).await,
            State::Opening | State::Lost(_) => Err(ControlError::Precondition(format!(
                "volume {} was lost to another owner while it was staged here: unstage it first \
                 (delete its pods)",
                wanted.volume
            ))),
        }
    }

    async fn stage_again(&self, staged: &Staged, wanted: &Stage) -> Result<(), ControlError> {
        let record = &staged.record;
        if record.target != wanted.target {
            let (volume, at) = (wanted.volume, record.target.display());
            return Err(ControlError::Precondition(format!(
                "volume {volume} is staged at {at}: unstage it there first"
            )));
        }
        if record.access != wanted.access || record.options != wanted.options {
            return Err(ControlError::Exists {
                what: format!("volume {} at {}", wanted.volume, wanted.target.display()),
                why: "it is staged with other access or mount options".into(),
            });
        }
        let (ours, _) = self.mounts_of(wanted.volume.dataset).await?;
        if ours.iter().any(|mount| mount.target == wanted.target) {
            return Ok(());
        }
        // Another program unmounted it: it is still open and served.
        self.mount(staged).await
    }

    async fn stage_new(&self, wanted: Stage, deadline: Instant) -> Result<(), ControlError> {
        let volume = wanted.volume;
        let pool = self.pools.by_id(volume.pool)?.ok_or_else(|| ControlError::NotFound {
            what: format!(
                "pool {} of volume {volume} (it is not configured on this node)",
                volume.pool
            ),
        })?;
        ports::check(
            mount::reserved_ports(),
            &self.connections(),
            mount::connections(&wanted.options),
        )?;
        self.clear_target(volume.dataset, &wanted.target).await?;
        let session = self.volumes.settings().session;
        let mut record = Record::new(
            volume,
            self.settings.boot.clone(),
            session,
            wanted.target,
            wanted.access,
            wanted.options,
        );
        // The intent comes first: after a crash from here on the next start knows that the volume
        // may be open.
        self.records.write(&record).await?;
        let brought = async {
            // Kubelet retries only after minutes: waiting here for another node's lease is faster
            // (R27).
            let patience = deadline.saturating_duration_since(Instant::now());
            let open = takeover::open(pool, &self.volumes, volume.dataset, patience).await?;
            if !open.is_owned() && record.access == Access::ReadWrite {
                return Err(ControlError::Precondition(format!(
                    "volume {volume} is a snapshot, read only: use it with a read-only access mode \
                     (ReadOnlyMany)"
                )));
            }
            record.endpoint = Some(self.serve(&open).await?);
            self.records.write(&record).await?;
            let staged = Staged { record, volume: open };
            self.mount(&staged).await?;
            Ok(staged)
        };
        match brought.await {
            Ok(staged) => {
                self.set(volume.dataset, State::Staged(Arc::new(staged)));
                Ok(())
            }
            Err(error) => {
                self.undo(volume).await;
                Err(error)
            }
        }
    }

    /// Unmounts a mount that an earlier run of the driver left at the target; a foreign mount
    /// stays.
    async fn clear_target(&self, dataset: DatasetId, target: &Path) -> Result<(), ControlError> {
        let (ours, others) = self.mounts_of(dataset).await?;
        if let Some(other) = others.iter().find(|mount| mount.target == target) {
            let busy =
                mount::MountError::Busy { path: target.to_owned(), device: other.device.clone() };
            return Err(busy.into());
        }
        if ours.iter().any(|mount| mount.target == target) {
            tracing::warn!(
                target = %target.display(),
                "unmounting what an earlier run of the node plugin left there"
            );
            self.mounter.unmount(target).await?;
        }
        Ok(mount::create_target(target).await?)
    }

    /// Starts the endpoint on the first address that is free.
    async fn serve(&self, volume: &Attached) -> Result<SocketAddr, ControlError> {
        let dataset = volume.dataset;
        let mut no_ipv4 = false;
        for at in candidates(dataset, self.settings.nfs_port) {
            if no_ipv4 && at.is_ipv4() {
                continue;
            }
            match self.endpoints.listen(dataset, &Self::export(dataset), at).await {
                Ok(()) => {
                    self.endpoints.serve(volume)?;
                    return Ok(at);
                }
                Err(EndpointError::Taken(_)) => {}
                Err(EndpointError::Absent(_)) if at.is_ipv4() => no_ipv4 = true,
                Err(error) => return Err(error.into()),
            }
        }
        Err(ControlError::Unavailable(format!("no loopback address is free for dataset {dataset}")))
    }

    async fn mount(&self, staged: &Staged) -> Result<(), ControlError> {
        let record = &staged.record;
        let dataset = record.volume.dataset;
        let endpoint = record.endpoint.ok_or_else(|| {
            ControlError::Internal(format!("volume {} has no endpoint", record.volume))
        })?;
        let what = NfsMount {
            device: Self::device(dataset),
            endpoint,
            export: Self::export(dataset),
            read_only: record.access == Access::ReadOnly,
            options: record.options.clone(),
        };
        // R23: no one else may mount it.
        let _pass = self.endpoints.allow_mount(dataset)?;
        Ok(self.mounter.mount_nfs(&what, &record.target).await?)
    }

    /// Returns to idle after a failed stage. Steps that cannot be undone now are undone by the next
    /// attempt, or the next start.
    async fn undo(&self, volume: VolumeHandle) {
        self.endpoints.stop(volume.dataset).await;
        if let Err(error) = self.let_go(volume).await {
            tracing::warn!(
                %volume,
                %error,
                "a stage that failed left the volume open: the next one goes on from there"
            );
        }
    }

    /// Unmounts, stops serving and closes a volume. A volume that is not staged counts as unstaged.
    ///
    /// # Errors
    /// `Precondition` while it is published; `Unavailable` while its data cannot be flushed to the
    /// store: retry.
    pub async fn unstage(&self, volume: VolumeHandle, target: &Path) -> Result<(), ControlError> {
        let _call = self.enter(volume).await?;
        let target: &Path = &mount::resolve_target(target).await?;
        let state = self.settled(volume).await?;
        let dataset = volume.dataset;
        let (ours, others) = self.mounts_of(dataset).await?;
        let elsewhere = others.iter().find(|mount| mount.target == target);
        match &state {
            State::Staged(staged) if staged.record.target != target => {
                return not_there(volume, target, &ours);
            }
            State::Lost(record) if record.target != target => {
                return not_there(volume, target, &ours);
            }
            State::Idle if elsewhere.is_some() => return Err(foreign(target, elsewhere)),
            _ => {}
        }
        if let Some(published) = ours.iter().find(|mount| mount.target != target) {
            let at = published.target.display();
            return Err(ControlError::Precondition(format!(
                "volume {volume} is still published at {at}: unpublish it first"
            )));
        }
        let mounted = ours.iter().any(|mount| mount.target == target);
        if mounted && matches!(state, State::Staged(_)) {
            self.write_out(target).await?;
        }
        if mounted {
            self.mounter.unmount(target).await?;
        }
        self.endpoints.stop(dataset).await;
        drop(state);
        self.let_go(volume).await?;
        self.set(dataset, State::Idle);
        Ok(())
    }

    /// Dirty pages must not be dropped because the store is slow today: after a time-out the call
    /// is retried. After an error it is not: the kernel has reported it to the writer, and will not
    /// write those pages again.
    async fn write_out(&self, target: &Path) -> Result<(), ControlError> {
        match self.mounter.sync(target).await {
            Ok(()) => Ok(()),
            Err(error) if error.class() == Class::Unavailable => Err(error.into()),
            Err(error) => {
                tracing::warn!(
                    target = %target.display(),
                    %error,
                    "not every dirty page was written before unmounting"
                );
                Ok(())
            }
        }
    }
}

fn not_there(volume: VolumeHandle, target: &Path, ours: &[MountPoint]) -> Result<(), ControlError> {
    match ours.iter().any(|mount| mount.target == target) {
        true => Err(ControlError::Precondition(format!(
            "volume {volume} is published at {}: unpublish it",
            target.display()
        ))),
        false => Ok(()),
    }
}

pub(super) fn foreign(target: &Path, mount: Option<&MountPoint>) -> ControlError {
    let device = mount.map(|mount| mount.device.clone()).unwrap_or_default();
    mount::MountError::Busy { path: target.to_owned(), device }.into()
}
