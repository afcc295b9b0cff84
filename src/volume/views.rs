//! The snapshots that this process reads: opened on demand, closed when idle, bounded.
//!
//! ```text
//!             first call                         idle, least recently used, or deleted
//!  (closed) ─────────────▶ announced ─▶ open ────────────────────────────────────────▶ closed, unannounced
//! ```
//! A **view** is a reader on a snapshot's checkpoint. The snapshot is retained for it either by its
//! announcement in the catalog ([`Catalog::begin_reading`]) or by a read-only volume that depends
//! on the snapshot (R14).
//!
//! A snapshot that is deleted while it is read is noticed within [`RECHECKED`]: its view is stale
//! from then on and is released, so that nothing is retained for longer than it is read. A process
//! that dies leaves announcements, which count for an hour.

use super::reading::Announced;
use super::settings::VolumeSettings;
use crate::catalog::{Catalog, CatalogError, Snapshot, State};
use crate::fs::db::CheckpointId;
use crate::fs::{Frozen, FsError};
use crate::types::{Class, Classify, Incarnation, SnapshotId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

/// Most views of a process, including those being opened and closed: each is a manifest and the
/// indexes of its tables.
const VIEWS_MAX: usize = 16;
/// Time that a call waits for one of them to be free.
const WAIT: Duration = Duration::from_secs(20);
/// A view that was not used for this long is closed.
const IDLE: Duration = Duration::from_secs(120);
/// Interval at which a view in use checks whether its snapshot still exists.
const RECHECKED: Duration = Duration::from_secs(5);
/// Interval of the maintenance of all views.
const UPKEEP: Duration = Duration::from_secs(20);

/// The dependant that retains the snapshot while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keeper {
    /// An announcement of the view's own. Once the snapshot is deleted the view is stale.
    Reader,
    /// A read-only volume, which depends on the snapshot until the volume itself is deleted.
    Volume(Incarnation),
}

impl Keeper {
    /// Returns whether a snapshot may be read under this dependant.
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

/// Every view of a process. Cheap to clone.
#[derive(Clone)]
pub struct Views {
    inner: Arc<Inner>,
}

struct Inner {
    settings: VolumeSettings,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    permits: Arc<Semaphore>,
    /// A task looks after the slots. Set and cleared under the lock of `slots`.
    upkeep: AtomicBool,
    started: Instant,
}

type Key = (SnapshotId, Keeper);

#[derive(Default)]
struct Slot {
    view: OnceCell<Arc<View>>,
    /// Milliseconds since the start.
    used: AtomicU64,
}

/// A snapshot, open for reading.
pub struct View {
    frozen: Arc<Frozen>,
    pool: Catalog,
    key: Key,
    checked: Mutex<Instant>,
    gone: AtomicBool,
    announced: Option<Announced>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for View {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // The announcement is removed when no reader is left.
        let (frozen, announced, permit) =
            (self.frozen.clone(), self.announced.take(), self.permit.take());
        runtime.spawn(async move {
            if let Err(error) = frozen.close().await {
                tracing::debug!(%error, "the reader of a snapshot did not close");
            }
            if let Some(announced) = announced {
                announced.end().await;
            }
            drop(permit);
        });
    }
}

impl View {
    pub fn fs(&self) -> &Frozen {
        &self.frozen
    }

    /// Checks whether the snapshot still exists, in the catalog, by one caller at a time and not
    /// often. While the store does not answer, the last result holds.
    async fn check(&self) -> Result<(), FsError> {
        if self.gone.load(Ordering::Acquire) {
            return Err(FsError::Stale);
        }
        {
            let mut checked = self.checked.lock();
            if checked.elapsed() < RECHECKED {
                return Ok(());
            }
            *checked = Instant::now();
        }
        let (id, keeper) = self.key;
        match self.pool.snapshot_by_id(id).await {
            Ok(Some(at)) if keeper.allows(&at.record) => Ok(()),
            Ok(_) => {
                self.gone.store(true, Ordering::Release);
                Err(FsError::Stale)
            }
            Err(error) => {
                tracing::debug!(
                    snapshot = %id,
                    %error,
                    "whether a snapshot that is read is still there is not known now"
                );
                Ok(())
            }
        }
    }

    async fn renew(&self) {
        if let Some(announced) = &self.announced {
            announced.renew().await;
        }
    }
}

impl Views {
    pub(super) fn new(settings: VolumeSettings) -> Self {
        let permits = Arc::new(Semaphore::new(VIEWS_MAX));
        let (slots, upkeep) = Default::default();
        Self {
            inner: Arc::new(Inner { settings, slots, permits, upkeep, started: Instant::now() }),
        }
    }

    /// The view of a snapshot, opened if need be. Not to be kept beyond one call.
    ///
    /// # Errors
    /// [`FsError::Stale`] when the snapshot is deleted, or never was.
    pub async fn get(
        &self,
        pool: &Catalog,
        id: SnapshotId,
        keeper: Keeper,
    ) -> Result<Arc<View>, FsError> {
        let key = (id, keeper);
        let slot = self.slot(key);
        let opened = slot.view.get_or_try_init(|| Box::pin(self.open(pool, key))).await;
        let view = match opened {
            Ok(view) => view.check().await.map(|()| view.clone()),
            Err(error) => Err(error),
        };
        match view {
            Ok(view) => {
                self.look_after();
                Ok(view)
            }
            Err(error) => {
                self.forget(key, &slot);
                Err(error)
            }
        }
    }

