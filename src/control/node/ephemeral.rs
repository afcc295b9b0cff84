//! Inline ephemeral volumes: an empty dataset for one pod on this node, made when it is published
//! and deleted when it is unpublished.
//!
//! ```text
//!  publish     dataset recorded ──▶ staged at the pod's target, under kubelet's id of the volume
//!  unpublish   unmounted ──▶ discarded: stopped, tombstoned ──▶ the pod's folder removed
//! ```
//! The data goes with the pod, so that nothing is written out or closed in order: neither a store
//! that is away nor a damaged database keeps the mount. While the dataset cannot be tombstoned,
//! kubelet is told to retry, for as long as calls are held; then the pod may go. The volume's close
//! is retried by its task meanwhile, and what this process leaves behind a controller deletes.
//!
//! Kubelet names the volume, from the pod and the volume's name in it, so the dataset is found by
//! its name where no staged record is left, as after a reboot. A crash leaves a dataset that the
//! next call for the pod finds. If none comes, because the node is gone, a controller deletes it
//! (`control/controller/ephemeral.rs`).

use super::super::controller::{check_properties, tombstone_dataset};
use super::super::{ControlError, Pool};
use super::agent::{NodeAgent, StageState};
use super::endpoint::Endpoints;
use super::ephemeral_id::EphemeralId;
use super::record::Access;
use super::stage::{Stage, foreign};
use crate::catalog::{CatalogError, Dataset, Form, Properties, State, Versioned};
use crate::mount::{self, Mounter};
use crate::types::{DatasetId, DatasetName, FamilyId, Incarnation, Timestamp, VolumeHandle};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The request of NodePublishVolume for an inline volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishEphemeral {
    pub id: EphemeralId,
    /// `None`: the first of those that are allowed.
    pub pool: Option<String>,
    /// In bytes; `None`: the default size, or the largest that is allowed.
    pub size: Option<u64>,
    pub properties: Properties,
    pub target: PathBuf,
    pub access: Access,
    pub options: Vec<String>,
    pub group: Option<u32>,
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Makes an empty volume and mounts it at the pod's target. A retry of the same request is
    /// success.
    ///
    /// # Errors
    /// `Precondition` where the administrator does not allow it, `OutOfRange` for its size.
    pub async fn publish_ephemeral(
        self: &Arc<Self>,
        wanted: PublishEphemeral,
    ) -> Result<(), ControlError> {
        let _one = self.lock_ephemeral(&wanted.id)?;
        let settings = &self.settings.ephemeral;
        let pool = self.pools.get(Some(settings.pool(wanted.pool.as_deref())?))?;
        let size = settings.size(wanted.size)?;
        check_properties(&wanted.properties)?;
        let dataset = scratch(pool, &wanted, size).await?;
        pool.step("control.ephemeral.recorded").await?;
        let PublishEphemeral { id, target, access, options, group, .. } = wanted;
        let volume = VolumeHandle { pool: pool.id(), dataset };
        let ephemeral = Some(id.to_string());
        self.stage(Stage { volume, target, access, options, group, ephemeral }).await
    }

    /// Unmounts an inline volume, and deletes it with its data. Absent counts as deleted.
    ///
    /// # Errors
    /// Retryable ones, above all `Unavailable` while the store does not answer: the volume is
    /// unmounted then, and soon counts as unpublished.
    pub async fn unpublish_ephemeral(
        &self,
        id: &EphemeralId,
        target: &Path,
    ) -> Result<(), ControlError> {
        let _one = self.lock_ephemeral(id)?;
        let target = mount::resolve_target(target).await?;
        let found = match self.find_ephemeral(id).await {
            // The node has rebooted: nothing is recorded of it, and nothing mounted.
            Err(error) if self.is_overdue(id) => {
                tracing::warn!(
                    volume = %id,
                    %error,
                    "the pod of an inline volume may go although its dataset cannot be looked for: \
                     a controller deletes that within about a day"
                );
                None
            }
            found => found?,
        };
        if let Some(volume) = found {
            let _call = self.enter(volume).await?;
            self.detach(id, volume, &target).await?;
            match self.delete_scratch(volume).await {
                Err(error) if !self.is_overdue(id) => {
                    return Err(ControlError::Unavailable(format!(
                        "inline volume {id} is unmounted, but its dataset is not deleted yet: \
                         {error}; retry"
                    )));
                }
                Err(error) => tracing::warn!(
                    %volume,
                    %error,
                    "the pod of an inline volume may go before its dataset is deleted, which is \
                     left to this process, or to a controller within about a day"
                ),
                Ok(()) => {}
            }
            self.records.remove(volume.dataset).await?;
        }
        self.undeleted.lock().remove(id);
        Ok(mount::remove_or_move_away(&target, &self.settings.driver).await?)
    }

    /// Returns whether a volume that is not mounted any more could not be deleted for as long as
    /// calls are held.
    fn is_overdue(&self, id: &EphemeralId) -> bool {
        let since = *self.undeleted.lock().entry(id.clone()).or_insert_with(Instant::now);
        since.elapsed() >= self.settings.hold
    }

    /// Takes the mount away. Its dirty pages are of no use any more: the calls that bring them are
    /// answered with ESTALE, so that the kernel waits for nothing.
    async fn detach(
        &self,
        id: &EphemeralId,
        volume: VolumeHandle,
        target: &Path,
    ) -> Result<(), ControlError> {
        let dataset = volume.dataset;
        // A recovery in progress need not end before: it finds the volume idle.
        let staged = match self.state(dataset) {
            StageState::Staged(staged) => Some(staged.record.target.clone()),
            StageState::Lost(record) => Some(record.target.clone()),
            StageState::Idle | StageState::Opening => None,
        };
        let (ours, others) = self.mounts_of(dataset).await?;
        if let Some(other) = others.iter().find(|mount| mount.target == target) {
            return Err(foreign(target, Some(other)));
        }
        let mounted = ours.iter().map(|mount| mount.target.as_path());
        if staged.as_deref().into_iter().chain(mounted).any(|at| at != target) {
            return Err(ControlError::Precondition(format!(
                "inline volume {id} is mounted, but not at {}",
                target.display()
            )));
        }
        self.endpoints.stale(dataset);
        if !ours.is_empty() {
            self.mounter.unmount(target).await?;
        }
        self.endpoints.stop(dataset).await;
        self.set(dataset, StageState::Idle);
        Ok(())
    }

    /// An inline volume that is mounted here.
    pub fn ephemeral(&self, id: &EphemeralId) -> Option<VolumeHandle> {
        self.staged_records()
            .into_iter()
            .find(|record| record.ephemeral.as_deref() == Some(id.as_str()))
            .map(|record| record.volume)
    }

    async fn find_ephemeral(&self, id: &EphemeralId) -> Result<Option<VolumeHandle>, ControlError> {
        if let Some(volume) = self.ephemeral(id) {
            return Ok(Some(volume));
        }
        let records = self.records.all().await?;
        let staged = records.iter().find(|record| record.ephemeral.as_deref() == Some(id.as_str()));
        if let Some(record) = staged {
            return Ok(Some(record.volume));
        }
        // Nothing is in other pools, and the pod does not wait for one that is not open.
        for name in &self.settings.ephemeral.pools {
            let pool = self.pools.get(Some(name))?;
            let mut named = named(pool, id).await?.into_iter().filter_map(|(_, at)| at);
            if let Some(at) = named.find(|at| is_live(&at.record)) {
                let dataset = at.record.id();
                return Ok(Some(VolumeHandle { pool: pool.id(), dataset }));
            }
        }
        Ok(None)
    }

    /// Tombstones the dataset of a volume that is not staged any more.
    async fn delete_scratch(&self, volume: VolumeHandle) -> Result<(), ControlError> {
        let Some(pool) = self.pools.by_id(volume.pool)? else { return Ok(()) };
        pool.step("control.ephemeral.unstaged").await?;
        let deleted = async {
            self.volumes.discard(&pool.catalog, volume.dataset).await?;
            tombstone_dataset(pool, volume.dataset).await
        };
        match tokio::time::timeout(self.settings.hold, Box::pin(deleted)).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some((dataset, owner)))) => Err(ControlError::Unavailable(format!(
                "node {} has dataset {} open",
                owner.node, dataset.name
            ))),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                Err(ControlError::Unavailable("the object store does not answer in time".into()))
            }
        }
    }
}

