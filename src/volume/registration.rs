//! The registration of a reader of a snapshot, which keeps the snapshot for as long as it lasts
//! (R14).

use super::settings::VolumeSettings;
use crate::catalog::{Catalog, CatalogError, Owner, READING_RENEWAL, Reading, Snapshot};
use crate::types::SnapshotId;
use parking_lot::Mutex;
use std::time::Instant;

/// A reader of a snapshot is registered while this lives.
pub(super) struct Registration {
    pool: Catalog,
    /// Taken when the registration ends.
    reading: Mutex<Option<Reading>>,
    renewed: Mutex<Instant>,
}

impl Registration {
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

    /// Renews the registration when it is due. A failure is retried the next time.
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
                    "renewing the registration of a snapshot reader failed; retrying later"
                );
            }
        }
    }

    /// Removes the registration.
    pub async fn end(&self) {
        let reading = self.reading.lock().take();
        if let Some(reading) = reading {
            end(&self.pool, &reading).await;
        }
    }
}

async fn end(pool: &Catalog, reading: &Reading) {
    if let Err(error) = pool.end_reading(reading).await {
        tracing::debug!(
            %error,
            "removing the registration of a snapshot reader failed; it expires within an hour"
        );
    }
}

impl Drop for Registration {
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
