//! The roots that are open for reading: opened on demand, shared, closed when idle, bounded in
//! number.
//!
//! ```text
//!            open                 last guard dropped            idle, or one of too many
//!  (closed) ─────▶ open, in use ─────────────────────▶ cached ─────────────────────────▶ closed
//! ```
//! A listing or a small read right after another one so asks the store for nothing but data. A head
//! is opened again once its state is older than [`HEAD_AGE_MAX`], or when whoever changed it says
//! so ([`super::Browser::forget_head`]); whoever reads the older one goes on.

use super::{Root, refused};
use crate::catalog::{Dataset, Form, Snapshot};
use crate::control::{ControlError, Pool};
use crate::fs::SnapshotFs;
use crate::types::{Class, DatasetId, Incarnation, SnapshotId};
use crate::volume::{RootReader, RootView, Volumes};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

/// Roots that stay open for the next reader: each takes memory for a manifest and the indexes of
/// its tables.
const CACHED_MAX: usize = 16;
/// Roots that may be open, including those that are in use and those that are being closed.
const OPEN_MAX: usize = 64;
/// Time that a call waits at that limit.
const WAIT: Duration = Duration::from_secs(20);
/// A root that was not used for this long is closed.
pub const IDLE: Duration = Duration::from_secs(60);
/// The state of a head that is older than this is read again.
const HEAD_AGE_MAX: Duration = Duration::from_secs(3);
/// Interval at which idle roots are looked for.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Snapshot(SnapshotId),
    Head(DatasetId),
}

impl Key {
    fn of(root: &Root) -> Self {
        match root {
            Root::Snapshot(snapshot) => Self::Snapshot(snapshot.id()),
            Root::Head(dataset) => Self::Head(dataset.id()),
        }
    }
}

/// The open roots of one pool. Cheap to clone.
#[derive(Clone)]
pub(super) struct OpenRoots {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    volumes: Volumes,
    entries: Mutex<HashMap<Key, Arc<CacheEntry>>>,
    permits: Arc<Semaphore>,
    /// Openings and closings in progress.
    closing: TaskTracker,
    /// Set while the task that looks for idle roots runs. Changed under the lock of `entries`.
    looking: AtomicBool,
}

/// A place in the cache. Counted more than once while somebody uses it.
struct CacheEntry {
    opened: OnceCell<Arc<Opened>>,
    used: Mutex<Instant>,
}

impl CacheEntry {
    fn new() -> Arc<Self> {
        Arc::new(Self { opened: OnceCell::new(), used: Mutex::new(Instant::now()) })
    }

    fn is_stale(&self) -> bool {
        self.opened
            .get()
            .is_some_and(|opened| opened.is_head && opened.since.elapsed() > HEAD_AGE_MAX)
    }
}

struct Opened {
    view: Arc<RootView>,
    dataset: Incarnation,
    is_head: bool,
    since: Instant,
    closing: TaskTracker,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (view, permit) = (self.view.clone(), self.permit.take());
        let closing = async move {
            if let Err(error) = view.close().await {
                tracing::debug!(%error, "the reader of a dataset or snapshot did not close");
            }
            drop(permit);
        };
        self.closing.spawn_on(closing, &runtime);
    }
}

/// An open root: it stays open while this lives. Cheap to clone.
#[derive(Clone)]
pub struct OpenRoot {
    opened: Arc<Opened>,
    entry: Arc<CacheEntry>,
}

impl OpenRoot {
    pub fn files(&self) -> &SnapshotFs {
        self.opened.view.files()
    }

    /// The dataset whose files these are, for the tags of their states.
    pub(super) fn dataset(&self) -> Incarnation {
        self.opened.dataset
    }
}

impl Drop for OpenRoot {
    fn drop(&mut self) {
        *self.entry.used.lock() = Instant::now();
    }
}

impl super::Browser {
    /// The files of a root, from the cache of open ones.
    ///
    /// # Errors
    /// `NotFound` when the root was deleted, or is empty; `Exhausted` while too many are open.
    pub async fn open(&self, root: &Root) -> Result<OpenRoot, ControlError> {
        self.open.get(root).await
    }

