//! Reading a whole snapshot: restores and comparisons. The snapshot is retained for as long as that
//! takes, even when it is deleted meanwhile (R14); that is the difference to an
//! [`OpenSnapshot`](super::OpenSnapshot), which clients would retain for ever.

use super::VolumeError;
use super::settings::VolumeSettings;
use crate::catalog::{Catalog, CatalogError, Owner, READING_RENEWAL, Reading, Snapshot};
use crate::fs::db::{CheckpointId, Reader};
use crate::fs::{FsError, SnapshotReader};
use crate::types::SnapshotId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Interval at which the announcement is checked for renewal.
const UPKEEP: Duration = Duration::from_secs(30);

/// An announced reader of a snapshot. Dropping it removes the announcement.
pub(super) struct Announced {
    pool: Catalog,
    /// Taken when the announcement ends.
    reading: Mutex<Option<Reading>>,
    renewed: Mutex<Instant>,
}

impl Announced {
    /// # Errors
    /// [`CatalogError::NotFound`] when the snapshot is not ready, or is deleted.
    pub async fn begin(
        pool: &Catalog,
        settings: &VolumeSettings,
        id: SnapshotId,
    ) -> Result<(Self, Snapshot), CatalogError> {
        let me = Owner::new(&settings.node, settings.session);
        let (reading, snapshot) = pool.begin_reading(id, &me).await?;
        let reading = Mutex::new(Some(reading));
        Ok((Self { pool: pool.clone(), reading, renewed: Mutex::new(Instant::now()) }, snapshot))
    }

    /// Renews the announcement when it is due. A failure is retried the next time.
    pub async fn renew(&self) {
        if self.renewed.lock().elapsed() < READING_RENEWAL {
            return;
        }
        let Some(reading) = self.reading.lock().clone() else { return };
        match self.pool.renew_reading(&reading).await {
            Ok(()) => *self.renewed.lock() = Instant::now(),
            Err(error) => {
                tracing::debug!(
                    %error,
                    "renewing the announcement of a snapshot reader failed; retrying later"
                )
            }
        }
    }

    /// Removes the announcement.
    pub async fn end(&self) {
        let reading = self.reading.lock().take();
        if let Some(reading) = reading {
            end(&self.pool, &reading).await;
        }
    }
}

async fn end(pool: &Catalog, reading: &Reading) {
    if let Err(error) = pool.end_reading(reading).await {
        tracing::debug!(%error, "the announcement of a snapshot reader stays for an hour");
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let (Ok(runtime), Some(reading)) =
            (tokio::runtime::Handle::try_current(), self.reading.get_mut().take())
        else {
            return;
        };
        let pool = self.pool.clone();
        runtime.spawn(async move { end(&pool, &reading).await });
    }
}

/// A snapshot that is being read.
pub struct ReadSnapshot {
    view: SnapshotReader,
    snapshot: Snapshot,
    announced: Arc<Announced>,
    _renewing: DropGuard,
}

impl ReadSnapshot {
    /// # Errors
    /// [`CatalogError::NotFound`] when the snapshot is not ready, or is deleted.
    pub async fn open(
        settings: &VolumeSettings,
        pool: &Catalog,
        id: SnapshotId,
    ) -> Result<Self, VolumeError> {
        let (announced, snapshot) = Announced::begin(pool, settings, id).await?;
        let name = snapshot.name.to_string();
        let view = Self::view_of(settings, pool, &snapshot)
            .await
            .map_err(|source| VolumeError::Fs { dataset: name, source })?;
        let (announced, stop) = (Arc::new(announced), CancellationToken::new());
        tokio::spawn({
            let (announced, stop) = (Arc::downgrade(&announced), stop.clone());
            async move {
                while tokio::time::timeout(UPKEEP, stop.cancelled()).await.is_err() {
                    let Some(announced) = announced.upgrade() else { return };
                    announced.renew().await;
                }
            }
        });
        Ok(Self { view, snapshot, announced, _renewing: stop.drop_guard() })
    }

    async fn view_of(
        settings: &VolumeSettings,
        pool: &Catalog,
        snapshot: &Snapshot,
    ) -> Result<SnapshotReader, FsError> {
        let checkpoint = snapshot
            .checkpoint
            .ok_or_else(|| FsError::Internal("a ready snapshot without a checkpoint".to_owned()))?;
        let at = settings.place(pool, snapshot.family, snapshot.dataset.incarnation);
        let chunks = settings.chunks(pool, snapshot.family);
        SnapshotReader::new(Reader::at_checkpoint(&at, CheckpointId(checkpoint)).await?, chunks)
            .await
    }

    pub fn view(&self) -> &SnapshotReader {
        &self.view
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Closes the reader, and no longer retains the snapshot.
    pub async fn close(self) -> Result<(), FsError> {
        let closed = self.view.close().await;
        self.announced.end().await;
        closed
    }
}
