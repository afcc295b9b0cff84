//! The snapshots that this process has open for its clients: opened on demand, closed when idle,
//! bounded in number.
//!
//! ```text
//!          first call                        idle, least recently used, or deleted
//!  (closed) ──────────▶ registered ──▶ open ──────────────────────────────────────▶ closed
//! ```
//! An **open snapshot** is a reader on a snapshot's checkpoint. The snapshot is retained for it
//! either by its registration in the catalog ([`Catalog::begin_reading`]) or by a read-only volume
//! that depends on the snapshot (R14).
//!
//! The deletion of a snapshot that is open is noticed within [`RECHECK`]: from then on it is stale,
//! and is closed, so that nothing is retained for longer than somebody reads. A process that dies
//! leaves registrations, which count for an hour.

use super::registration::Registration;
use super::settings::VolumeSettings;
use crate::catalog::{Catalog, CatalogError, Snapshot, State};
use crate::fs::db::CheckpointId;
use crate::fs::{FsError, SnapshotFs};
use crate::types::{Class, Classify, Incarnation, SnapshotId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

/// Snapshots that may be open in a process, including those that are being opened and closed: each
/// takes memory for a manifest and the indexes of its tables.
const OPEN_MAX: usize = 16;
/// Time that a call waits when the limit is reached.
const WAIT: Duration = Duration::from_secs(20);
/// A snapshot that was not used for this long is closed.
const IDLE: Duration = Duration::from_secs(120);
/// Interval at which a snapshot in use is checked for its deletion.
const RECHECK: Duration = Duration::from_secs(5);
/// The interval of maintenance.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(20);

/// The reason for which a snapshot is retained while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetainedBy {
    /// The registration of its reader. Once the snapshot is deleted, its files are stale.
    Reader,
    /// A read-only volume, which depends on the snapshot until the volume itself is deleted.
    Volume(Incarnation),
}

impl RetainedBy {
    /// Returns whether a snapshot is retained for this reason.
    fn allows(self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Reader => snapshot.state == State::Ready,
            Self::Volume(volume) => {
                matches!(snapshot.state, State::Ready | State::Deleting)
                    && snapshot.dependants.contains(&volume)
            }
        }
    }
}

/// The open snapshots of a process. Cheap to clone.
#[derive(Clone)]
pub struct OpenSnapshots {
    inner: Arc<Inner>,
}

struct Inner {
    settings: VolumeSettings,
    entries: Mutex<HashMap<Key, Arc<CacheEntry>>>,
    permits: Arc<Semaphore>,
    /// Set while the maintenance task runs. Changed under the lock of `entries`.
    maintenance: AtomicBool,
    started: Instant,
}

type Key = (SnapshotId, RetainedBy);

#[derive(Default)]
struct CacheEntry {
    open: OnceCell<Arc<OpenSnapshot>>,
    /// Milliseconds since the start.
    used: AtomicU64,
}

/// A snapshot, open for reading.
pub(super) struct OpenSnapshot {
    snapshot_fs: Arc<SnapshotFs>,
    pool: Catalog,
    key: Key,
    checked: Mutex<Instant>,
    gone: AtomicBool,
    registration: Option<Registration>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for OpenSnapshot {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // The registration ends when nobody reads any longer.
        let (snapshot_fs, registration, permit) =
            (self.snapshot_fs.clone(), self.registration.take(), self.permit.take());
        runtime.spawn(async move {
            if let Err(error) = snapshot_fs.close().await {
                tracing::debug!(%error, "the reader of a snapshot did not close");
            }
            if let Some(registration) = registration {
                registration.end().await;
            }
            drop(permit);
        });
    }
}

impl OpenSnapshot {
    pub fn fs(&self) -> &SnapshotFs {
        &self.snapshot_fs
    }

    /// Checks that the snapshot still exists: one caller at a time, and not often. A store that
    /// does not answer changes nothing.
    async fn check(&self) -> Result<(), FsError> {
        if self.gone.load(Ordering::Acquire) {
            return Err(FsError::Stale);
        }
        {
            let mut checked = self.checked.lock();
            if checked.elapsed() < RECHECK {
                return Ok(());
            }
            *checked = Instant::now();
        }
        let (id, retained_by) = self.key;
        match self.pool.snapshot_by_id(id).await {
            Ok(Some(at)) if retained_by.allows(&at.record) => Ok(()),
            Ok(_) => {
                self.gone.store(true, Ordering::Release);
                Err(FsError::Stale)
            }
            Err(error) => {
                tracing::debug!(
                    snapshot = %id,
                    %error,
                    "cannot determine whether an open snapshot was deleted; retrying later"
                );
                Ok(())
            }
        }
    }

    async fn renew(&self) {
        if let Some(registration) = &self.registration {
            registration.renew().await;
        }
    }
}

impl OpenSnapshots {
    pub(super) fn new(settings: VolumeSettings) -> Self {
        let permits = Arc::new(Semaphore::new(OPEN_MAX));
        Self {
            inner: Arc::new(Inner {
                settings,
                entries: Default::default(),
                permits,
                maintenance: Default::default(),
                started: Instant::now(),
            }),
        }
    }