    /// As [`Self::open`], in the state that the store has now: for decisions that a state of some
    /// seconds ago would make wrong.
    pub async fn open_now(&self, root: &Root) -> Result<OpenRoot, ControlError> {
        if let Root::Head(dataset) = root {
            self.forget_head(dataset.id());
        }
        self.open.get(root).await
    }

    /// The head of this dataset has changed: the next reader opens it again.
    pub fn forget_head(&self, dataset: DatasetId) {
        let forgotten = self.open.inner.entries.lock().remove(&Key::Head(dataset));
        // Dropped outside of the lock.
        drop(forgotten);
    }

    /// The files of a snapshot that is not registered as being read, which saves four of ten
    /// requests: see [`RootReader::snapshot_unregistered`]. The caller closes it.
    pub(super) async fn open_unregistered(
        &self,
        snapshot: &Snapshot,
    ) -> Result<(RootView, OwnedSemaphorePermit), ControlError> {
        let permit = self.open.permit().await?;
        let Inner { pool, volumes, .. } = &*self.open.inner;
        let (settings, catalog) = (volumes.settings(), &pool.catalog);
        let opened = RootReader::snapshot_unregistered(settings, catalog, snapshot.clone());
        Ok((Box::pin(opened).await?.into_view().await?, permit))
    }

    /// The root, if it is open already.
    pub(super) fn cached(&self, root: &Root) -> Option<OpenRoot> {
        self.open.cached(root)
    }

    /// As [`Self::open`], for a caller that goes through many roots: one that is not open already
    /// is closed with its guard, so that those that others use stay open.
    pub(super) async fn open_once(&self, root: &Root) -> Result<OpenRoot, ControlError> {
        match self.open.cached(root) {
            Some(open) => Ok(open),
            None => {
                let opened = Arc::new(self.open.begin(root).await?);
                Ok(OpenRoot { opened, entry: CacheEntry::new() })
            }
        }
    }
}

impl OpenRoots {
    pub fn new(pool: &Pool, volumes: &Volumes) -> Self {
        Self {
            inner: Arc::new(Inner {
                pool: pool.clone(),
                volumes: volumes.clone(),
                entries: Mutex::default(),
                permits: Arc::new(Semaphore::new(OPEN_MAX)),
                closing: TaskTracker::new(),
                looking: AtomicBool::new(false),
            }),
        }
    }

    fn cached(&self, root: &Root) -> Option<OpenRoot> {
        let entry = self.inner.entries.lock().get(&Key::of(root))?.clone();
        let opened = entry.opened.get().filter(|_| !entry.is_stale())?.clone();
        Some(OpenRoot { opened, entry })
    }

    async fn get(&self, root: &Root) -> Result<OpenRoot, ControlError> {
        let key = Key::of(root);
        let entry = self.entry(key);
        let opening =
            entry.opened.get_or_try_init(|| async { self.begin(root).await.map(Arc::new) });
        match opening.await.cloned() {
            Ok(opened) => Ok(OpenRoot { opened, entry }),
            Err(error) => {
                let mut entries = self.inner.entries.lock();
                if entries.get(&key).is_some_and(|now| Arc::ptr_eq(now, &entry)) {
                    entries.remove(&key);
                }
                Err(error)
            }
        }
    }

    /// The entry of a root, which is new if the root is not open or its state is too old.
    fn entry(&self, key: Key) -> Arc<CacheEntry> {
        let mut closed = Vec::new();
        let entry = {
            let mut entries = self.inner.entries.lock();
            match entries.get(&key) {
                Some(entry) if !entry.is_stale() => entry.clone(),
                _ => {
                    let entry = CacheEntry::new();
                    closed.extend(entries.insert(key, entry.clone()));
                    closed.extend(evict(&mut entries));
                    if !self.inner.looking.swap(true, Ordering::AcqRel) {
                        tokio::spawn(close_idle(Arc::downgrade(&self.inner)));
                    }
                    entry
                }
            }
        };
        // Dropped outside of the lock.
        drop(closed);
        entry
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, ControlError> {
        let permits = self.inner.permits.clone();
        match tokio::time::timeout(WAIT, permits.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                let why =
                    format!("{OPEN_MAX} datasets and snapshots are being read at once: retry");
                Err(refused(Class::Exhausted, why))
            }
        }
    }

