//! Stage and unstage: a volume is opened, exported and mounted once on this node.

use super::super::{ControlError, Pool, takeover};
use super::address::candidates;
use super::agent::{NodeAgent, StageState, Staged};
use super::endpoint::{EndpointError, Endpoints, Reach};
use super::ports;
use super::record::{Access, StagedRecord};
use super::shared::{Backing, SharedVolume};
use crate::mount::{self, MountPoint, Mounter, NfsMount};
use crate::types::{Class, Classify, DatasetId, VolumeHandle};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The request of NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    pub volume: VolumeHandle,
    pub target: PathBuf,
    pub access: Access,
    /// Mount options beyond the driver's own.
    pub options: Vec<String>,
    /// The group that the files are presented with (R28).
    pub group: Option<u32>,
    /// Kubelet's id of an inline volume.
    pub ephemeral: Option<String>,
}

impl Stage {
    /// The group, unless the mount is read-only: whoever only reads changes nothing.
    fn changed_group(&self) -> Option<u32> {
        self.group.filter(|_| self.access == Access::ReadWrite)
    }
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Opens, exports and mounts a volume. A retry of the same request is success.
    ///
    /// # Errors
    /// `Exists` when it is staged there in another way; `Precondition` when it is staged elsewhere,
    /// or open on another node.
    pub async fn stage(self: &Arc<Self>, mut wanted: Stage) -> Result<(), ControlError> {
        let _call = self.enter(wanted.volume).await?;
        mount::check_options(&wanted.options)?;
        wanted.target = mount::resolve_target(&wanted.target).await?;
        let deadline = Instant::now() + self.settings.hold;
        match self.settled(wanted.volume).await? {
            StageState::Idle => self.stage_new(wanted, deadline).await,
            StageState::Staged(staged) => {
                is_for(&wanted, staged.record.ephemeral.is_some())?;
                self.stage_again(&staged, &wanted).await
            }
            StageState::Opening | StageState::Lost(_) => Err(ControlError::Precondition(format!(
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
        self.set_mount_group(staged, wanted.changed_group()).await?;
        let (ours, _) = self.mounts_of(wanted.volume.dataset).await?;
        if ours.iter().any(|mount| mount.target == wanted.target) {
            return Ok(());
        }
        // Somebody unmounted it: it is still open and served.
        self.mount(staged).await
    }

    async fn stage_new(
        self: &Arc<Self>,
        wanted: Stage,
        deadline: Instant,
    ) -> Result<(), ControlError> {
        let (volume, group) = (wanted.volume, wanted.changed_group());
        let pool = self.pools.by_id(volume.pool)?.ok_or_else(|| ControlError::NotFound {
            what: format!(
                "pool {} of volume {volume} (it is not configured on this node)",
                volume.pool
            ),
        })?;
        // Before it is opened, which would take it from the node of its pod.
        let dataset = pool.catalog.dataset_by_id(volume.dataset).await?.map(|at| at.record);
        is_for(&wanted, dataset.as_ref().is_some_and(|of| of.ephemeral))?;
        ports::check(
            mount::reserved_ports(),
            &self.connections(),
            mount::connections(&wanted.options),
        )?;
        self.clear_target(volume.dataset, &wanted.target).await?;
        let session = self.volumes.settings().session;
        let mut record = StagedRecord::new(
            volume,
            self.settings.boot.clone(),
            session,
            wanted.target,
            wanted.access,
            wanted.options,
        );
        record.ephemeral = wanted.ephemeral;
        record.shared = self.settings.channel.is_some() && dataset.is_some_and(|of| of.is_shared());
        // The intent is written first: after a crash the next start knows that the volume may be
        // open.
        self.records.write(&record).await?;
        // Kubelet retries only after minutes: waiting for another node's lease inside the call is
        // faster (R27).
        let patience = deadline.saturating_duration_since(Instant::now());
        let brought = match record.shared {
            false => Box::pin(self.bring(record, group, pool, patience)).await,
            true => Box::pin(self.bring_shared(record, group, pool, patience)).await,
        };
        match brought {
            Ok(staged) => {
                let staged = Arc::new(staged);
                self.set(volume.dataset, StageState::Staged(staged.clone()));
                if staged.is_unfollowed() {
                    self.lose_staged(&staged, "its owner cannot be followed: see above");
                }
                Ok(())
            }
            Err(error) => {
                self.undo(volume).await;
                Err(error)
            }
        }
    }

    /// Opens, serves and mounts a volume that this node owns alone, or a snapshot.
    async fn bring(
        &self,
        mut record: StagedRecord,
        group: Option<u32>,
        pool: &Pool,
        patience: Duration,
    ) -> Result<Staged, ControlError> {
        let volume = record.volume;
        let open =
            takeover::open(pool, &self.volumes, &self.settings.carriers, volume.dataset, patience)
                .await?;
        if !open.is_owned() && record.access == Access::ReadWrite {
            return Err(ControlError::Precondition(format!(
                "volume {volume} is a snapshot, read only: use it with a read-only access mode \
                 (ReadOnlyMany)"
            )));
        }
        record.endpoint = Some(self.listen(volume.dataset, Reach::OneNode).await?);
        self.endpoints.serve(&open)?;
        self.records.write(&record).await?;
        let staged = Staged { record, backing: Backing::Owned(open) };
        self.set_mount_group(&staged, group).await?;
        self.mount(&staged).await?;
        Ok(staged)
    }

    /// Serves or relays, and mounts, a volume that several nodes may stage.
    async fn bring_shared(
        self: &Arc<Self>,
        mut record: StagedRecord,
        group: Option<u32>,
        pool: &Pool,
        patience: Duration,
    ) -> Result<Staged, ControlError> {
        let volume = record.volume;
        let first = self.first_position(pool, volume.dataset, patience).await?;
        record.endpoint = Some(self.listen(volume.dataset, Reach::ManyNodes).await?);
        self.records.write(&record).await?;
        let shared = Arc::new(SharedVolume::default());
        self.follow(&shared, pool.clone(), volume, Some(first));
        let staged = Staged { record, backing: Backing::Shared(shared.clone()) };
        let mounted = async {
            self.set_mount_group(&staged, group).await?;
            self.mount(&staged).await
        };
        match mounted.await {
            Ok(()) => Ok(staged),
            Err(error) => {
                shared.stop().await;
                Err(error)
            }
        }
    }

    /// Unmounts a mount of this volume that an earlier process left at the target; fails on a
    /// foreign mount.
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
    async fn listen(&self, dataset: DatasetId, reach: Reach) -> Result<SocketAddr, ControlError> {
        let mut no_ipv4 = false;
        for at in candidates(dataset, self.settings.nfs_port) {
            if no_ipv4 && at.is_ipv4() {
                continue;
            }
            match self.listen_on(dataset, at, reach).await {
                Ok(()) => return Ok(at),
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
            options: options(record, self.reach(record)),
        };
        // R23: no one else may mount it.
        let _pass = self.endpoints.allow_mount(dataset)?;
        Ok(self.mounter.mount_nfs(&what, &record.target).await?)
    }

    /// Undoes a failed staging. The next attempt, or the next start, finishes what fails here.
    async fn undo(&self, volume: VolumeHandle) {
        self.endpoints.stop(volume.dataset).await;
        if let Err(error) = self.release(volume).await {
            tracing::warn!(
                %volume,
                %error,
                "staging failed, volume left open; the next attempt resumes"
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
            StageState::Staged(staged) if staged.record.target != target => {
                return not_there(volume, target, &ours);
            }
            StageState::Lost(record) if record.target != target => {
                return not_there(volume, target, &ours);
            }
            StageState::Idle if elsewhere.is_some() => return Err(foreign(target, elsewhere)),
            _ => {}
        }
        if let Some(published) = ours.iter().find(|mount| mount.target != target) {
            let at = published.target.display();
            return Err(ControlError::Precondition(format!(
                "volume {volume} is still published at {at}: unpublish it first"
            )));
        }
        let mounted = ours.iter().any(|mount| mount.target == target);
        if mounted && matches!(state, StageState::Staged(_)) {
            self.write_out(target).await?;
        }
        if mounted {
            self.mounter.unmount(target).await?;
        }
        if let StageState::Staged(staged) = &state
            && let Backing::Shared(shared) = &staged.backing
        {
            shared.stop().await;
        }
        self.endpoints.stop(dataset).await;
        drop(state);
        // Nothing is mounted or served now, also where the release fails: staged again, the
        // volume is opened again, once it is closed.
        self.set(dataset, StageState::Idle);
        self.release(volume).await
    }

    /// Writes dirty pages back. A time-out is an error, because pages must not be dropped when the
    /// store is slow: the caller retries. A write error is not: the kernel has reported it to the
    /// writer, and will not write those pages again.
    async fn write_out(&self, target: &Path) -> Result<(), ControlError> {
        match self.mounter.sync(target).await {
            Ok(()) => Ok(()),
            Err(error) if error.class() == Class::Unavailable => Err(error.into()),
            Err(error) => {
                tracing::warn!(
                    target = %target.display(),
                    %error,
                    "some dirty pages were lost: the kernel could not write them back before \
                     unmounting"
                );
                Ok(())
            }
        }
    }
}

/// Mount options of a staged volume. Other nodes change a shared one: what the kernel remembers of
/// attributes is valid for a second, and names that it did not find are looked up again.
fn options(record: &StagedRecord, reach: Reach) -> Vec<String> {
    let ours: &[&str] = match reach {
        Reach::OneNode => &[],
        Reach::ManyNodes => &["actimeo=1", "lookupcache=pos"],
    };
    // The last of several of a name counts: the user's.
    ours.iter().map(|option| (*option).to_owned()).chain(record.options.iter().cloned()).collect()
}

/// Refuses an inline volume of a pod to everybody else: what is written there goes with the pod.
fn is_for(wanted: &Stage, is_inline: bool) -> Result<(), ControlError> {
    if !is_inline || wanted.ephemeral.is_some() {
        return Ok(());
    }
    Err(ControlError::Precondition(format!(
        "volume {} is the inline volume of a pod, and is deleted with that pod: it cannot be used \
         through a PersistentVolume; clone its dataset, and use the clone",
        wanted.volume
    )))
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