    /// The open snapshot; opens it if necessary. Not to be kept beyond one call.
    ///
    /// # Errors
    /// [`FsError::Stale`] when the snapshot is deleted, or never was.
    pub(super) async fn get(
        &self,
        pool: &Catalog,
        id: SnapshotId,
        retained_by: RetainedBy,
    ) -> Result<Arc<OpenSnapshot>, FsError> {
        let key = (id, retained_by);
        let entry = self.entry(key);
        let opened = entry.open.get_or_try_init(|| Box::pin(self.open(pool, key))).await;
        let snapshot = match opened {
            Ok(snapshot) => snapshot.check().await.map(|()| snapshot.clone()),
            Err(error) => Err(error),
        };
        match snapshot {
            Ok(snapshot) => {
                self.start_maintenance();
                Ok(snapshot)
            }
            Err(error) => {
                self.forget(key, &entry);
                Err(error)
            }
        }
    }

    /// The number of snapshots that are open or being opened.
    pub fn count(&self) -> usize {
        OPEN_MAX - self.inner.permits.available_permits()
    }

    /// Closes all, and waits a while until they are closed.
    pub async fn close(&self) {
        let entries = std::mem::take(&mut *self.inner.entries.lock());
        drop(entries);
        let all = self.inner.permits.acquire_many(u32::try_from(OPEN_MAX).unwrap_or(u32::MAX));
        if tokio::time::timeout(WAIT, all).await.is_err() {
            tracing::debug!(
                "snapshots are still being read; the registrations of their readers expire within \
                 an hour"
            );
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn entry(&self, key: Key) -> Arc<CacheEntry> {
        let mut entries = self.inner.entries.lock();
        if !entries.contains_key(&key) && entries.len() >= OPEN_MAX {
            let oldest = entries
                .iter()
                .min_by_key(|(_, entry)| entry.used.load(Ordering::Relaxed))
                .map(|(key, _)| *key);
            oldest.map(|key| entries.remove(&key));
        }
        let entry = entries.entry(key).or_default();
        entry.used.store(self.now(), Ordering::Relaxed);
        entry.clone()
    }

    fn forget(&self, key: Key, entry: &Arc<CacheEntry>) {
        let mut entries = self.inner.entries.lock();
        if entries.get(&key).is_some_and(|now| Arc::ptr_eq(now, entry)) {
            entries.remove(&key);
        }
    }

    async fn open(&self, pool: &Catalog, key: Key) -> Result<Arc<OpenSnapshot>, FsError> {
        let (id, retained_by) = key;
        let settings = &self.inner.settings;
        let permit =
            match tokio::time::timeout(WAIT, self.inner.permits.clone().acquire_owned()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) | Err(_) => {
                    return Err(FsError::Busy("too many snapshots are open at the same time"));
                }
            };
        let (registration, snapshot) = match retained_by {
            RetainedBy::Reader => {
                let (registration, snapshot) = Registration::begin(pool, settings, id)
                    .await
                    .map_err(|error| unreadable(&error))?;
                (Some(registration), snapshot)
            }
            RetainedBy::Volume(_) => {
                let found = pool.snapshot_by_id(id).await.map_err(|error| unreadable(&error))?;
                let found =
                    found.map(|at| at.record).filter(|snapshot| retained_by.allows(snapshot));
                (None, found.ok_or(FsError::Stale)?)
            }
        };
        let step = pool.bucket().failpoints().step("volume.snapshot.registered").await;
        step.map_err(|injected| FsError::Unavailable(injected.to_string()))?;
        let checkpoint = snapshot.checkpoint.ok_or(FsError::Stale)?;
        let at = settings.place(pool, snapshot.family, snapshot.dataset.incarnation);
        let chunks = settings.chunks(pool, snapshot.family);
        let snapshot_fs =
            SnapshotFs::open(&at, CheckpointId(checkpoint), chunks, settings.memory.snapshots())
                .await?;
        Ok(Arc::new(OpenSnapshot {
            snapshot_fs: Arc::new(snapshot_fs),
            pool: pool.clone(),
            key,
            checked: Mutex::new(Instant::now()),
            gone: AtomicBool::new(false),
            registration,
            permit: Some(permit),
        }))
    }

    /// Starts the maintenance task unless it runs.
    fn start_maintenance(&self) {
        if self.inner.maintenance.load(Ordering::Relaxed) {
            return;
        }
        let entries = self.inner.entries.lock();
        if entries.is_empty() || self.inner.maintenance.swap(true, Ordering::Relaxed) {
            return;
        }
        drop(entries);
        tokio::spawn(maintenance(Arc::downgrade(&self.inner)));
    }
}

/// Renews registrations, notices deletions, and closes idle snapshots. Ends when none is open.
async fn maintenance(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(MAINTENANCE_INTERVAL).await;
        let Some(inner) = inner.upgrade() else { return };
        let open_snapshots = OpenSnapshots { inner };
        let used = {
            let mut entries = open_snapshots.inner.entries.lock();
            let now = open_snapshots.now();
            let idle = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
            entries
                .retain(|_, entry| now.saturating_sub(entry.used.load(Ordering::Relaxed)) < idle);
            if entries.is_empty() {
                open_snapshots.inner.maintenance.store(false, Ordering::Relaxed);
                return;
            }
            entries.iter().map(|(key, entry)| (*key, entry.clone())).collect::<Vec<_>>()
        };
        for (key, entry) in used {
            let Some(snapshot) = entry.open.get() else { continue };
            match snapshot.check().await {
                Ok(()) => snapshot.renew().await,
                Err(_) => open_snapshots.forget(key, &entry),
            }
        }
    }
}

/// The error of a reader whose snapshot's record cannot be read.
fn unreadable(error: &CatalogError) -> FsError {
    match error.class() {
        Class::NotFound => FsError::Stale,
        Class::Corrupt => FsError::Corrupt(error.to_string()),
        _ => FsError::Unavailable(error.to_string()),
    }
}
