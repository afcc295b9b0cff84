//! Publish and unpublish: the mount of a staged volume is bound to a pod's target.

use super::super::ControlError;
use super::agent::{NodeAgent, StageState};
use super::endpoint::Endpoints;
use super::record::Access;
use super::stage::foreign;
use crate::mount::{self, BindMount, Mounter};
use crate::types::VolumeHandle;
use std::path::{Path, PathBuf};

/// The number of targets on the node that may share the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// CSI's SINGLE_NODE_SINGLE_WRITER.
    OneTarget,
    ManyTargets,
}

/// The request of NodePublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub volume: VolumeHandle,
    /// The path where it was staged.
    pub staging: PathBuf,
    pub target: PathBuf,
    pub access: Access,
    /// Mount options beyond those that it was staged with.
    pub options: Vec<String>,
    /// As in [`Stage`](super::Stage).
    pub group: Option<u32>,
    pub sharing: Sharing,
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Binds the staged mount to a target, and creates its folder. A retry of the same request is
    /// success.
    ///
    /// # Errors
    /// `Precondition` when it is not staged there, or the target is in use; `Exists` when it is
    /// published there in another way.
    pub async fn publish(&self, mut wanted: Publish) -> Result<(), ControlError> {
        let _call = self.enter(wanted.volume).await?;
        mount::check_options(&wanted.options)?;
        wanted.staging = mount::resolve_target(&wanted.staging).await?;
        wanted.target = mount::resolve_target(&wanted.target).await?;
        let staged = match self.settled(wanted.volume).await? {
            StageState::Staged(staged) if staged.record.target == wanted.staging => staged,
            _ => return Err(not_staged(&wanted)),
        };
        let read_only =
            wanted.access == Access::ReadOnly || staged.record.access == Access::ReadOnly;
        check_context(&wanted, &staged.record.options)?;
        let (ours, others) = self.mounts_of(wanted.volume.dataset).await?;
        if let Some(there) = ours.iter().find(|mount| mount.target == wanted.target) {
            return if there.read_only == read_only { Ok(()) } else { Err(differs(&wanted)) };
        }
        if let Some(other) = others.iter().find(|mount| mount.target == wanted.target) {
            return Err(foreign(&wanted.target, Some(other)));
        }
        // Binding a folder on which nothing is mounted would expose the node's own disk.
        if !ours.iter().any(|mount| mount.target == wanted.staging) {
            return Err(not_staged(&wanted));
        }
        if wanted.sharing == Sharing::OneTarget
            && let Some(other) = ours.iter().find(|mount| mount.target != wanted.staging)
        {
            let at = other.target.display();
            return Err(ControlError::Precondition(format!(
                "volume {} is for one pod and is published at {at}",
                wanted.volume
            )));
        }
        if !read_only {
            self.set_mount_group(&staged, wanted.group).await?;
        }
        mount::create_target(&wanted.target).await?;
        let more = wanted.options.iter().filter(|option| !staged.record.options.contains(option));
        let options = staged.record.options.iter().chain(more).cloned().collect();
        let what = BindMount { source: wanted.staging, read_only, options };
        let bound = self.mounter.bind(&what, &wanted.target).await;
        if bound.is_err()
            && let Err(error) = mount::remove_target(&wanted.target).await
        {
            tracing::debug!(
                target = %wanted.target.display(),
                %error,
                "cannot remove the target folder of a failed publish"
            );
        }
        Ok(bound?)
    }

    /// Unmounts a target and removes its folder. Not published counts as unpublished; works in
    /// every state of the volume.
    pub async fn unpublish(&self, volume: VolumeHandle, target: &Path) -> Result<(), ControlError> {
        let _call = self.enter(volume).await?;
        let target = &mount::resolve_target(target).await?;
        if let StageState::Staged(staged) = self.state(volume.dataset)
            && staged.record.target == *target
        {
            return Err(ControlError::Precondition(format!(
                "volume {volume} is staged at {}: unstage it",
                target.display()
            )));
        }
        let (ours, others) = self.mounts_of(volume.dataset).await?;
        if let Some(other) = others.iter().find(|mount| mount.target == *target) {
            return Err(foreign(target, Some(other)));
        }
        if ours.iter().any(|mount| mount.target == *target) {
            self.mounter.unmount(target).await?;
        }
        Ok(mount::remove_or_move_away(target, &self.settings.driver).await?)
    }
}

/// A volume has one SELinux context on a node, that of its staged mount.
fn check_context(wanted: &Publish, staged: &[String]) -> Result<(), ControlError> {
    let (asked, now) = (mount::context(&wanted.options), mount::context(staged));
    let Some(asked) = asked.filter(|asked| now != Some(*asked)) else { return Ok(()) };
    let volume = wanted.volume;
    let now = now.map_or("without one".to_owned(), |now| format!("with {now}"));
    Err(ControlError::Precondition(format!(
        "volume {volume} cannot have the SELinux context {asked}: it is mounted on this node \
         {now}, and pods that use a volume on one node at the same time need the same context"
    )))
}

fn not_staged(wanted: &Publish) -> ControlError {
    let (volume, at) = (wanted.volume, wanted.staging.display());
    ControlError::Precondition(format!("volume {volume} is not staged at {at}: stage it first"))
}

fn differs(wanted: &Publish) -> ControlError {
    ControlError::Exists {
        what: format!("volume {} at {}", wanted.volume, wanted.target.display()),
        why: "it is published there with another access mode (read-only or not)".into(),
    }
}
