//! Leaves the volumes to the next process of this node, or because this one stops. Neither waits
//! for the store indefinitely: changes that did not reach it in time are in the journals, and a
//! process that does not stop when asked is killed, which is no better.
//!
//! The next process goes on with them as after a crash of this one (R24): the records name this
//! process until it claims them, the journals stay. It is faster than after a crash because
//! everything is in the store before, and where the next opening finds it fastest.

use super::VolumeError;
use super::place::Place;
use super::volumes::{CLOSES_AT_ONCE, Volumes};
use crate::types::DatasetId;
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

impl Volumes {
    /// Flushes every volume to where the next opening finds it fastest, while all go on serving.
    ///
    /// # Errors
    /// The first failure: the store is unreachable.
    pub async fn prepare_to_leave(&self) -> Result<(), VolumeError> {
        let all = self.list().into_iter().map(|volume| async move {
            let dataset = volume.dataset.name.to_string();
            volume.fs.prepare_to_leave().await.map_err(|source| VolumeError::Fs { dataset, source })
        });
        let results: Vec<_> =
            futures::stream::iter(all).buffer_unordered(CLOSES_AT_ONCE).collect().await;
        results.into_iter().collect()
    }

    /// Flushes everything written so far to the store, of all volumes concurrently, and to where
    /// the next opening finds it fastest: into tables, so that there is no log to replay.
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
                    "not everything is in the store: the journal keeps it for the next start"
                );
            } else if !matches!(
                tokio::time::timeout_at(deadline, volume.fs.prepare_to_leave()).await,
                Ok(Ok(()))
            ) {
                tracing::info!(
                    dataset,
                    "everything is in the store, but not yet in tables: the next start replays the \
                     log's end"
                );
            }
            synced
        });
        futures::future::join_all(syncs).await.into_iter().collect()
    }

    /// Closes and releases these concurrently.
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
                    "a volume was not closed cleanly: the next start on this state folder recovers \
                     it"
                );
            }
            closed
        });
        futures::future::join_all(closes).await.into_iter().collect()
    }

    /// Detaches from every volume, and opens no other: the next process of this node goes on with
    /// them, as after a crash of this one (R24). The records continue to name this process until
    /// the next one claims them. No call may be answered from a volume meanwhile.
    ///
    /// `limit`: time for flushing the rest to the store, and again for detaching.
    ///
    /// # Errors
    /// When a task of a volume still runs: the next process waits for its journal until this one
    /// ends.
    pub async fn leave(&self, limit: Duration) -> Result<(), VolumeError> {
        self.inner.left.store(true, Ordering::SeqCst);
        let places: Vec<Arc<Place>> = self.inner.places.lock().values().cloned().collect();
        let leaves = places.into_iter().map(|place| async move {
            let (id, left) =
                (place.id, tokio::time::timeout(limit * 2, self.leave_one(place, limit)).await);
            left.unwrap_or_else(|_| {
                Err(VolumeError::Io(format!(
                    "dataset {id}: the store does not let go of it in time"
                )))
            })
        });
        let results: Vec<_> = futures::future::join_all(leaves).await;
        results.into_iter().collect()
    }

    /// Returns whether [`Self::leave`] was called: nothing is ever opened here again.
    pub fn have_left(&self) -> bool {
        self.inner.left.load(Ordering::SeqCst)
    }

    async fn leave_one(&self, place: Arc<Place>, limit: Duration) -> Result<(), VolumeError> {
        // Waits for an opening, or an attempt to close it, that had begun.
        let _turn = place.turn.lock().await;
        let open = place.leave();
        self.forget(&place);
        let Some(open) = open else { return Ok(()) };
        let left = Box::pin(open.volume.fs.leave(limit)).await;
        left.map_err(|source| VolumeError::Fs {
            dataset: open.volume.dataset.name.to_string(),
            source,
        })
    }
}

fn too_slow(dataset: &str) -> VolumeError {
    VolumeError::Io(format!("dataset {dataset}: the object store is too slow, or away"))
}
