//! Discarding a volume: the dataset is deleted together with what this node has of it.
//!
//! ```text
//! stop its file system ─▶ the record says deleted, and names no owner ─▶ remove the journal
//! ```
//! Nothing is flushed and no database is opened, so that neither damage nor a full store keeps the
//! volume. Two states of the record would not do: a dataset that is merely released counts as
//! closed in order (R16), and somebody could open it before it is deleted. Once it is deleted nobody
//! opens it, so that its journal is never replayed: the tombstone is what makes it void (R34). The
//! collector fences the database before it removes it.
//!
//! A crash leaves the claim, which the next process of the node discards in the same way, and then
//! the journal, which is obsolete.

use super::entry::VolumeEntry;
use super::lifecycle::CloseReason;
use super::volumes::{ABANDON_LIMIT, Volumes};
use super::{VolumeError, journals};
use crate::catalog::Catalog;
use crate::fs::journal;
use crate::types::DatasetId;

impl Volumes {
    /// Stops a volume and tombstones its dataset, if this node owns it, whether it is open or not.
    /// Owned by nobody or by another counts as discarded. After a failure it is retried by a task,
    /// and by the next call.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn discard(&self, pool: &Catalog, dataset: DatasetId) -> Result<(), VolumeError> {
        if self.find(dataset).is_none() {
            self.adopt_any(pool, dataset).await?;
        }
        self.close_for(dataset, CloseReason::Discarded).await.map(drop)
    }

    /// Makes an entry for a dataset that this session owns, or an earlier one of its journal
    /// directory that has ended.
    async fn adopt_any(&self, pool: &Catalog, dataset: DatasetId) -> Result<(), VolumeError> {
        let Some(at) = pool.dataset_by_id(dataset).await? else { return Ok(()) };
        let me = self.owner_with_journals().await?;
        let claim = match self.own_claim(&at.record) {
            Some(claim) => Some(claim),
            None => {
                let stopped = self.stopped_here(pool, &at.record, &me).await?;
                stopped.map(|stopped| stopped.owner().claim)
            }
        };
        match claim {
            Some(claim) => self.adopt(pool, dataset, claim).await,
            None => Ok(()),
        }
    }

    pub(super) async fn stop_discarded(&self, entry: &VolumeEntry) {
        if let Some(open) = entry.open() {
            open.volume.fs.abandon_within(ABANDON_LIMIT).await;
        }
        entry.discarded();
    }

    /// Removes the journal of a dataset that is deleted. One that cannot be removed is obsolete,
    /// and a later start removes it.
    pub(super) async fn remove_journal(&self, entry: &VolumeEntry) {
        let Some(dir) = &self.settings().journal_dir else { return };
        let at = journals::path(dir, &entry.pool, entry.id);
        let removed = tokio::task::spawn_blocking(move || journal::remove(&at)).await;
        if !matches!(removed, Ok(Ok(true))) {
            tracing::debug!(dataset = %entry.id, ?removed, "an obsolete journal stays for now");
        }
    }
}
