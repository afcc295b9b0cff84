//! Reading a head or a snapshot that somebody else may own, from one end to the other: restores,
//! comparisons, checks, scrubs, measurements.
//!
//! A snapshot is registered as being read, so that it stays for as long as that takes, whoever
//! deletes it meanwhile (R14); that is the difference to [`OpenSnapshots`](super::OpenSnapshots),
//! which clients would hold for ever. The registration is renewed in the background, and ends with
//! the reader. Where credentials forbid it, a reader that only verifies goes on without: what it
//! then misses may have been collected, so it believes a finding only while the record is there.
//!
//! Nothing protects a head: it is one state however long it is read, but an hour after its objects
//! became obsolete reading may fail, and says so. The collector reads without a registration too,
//! because only collectors remove what it reads.

use super::VolumeError;
use super::registration::Registration;
use super::settings::VolumeSettings;
use crate::catalog::{Catalog, CatalogError, Dataset, Snapshot, State};
use crate::chunk::ChunkStore;
use crate::fs::db::{self, CheckpointId, Reader};
use crate::fs::{FsError, SnapshotFs};
use crate::types::{Class, Classify, SnapshotId};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Between checks whether the registration has to be renewed.
const RENEWAL_CHECK: Duration = Duration::from_secs(30);

/// The rows of a head or of a snapshot.
pub struct RootReader {
    reader: Reader,
    chunks: ChunkStore,
    registration: Option<RenewedRegistration>,
}

/// The files of a head or of a snapshot.
pub struct RootView {
    view: SnapshotFs,
    registration: Option<RenewedRegistration>,
}

/// A registration that is renewed while this lives.
struct RenewedRegistration {
    registration: Arc<Registration>,
    _renewing: DropGuard,
}

impl RenewedRegistration {
    fn new(registration: Registration) -> Self {
        let (registration, stop) = (Arc::new(registration), CancellationToken::new());
        tokio::spawn({
            let (registration, stop) = (Arc::downgrade(&registration), stop.clone());
            async move {
                while tokio::time::timeout(RENEWAL_CHECK, stop.cancelled()).await.is_err() {
                    let Some(registration) = registration.upgrade() else { return };
                    registration.renew().await;
                }
            }
        });
        Self { registration, _renewing: stop.drop_guard() }
    }
}

impl RootReader {
    /// The newest durable state of a dataset; `None`: it was never opened.
    pub async fn head(
        settings: &VolumeSettings,
        pool: &Catalog,
        dataset: &Dataset,
    ) -> Result<Option<Self>, VolumeError> {
        let place = settings.place(pool, dataset.family, dataset.incarnation);
        let opened = async {
            match db::exists(&place).await? {
                true => Reader::newest(&place).await.map(Some),
                false => Ok(None),
            }
        };
        let reader = opened.await.map_err(failed(dataset.name.as_str()))?;
        let chunks = settings.chunks(pool, dataset.family);
        Ok(reader.map(|reader| Self { reader, chunks, registration: None }))
    }

    /// A snapshot, and its record.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when it is not ready, or
    /// no longer.
    pub async fn snapshot(
        settings: &VolumeSettings,
        pool: &Catalog,
        id: SnapshotId,
    ) -> Result<(Self, Snapshot), VolumeError> {
        let (registration, snapshot) = Registration::begin(pool, settings, id).await?;
        Self::at(settings, pool, snapshot, Some(RenewedRegistration::new(registration))).await
    }

    /// As [`Self::snapshot`], without being registered ([`Self::is_registered`]) where the
    /// credentials forbid that. For callers that verify: the snapshot may be collected meanwhile.
    pub async fn snapshot_to_verify(
        settings: &VolumeSettings,
        pool: &Catalog,
        id: SnapshotId,
    ) -> Result<(Self, Snapshot), VolumeError> {
        match Registration::begin(pool, settings, id).await {
            Ok((registration, snapshot)) => {
                Self::at(settings, pool, snapshot, Some(RenewedRegistration::new(registration)))
                    .await
            }
            Err(error) if error.class() == Class::Denied => {
                let found = pool.snapshot_by_id(id).await?.map(|at| at.record);
                let missing = || CatalogError::NotFound { what: format!("snapshot {id}") };
                let snapshot = found.filter(|it| it.state == State::Ready).ok_or_else(missing)?;
                Self::at(settings, pool, snapshot, None).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A snapshot without being registered, for callers that look afterwards whether its record is
    /// still there: while it is being collected, a state of before may be read, or an error.
    pub async fn snapshot_unregistered(
        settings: &VolumeSettings,
        pool: &Catalog,
        snapshot: Snapshot,
    ) -> Result<Self, VolumeError> {
        Ok(Self::at(settings, pool, snapshot, None).await?.0)
    }

    async fn at(
        settings: &VolumeSettings,
        pool: &Catalog,
        snapshot: Snapshot,
        registration: Option<RenewedRegistration>,
    ) -> Result<(Self, Snapshot), VolumeError> {
        let place = settings.place(pool, snapshot.family, snapshot.dataset.incarnation);
        let opened = match snapshot.checkpoint {
            Some(checkpoint) => {
                Box::pin(Reader::at_checkpoint(&place, CheckpointId(checkpoint))).await
            }
            None => Err(FsError::Corrupt("it is ready but names no checkpoint".to_owned())),
        };
        let reader = match opened {
            Ok(reader) => reader,
            Err(error) => {
                end(registration.as_ref()).await;
                return Err(failed(snapshot.name.as_str())(error));
            }
        };
        let chunks = settings.chunks(pool, snapshot.family);
        Ok((Self { reader, chunks, registration }, snapshot))
    }

    pub fn rows(&self) -> &Reader {
        &self.reader
    }

    /// Returns whether a snapshot stays while it is read. A head never does.
    pub fn is_registered(&self) -> bool {
        self.registration.is_some()
    }

    /// The files instead of the rows.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when the database has no superblock.
    pub async fn into_view(self) -> Result<RootView, FsError> {
        match SnapshotFs::new(self.reader, self.chunks).await {
            Ok(view) => Ok(RootView { view, registration: self.registration }),
            Err(error) => {
                end(self.registration.as_ref()).await;
                Err(error)
            }
        }
    }

    pub async fn close(self) -> Result<(), FsError> {
        let closed = self.reader.close().await;
        end(self.registration.as_ref()).await;
        closed
    }
}

impl RootView {
    pub fn files(&self) -> &SnapshotFs {
        &self.view
    }

    /// Ends the registration; nothing can be read any longer.
    pub async fn close(&self) -> Result<(), FsError> {
        let closed = self.view.close().await;
        end(self.registration.as_ref()).await;
        closed
    }
}

async fn end(registration: Option<&RenewedRegistration>) {
    if let Some(registration) = registration {
        registration.registration.end().await;
    }
}

fn failed(name: &str) -> impl FnOnce(FsError) -> VolumeError {
    let dataset = name.to_owned();
    |source| VolumeError::Fs { dataset, source }
}
