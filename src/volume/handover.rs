//! Handing the volumes over to the next process of this node, and stopping. Neither waits for the
//! store without limit: changes that did not reach it in time are in the journals, and a process
//! that is told to stop and does not is killed, which is no better.
//!
//! The next process goes on as after a crash of this one (R24): the records name this process until
//! it claims them, the journals stay. A hand-over is shorter than a crash because everything is in
//! the store before, where the next opening finds it fastest.

use super::VolumeError;
use super::entry::VolumeEntry;
use super::volumes::Volumes;
use crate::types::DatasetId;
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Volumes flushed at once before a hand-over.
const FLUSHES_AT_ONCE: usize = 8;

impl Volumes {
    /// Flushes every volume so that the next opening is fast, while all go on serving.
    ///
    /// # Errors
    /// The first failure: the store is unreachable.
    pub async fn prepare_handover(&self) -> Result<(), VolumeError> {
        let all = self.list().into_iter().map(|volume| async move {
            let dataset = volume.dataset.name.to_string();
            volume.fs.prepare_handover().await.map_err(|source| VolumeError::Fs { dataset, source })
        });
        let results: Vec<_> =
            futures::stream::iter(all).buffer_unordered(FLUSHES_AT_ONCE).collect().await;
        results.into_iter().collect()
    }

    /// Flushes all volumes in parallel: everything written so far is in the store, and in tables,
    /// so that the next opening has no log to replay.
    ///
    /// # Errors
    /// The first failure (each is logged): the store is unreachable, or takes longer than `limit`.
    pub async fn sync_all(&self, limit: Duration) -> Result<(), VolumeError> {
        let deadline = Instant::now() + limit;
        let syncs = self.list().into_iter().map(|volume| async move {
            let dataset = volume.dataset.name.to_string();
            let synced = match tokio::time::timeout_at(deadline, volume.fs.sync()).await {
                Ok(synced) => {
                    synced.map_err(|source| VolumeError::Fs { dataset: dataset.clone(), source })
                }
                Err(_) => Err(too_slow(&dataset)),
            };
            if let Err(error) = &synced {
                tracing::error!(
                    dataset,
                    %error,
                    "not all changes reached the store: the journal keeps the rest for the next \
                     start"
                );
            } else if !matches!(
                tokio::time::timeout_at(deadline, volume.fs.prepare_handover()).await,
                Ok(Ok(()))
            ) {
                tracing::info!(
                    dataset,
                    "all changes are in the store, but not yet in tables: the next start replays \
                     the \
                     end of the log"
                );
            }
            synced
        });
        futures::future::join_all(syncs).await.into_iter().collect()
    }

    /// Closes and releases these in parallel.
    ///
    /// # Errors
    /// As [`Self::sync_all`]; a volume that is not closed stays this node's, and the next process
    /// replays its journal.
    pub async fn close_within(
        &self,
        datasets: Vec<DatasetId>,
        limit: Duration,
    ) -> Result<(), VolumeError> {
        let closes = datasets.into_iter().map(|dataset| async move {
            let closed = tokio::time::timeout(limit, self.close(dataset)).await;
            let closed = closed.unwrap_or_else(|_| Err(too_slow(&dataset.to_string())));
            if let Err(error) = &closed {
                tracing::error!(
                    %dataset,
                    %error,
                    "the volume was not closed cleanly: the next start on this state directory \
                     recovers it"
                );
            }
            closed
        });
        futures::future::join_all(closes).await.into_iter().collect()
    }

    /// Hands every volume over to the next process of this node, which goes on as after a crash of
    /// this one (R24), and opens none from here on. The records name this process until the next
    /// one claims them. No call may be answered from a volume meanwhile.
    ///
    /// `limit`: for flushing, and as long again for closing the databases.
    ///
    /// # Errors
    /// When a task of a volume is still running: the next process waits for its journal until this
    /// process ends.
    pub async fn hand_over(&self, limit: Duration) -> Result<(), VolumeError> {
        self.inner.handed_over.store(true, Ordering::SeqCst);
        let entries: Vec<Arc<VolumeEntry>> = self.inner.entries.lock().values().cloned().collect();
        let leaves = entries.into_iter().map(|entry| async move {
            let (id, handed_over) =
                (entry.id, tokio::time::timeout(limit * 2, self.hand_over_one(entry, limit)).await);
            handed_over.unwrap_or_else(|_| {
                Err(VolumeError::Io(format!("dataset {id}: timed out closing the database")))
            })
        });
        let results: Vec<_> = futures::future::join_all(leaves).await;
        results.into_iter().collect()
    }

    /// Returns whether [`Self::hand_over`] was called: nothing is opened here from then on.
    pub fn is_handed_over(&self) -> bool {
        self.inner.handed_over.load(Ordering::SeqCst)
    }

    async fn hand_over_one(
        &self,
        entry: Arc<VolumeEntry>,
        limit: Duration,
    ) -> Result<(), VolumeError> {
        // Waits for an opening or a close that has begun.
        let _lock = entry.transition.lock().await;
        let open = entry.hand_over();
        self.forget(&entry);
        let Some(open) = open else { return Ok(()) };
        let handed_over = Box::pin(open.volume.fs.hand_over(limit)).await;
        handed_over.map_err(|source| VolumeError::Fs {
            dataset: open.volume.dataset.name.to_string(),
            source,
        })
    }
}

fn too_slow(dataset: &str) -> VolumeError {
    VolumeError::Io(format!("dataset {dataset}: the object store did not answer in time"))
}