fn is_live(dataset: &Dataset) -> bool {
    dataset.ephemeral && matches!(dataset.state, State::Ready | State::Creating)
}

/// The names that the volume of a pod may have, with the datasets that have them.
async fn named(
    pool: &Pool,
    id: &EphemeralId,
) -> Result<Vec<(DatasetName, Option<Versioned<Dataset>>)>, ControlError> {
    let find = id.names().map(|name| async {
        let name = name?;
        let found = pool.catalog.dataset(&name).await?;
        Ok((name, found))
    });
    futures::future::try_join_all(find).await
}

/// Finds the dataset of an inline volume, or makes it.
async fn scratch(
    pool: &Pool,
    wanted: &PublishEphemeral,
    size: u64,
) -> Result<DatasetId, ControlError> {
    let named = named(pool, &wanted.id).await?;
    // Wherever it is: an earlier name is free again once what had it is collected.
    let mut there = named.iter().filter_map(|(_, at)| at.as_ref());
    if let Some(at) = there.find(|at| is_live(&at.record)) {
        return Ok(at.record.id());
    }
    for (name, at) in named {
        match at {
            Some(at) if !at.record.ephemeral => {
                let why = "it is no inline ephemeral volume: rename or delete it".to_owned();
                return Err(ControlError::Exists { what: format!("dataset {name}"), why });
            }
            // One of the same pod, deleted and not collected yet.
            Some(_) => continue,
            None => {}
        }
        match pool.catalog.insert_dataset(empty(name, wanted, size)).await {
            Ok(at) => return Ok(at.record.id()),
            // Its collection has not ended.
            Err(CatalogError::InProgress { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let what = format!("inline volume {}", wanted.id);
    Err(ControlError::NameInUse { what, why: "its deletions are not collected yet; retry" })
}

fn empty(name: DatasetName, wanted: &PublishEphemeral, size: u64) -> Dataset {
    let incarnation = Incarnation::random();
    Dataset {
        name,
        incarnation,
        family: FamilyId::from(incarnation),
        origin: None,
        // Its database is made by its first opening.
        state: State::Ready,
        created: Timestamp::now(),
        size: Some(size),
        properties: wanted.properties.clone(),
        access_modes: vec!["SINGLE_NODE_WRITER".to_owned()],
        owner: None,
        handle_secret: rand::random(),
        parameters: BTreeMap::new(),
        snapshot_serial: 0,
        detached: false,
        form: Form::Writable,
        modified: false,
        restoring: None,
        ephemeral: true,
        naming: Default::default(),
    }
}