    async fn begin(&self, root: &Root) -> Result<Opened, ControlError> {
        let permit = self.permit().await?;
        let Inner { pool, volumes, closing, .. } = &*self.inner;
        let (pool, volumes, root) = (pool.clone(), volumes.clone(), root.clone());
        // A task of its own: whoever goes away while a snapshot is being registered or opened
        // leaves nothing behind, since it is closed then, which `close` waits for.
        let (to, opened) = oneshot::channel();
        let tracked = closing.clone();
        closing.spawn(async move {
            let opened = async {
                Ok::<_, ControlError>(Opened {
                    view: Arc::new(reader(&pool, &volumes, &root).await?.into_view().await?),
                    dataset: root.dataset().incarnation,
                    is_head: matches!(root, Root::Head(_)),
                    since: Instant::now(),
                    closing: tracked,
                    permit: Some(permit),
                })
            };
            drop(to.send(opened.await));
        });
        let ended = |_| ControlError::Internal("opening a root ended without a result".to_owned());
        opened.await.map_err(ended)?
    }

    pub async fn close(&self) {
        let closed: Vec<Arc<CacheEntry>> =
            self.inner.entries.lock().drain().map(|(_, entry)| entry).collect();
        drop(closed);
        self.inner.closing.close();
        self.inner.closing.wait().await;
        self.inner.closing.reopen();
    }
}

async fn reader(pool: &Pool, volumes: &Volumes, root: &Root) -> Result<RootReader, ControlError> {
    let (settings, catalog) = (volumes.settings(), &pool.catalog);
    Ok(match root {
        Root::Snapshot(snapshot) => RootReader::snapshot(settings, catalog, snapshot.id()).await?.0,
        // A read-only dataset is the snapshot that it was made from.
        Root::Head(Dataset { form: Form::Snapshot, origin: Some(origin), .. }) => {
            RootReader::snapshot(settings, catalog, *origin).await?.0
        }
        Root::Head(dataset) => {
            let empty = || {
                let why = format!("dataset {} is empty: nothing was written yet", dataset.name);
                refused(Class::NotFound, why)
            };
            RootReader::head(settings, catalog, dataset).await?.ok_or_else(empty)?
        }
    })
}

fn is_unused(entry: &Arc<CacheEntry>) -> bool {
    Arc::strong_count(entry) == 1
}

/// Takes the roots out that were used least recently, until no more than the limit are left or all
/// are in use.
fn evict(entries: &mut HashMap<Key, Arc<CacheEntry>>) -> Vec<Arc<CacheEntry>> {
    let mut evicted = Vec::new();
    while entries.len() > CACHED_MAX {
        let unused = entries.iter().filter(|(_, entry)| is_unused(entry));
        let oldest = unused.min_by_key(|(_, entry)| *entry.used.lock()).map(|(key, _)| *key);
        let Some(key) = oldest else { break };
        evicted.extend(entries.remove(&key));
    }
    evicted
}

/// Closes idle roots until none is left, or the browser is gone.
async fn close_idle(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let Some(inner) = inner.upgrade() else { return };
        let mut closed = Vec::new();
        let mut entries = inner.entries.lock();
        closed.extend(evict(&mut entries));
        let is_idle =
            |entry: &mut Arc<CacheEntry>| is_unused(entry) && entry.used.lock().elapsed() >= IDLE;
        closed.extend(entries.extract_if(|_, entry| is_idle(entry)).map(|(_, entry)| entry));
        if entries.is_empty() {
            inner.looking.store(false, Ordering::Release);
            return;
        }
    }
}
