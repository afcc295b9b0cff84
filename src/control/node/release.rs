//! Releasing a volume: the dataset's record no longer names the node, then the staged record is
//! removed.

use super::super::{ControlError, Pool};
use super::agent::{NodeAgent, StageState};
use super::endpoint::Endpoints;
use super::record::StagedRecord;
use crate::catalog::{Dataset, Owner};
use crate::mount::Mounter;
use crate::types::{Classify, VolumeHandle};
use std::sync::Arc;

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Closes the volume, makes sure that the dataset is released, and removes the staged record. A
    /// failed close or opening is repaired first: an owner that stays would keep every other node,
    /// and DeleteVolume, from the dataset for ever.
    ///
    /// # Errors
    /// Retryable ones. An error that a retry cannot help is logged, and the record stays for the
    /// next start.
    pub(super) async fn release(&self, volume: VolumeHandle) -> Result<(), ControlError> {
        let Some(record) = self.records.get(volume.dataset).await? else {
            // Not staged here, as far as this node knows; a volume that is open all the same is
            // closed.
            return Ok(self.volumes.close(volume.dataset).await?);
        };
        match Box::pin(self.release_dataset(&record)).await {
            Ok(()) => self.records.remove(volume.dataset).await,
            Err(error) if error.class().may_pass() => Err(error),
            Err(error) => {
                tracing::error!(
                    %volume,
                    %error,
                    "an unused volume cannot be closed and this node still owns it: run `check` on \
                     its dataset"
                );
                Ok(())
            }
        }
    }

    async fn release_dataset(&self, record: &StagedRecord) -> Result<(), ControlError> {
        let volume = record.volume;
        self.volumes.close(volume.dataset).await?;
        let Some(pool) = self.pools.by_id(volume.pool)? else { return Ok(()) };
        let Some(at) = pool.catalog.dataset_by_id(volume.dataset).await? else { return Ok(()) };
        if !is_ours(record, &self.volumes.owner(), &at.record) {
            return Ok(());
        }
        if self.volumes.get(volume.dataset).is_some() {
            // Opened again since, by an export of `serve`, which closes it when it is idle.
            return Ok(());
        }
        // The journal is unlocked once nobody holds the volume that failed to close.
        if let StageState::Staged(staged) = self.state(volume.dataset) {
            self.set(volume.dataset, StageState::Lost(Arc::new(staged.record.clone())));
        }
        self.close_again(record, pool).await
    }

    /// Opens the volume again, which replays its journal, then closes and releases it (R16).
    pub(super) async fn close_again(
        &self,
        record: &StagedRecord,
        pool: &Pool,
    ) -> Result<(), ControlError> {
        let (dataset, session) = (record.volume.dataset, self.volumes.settings().session);
        if !record.sessions.contains(&session) {
            // Written before the dataset's record names this session: after a crash in between, the
            // next process must know the session as one of this node's.
            let mut claimed = record.clone();
            claimed.sessions.push(session);
            self.records.write(&claimed).await?;
        }
        self.volumes.open(&pool.catalog, dataset).await?;
        Ok(self.volumes.close(dataset).await?)
    }
}

/// Returns whether the dataset's record names this node, with this session or one of the staged
/// record (R24).
pub(super) fn is_ours(record: &StagedRecord, me: &Owner, dataset: &Dataset) -> bool {
    let known =
        |owner: &Owner| owner.session == me.session || record.sessions.contains(&owner.session);
    dataset.owner.as_ref().is_some_and(|owner| owner.node == me.node && known(owner))
}
