//! Ends a volume's time on this node: first the dataset's record no longer names the node, then the
//! staged record is removed.

use super::super::{ControlError, Pool};
use super::agent::{NodeAgent, State};
use super::endpoint::Endpoints;
use super::record::Record;
use crate::catalog::{Dataset, Owner};
use crate::mount::Mounter;
use crate::types::{Classify, VolumeHandle};
use std::sync::Arc;

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Closes the volume, ensures that the dataset is released, and forgets that it was staged.
    /// Whatever a failed close or opening left behind is finished first: an owner that stays in the
    /// record would keep every other node, and DeleteVolume, from the dataset for ever.
    ///
    /// # Errors
    /// `Unavailable` and the like: retry. Errors that a retry cannot help are logged, and the
    /// record stays for the next start.
    pub(super) async fn let_go(&self, volume: VolumeHandle) -> Result<(), ControlError> {
        let Some(record) = self.records.get(volume.dataset).await? else {
            // Never staged here, as far as this node knows; if it is open all the same, it is
            // closed.
            return Ok(self.volumes.close(volume.dataset).await?);
        };
        match Box::pin(self.release(&record)).await {
            Ok(()) => self.records.remove(volume.dataset).await,
            Err(error) if error.class().may_pass() => Err(error),
            Err(error) => {
                tracing::error!(
                    %volume,
                    %error,
                    "a volume that is not used here any more cannot be closed: it stays this \
                     node's; run check on its dataset"
                );
                Ok(())
            }
        }
    }

    async fn release(&self, record: &Record) -> Result<(), ControlError> {
        let volume = record.volume;
        self.volumes.close(volume.dataset).await?;
        let Some(pool) = self.pools.by_id(volume.pool)? else { return Ok(()) };
        let Some(at) = pool.catalog.dataset_by_id(volume.dataset).await? else { return Ok(()) };
        if !is_ours(record, &self.volumes.owner(), &at.record) {
            return Ok(());
        }
        // The journal is free once no one holds the volume that failed while it was being closed.
        if let State::Staged(staged) = self.state(volume.dataset)
            && self.volumes.get(volume.dataset).is_none()
        {
            self.set(volume.dataset, State::Lost(Arc::new(staged.record.clone())));
        }
        self.close_again(record, pool).await
    }

    /// Opens a volume that the dataset's record names as ours, which replays its journal, then
    /// closes and releases it (R16).
    pub(super) async fn close_again(
        &self,
        record: &Record,
        pool: &Pool,
    ) -> Result<(), ControlError> {
        let (dataset, session) = (record.volume.dataset, self.volumes.settings().session);
        if !record.sessions.contains(&session) {
            // Before the dataset's record names this session: a crash in between must find it among
            // those that are ours.
            let mut claimed = record.clone();
            claimed.sessions.push(session);
            self.records.write(&claimed).await?;
        }
        self.volumes.open(&pool.catalog, dataset).await?;
        Ok(self.volumes.close(dataset).await?)
    }
}

/// R24: the dataset's record names this node, in this run or one that the staged record knows.
pub(super) fn is_ours(record: &Record, me: &Owner, dataset: &Dataset) -> bool {
    let known =
        |owner: &Owner| owner.session == me.session || record.sessions.contains(&owner.session);
    dataset.owner.as_ref().is_some_and(|owner| owner.node == me.node && known(owner))
}
