//! The health of a staged volume and of the pools, from memory: it costs no request, and no access
//! to a mount.

use super::super::ControlError;
use super::agent::{NodeAgent, StageState};
use super::endpoint::Endpoints;
use crate::mount::Mounter;
use crate::types::VolumeHandle;

/// An adverse condition of a volume on this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeCondition {
    #[error("the volume is being reopened after a restart of the node plugin: its calls wait")]
    Reopening,
    #[error(
        "another owner has the volume: its files answer ESTALE here until its pods are deleted"
    )]
    Lost,
    #[error(
        "the volume's database is damaged: {0}; clone a snapshot that `zerofs-csi check` finds \
         clean, or put the object back from another copy of the bucket"
    )]
    Damaged(String),
    #[error("the object store refuses writes, and unsynced data waits in memory: {0}")]
    StoreRefuses(String),
}

/// An adverse condition of the pools of this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageCondition {
    /// The pools' names, each with the reason.
    #[error("pools that cannot be opened: {0}")]
    NotOpen(String),
    /// The same.
    #[error("pools whose store refuses writes: {0}")]
    Refuses(String),
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// The adverse conditions of a staged volume; none when it is well.
    ///
    /// # Errors
    /// `NotFound` when it is not staged here.
    pub fn health(&self, volume: VolumeHandle) -> Result<Vec<VolumeCondition>, ControlError> {
        match self.state(volume.dataset) {
            StageState::Idle => {
                Err(ControlError::NotFound { what: format!("volume {volume} on this node") })
            }
            StageState::Opening => Ok(vec![VolumeCondition::Reopening]),
            StageState::Lost(_) => Ok(vec![VolumeCondition::Lost]),
            StageState::Staged(_) => Ok(self.conditions(volume)),
        }
    }

    fn conditions(&self, volume: VolumeHandle) -> Vec<VolumeCondition> {
        let open = self.volumes.get(volume.dataset);
        let damage = open.and_then(|open| open.fs.damage());
        let damaged = damage.map(|why| VolumeCondition::Damaged(why.to_string()));
        let pool = self.pools.iter().find(|pool| pool.id() == volume.pool);
        let refusal = pool.and_then(|pool| pool.catalog.bucket().refusal());
        damaged.into_iter().chain(refusal.map(VolumeCondition::StoreRefuses)).collect()
    }

    /// The adverse conditions of the pools; none when they are well.
    pub fn storage_health(&self) -> Vec<StorageCondition> {
        let shown = |(name, why): (String, String)| format!("{name} ({why})");
        let list = |pools: Vec<(String, String)>| {
            let pools: Vec<String> = pools.into_iter().map(shown).collect();
            (!pools.is_empty()).then(|| pools.join(", "))
        };
        let refusing = self.pools.iter().filter_map(|pool| {
            let why = pool.catalog.bucket().refusal()?;
            Some((pool.name.clone(), why))
        });
        let not_open = list(self.pools.not_open()).map(StorageCondition::NotOpen);
        let refuses = list(refusing.collect()).map(StorageCondition::Refuses);
        not_open.into_iter().chain(refuses).collect()
    }
}