    /// Views that are open or being opened.
    pub fn count(&self) -> usize {
        VIEWS_MAX - self.inner.permits.available_permits()
    }

    /// Lets go of all, and waits until they are closed, for a while.
    pub async fn close(&self) {
        let slots = std::mem::take(&mut *self.inner.slots.lock());
        drop(slots);
        let all = self.inner.permits.acquire_many(u32::try_from(VIEWS_MAX).unwrap_or(u32::MAX));
        if tokio::time::timeout(WAIT, all).await.is_err() {
            tracing::debug!(
                "snapshots are still being read; what announces their readers stays for an hour"
            );
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.inner.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut slots = self.inner.slots.lock();
        if !slots.contains_key(&key) && slots.len() >= VIEWS_MAX {
            let oldest = slots
                .iter()
                .min_by_key(|(_, slot)| slot.used.load(Ordering::Relaxed))
                .map(|(key, _)| *key);
            oldest.map(|key| slots.remove(&key));
        }
        let slot = slots.entry(key).or_default();
        slot.used.store(self.now(), Ordering::Relaxed);
        slot.clone()
    }

    fn forget(&self, key: Key, slot: &Arc<Slot>) {
        let mut slots = self.inner.slots.lock();
        if slots.get(&key).is_some_and(|now| Arc::ptr_eq(now, slot)) {
            slots.remove(&key);
        }
    }

    async fn open(&self, pool: &Catalog, key: Key) -> Result<Arc<View>, FsError> {
        let (id, keeper) = key;
        let settings = &self.inner.settings;
        let permit =
            match tokio::time::timeout(WAIT, self.inner.permits.clone().acquire_owned()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) | Err(_) => {
                    return Err(FsError::Busy("too many snapshots are read at the same time"));
                }
            };
        let (announced, snapshot) = match keeper {
            Keeper::Reader => {
                let (announced, snapshot) = Announced::begin(pool, settings, id)
                    .await
                    .map_err(|error| unreadable(&error))?;
                (Some(announced), snapshot)
            }
            Keeper::Volume(_) => {
                let found = pool.snapshot_by_id(id).await.map_err(|error| unreadable(&error))?;
                let found = found.map(|at| at.record).filter(|snapshot| keeper.allows(snapshot));
                (None, found.ok_or(FsError::Stale)?)
            }
        };
        let step = pool.bucket().failpoints().step("volume.view.announced").await;
        step.map_err(|injected| FsError::Unavailable(injected.to_string()))?;
        let checkpoint = snapshot.checkpoint.ok_or(FsError::Stale)?;
        let at = settings.place(pool, snapshot.family, snapshot.dataset.incarnation);
        let chunks = settings.chunks(pool, snapshot.family);
        let frozen =
            Frozen::open(&at, CheckpointId(checkpoint), chunks, settings.memory.frozen()).await?;
        Ok(Arc::new(View {
            frozen: Arc::new(frozen),
            pool: pool.clone(),
            key,
            checked: Mutex::new(Instant::now()),
            gone: AtomicBool::new(false),
            announced,
            permit: Some(permit),
        }))
    }

    /// Starts the upkeep unless it runs.
    fn look_after(&self) {
        if self.inner.upkeep.load(Ordering::Relaxed) {
            return;
        }
        let slots = self.inner.slots.lock();
        if slots.is_empty() || self.inner.upkeep.swap(true, Ordering::Relaxed) {
            return;
        }
        drop(slots);
        tokio::spawn(upkeep(Arc::downgrade(&self.inner)));
    }
}

/// Renews announcements, notices deletions, closes idle views. Ends when no view is left.
async fn upkeep(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        let Some(inner) = inner.upgrade() else { return };
        let views = Views { inner };
        let used = {
            let mut slots = views.inner.slots.lock();
            let now = views.now();
            let idle = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
            slots.retain(|_, slot| now.saturating_sub(slot.used.load(Ordering::Relaxed)) < idle);
            if slots.is_empty() {
                views.inner.upkeep.store(false, Ordering::Relaxed);
                return;
            }
            slots.iter().map(|(key, slot)| (*key, slot.clone())).collect::<Vec<_>>()
        };
        for (key, slot) in used {
            let Some(view) = slot.view.get() else { continue };
            match view.check().await {
                Ok(()) => view.renew().await,
                Err(_) => views.forget(key, &slot),
            }
        }
    }
}

/// Maps an error of reading the record to the error for the snapshot's readers.
fn unreadable(error: &CatalogError) -> FsError {
    match error.class() {
        Class::NotFound => FsError::Stale,
        Class::Corrupt => FsError::Corrupt(error.to_string()),
        _ => FsError::Unavailable(error.to_string()),
    }
}
