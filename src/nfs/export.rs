//! Exports, and how a server finds them.
//!
//! ```text
//!            announce                publish              lose (fenced, R25)
//! (unknown) ──────────► Opening ──────────────► Open ──────────────────────► Lost
//!     ▲                    │                      │                            │
//!     └────────────────────┴──────── remove ──────┴────────── remove ──────────┘
//! ```
//! A handle of an export that is opening waits (R24); of one that is lost or unknown it is `STALE`.
//! `Lost` is final: only removing the export, at unstage, ends it.

use super::handle::{ExportId, HANDLE_BYTES, Handle, HandleKey};
use super::status::NfsStat;
use crate::fs::api::{FileRef, FileSystem};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::watch;

/// An open file system under the name and the keys that clients know it by.
pub struct Export<F> {
    pub id: ExportId,
    pub fs: Arc<F>,
    pub(super) fsid: u64,
    key: HandleKey,
    lost: AtomicBool,
}

impl<F: FileSystem> Export<F> {
    /// `handle_key` is the dataset's, the same on every node (R7).
    pub fn new(id: ExportId, fs: Arc<F>, handle_key: [u8; 16]) -> Arc<Self> {
        Arc::new(Self {
            id,
            fs,
            fsid: id.fsid(),
            key: HandleKey::new(handle_key),
            lost: AtomicBool::new(false),
        })
    }

    pub(super) fn seal(&self, file: FileRef) -> [u8; HANDLE_BYTES] {
        self.key.seal(self.id, file)
    }

    pub(super) fn open(&self, handle: &Handle) -> Result<FileRef, NfsStat> {
        if self.is_lost() {
            return Err(NfsStat::Stale);
        }
        self.key.open(handle)
    }

    /// The handle of the root directory, as MNT answers it.
    pub fn root_handle(&self) -> [u8; HANDLE_BYTES] {
        self.seal(self.fs.root())
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Every call is `STALE` from now on (R25).
    pub fn lose(&self) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                export = %data_encoding::HEXLOWER.encode(&self.id.0),
                "an export is lost to another owner: every call on it is answered with a stale \
                 handle until it is unmounted here"
            );
        }
    }
}

/// The state of an export id.
pub enum Found<F> {
    Open(Arc<Export<F>>),
    /// The export is being opened.
    Opening,
    Unknown,
}

/// The reason why MNT was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountRefused {
    #[error("no such export")]
    NotFound,
    /// Not during our own mount(2) of the volume (R23).
    #[error("this export can be mounted by the node plugin only")]
    Denied,
    #[error("cannot open the export: {0}")]
    Unavailable(String),
}

/// The export and the folder below it that a path of MNT names.
pub struct MountPoint<F> {
    pub export: Arc<Export<F>>,
    /// The rest of the path: of a directory below the root, or empty.
    pub below: Box<[u8]>,
}

/// A line of MOUNT's EXPORT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Starts with `/`.
    pub path: String,
}

/// The exports of a server, which a floor above provides.
pub trait ExportTable: Send + Sync + 'static {
    type Fs: FileSystem;

    /// Called by every call, so it answers from memory.
    fn find(&self, id: ExportId) -> Found<Self::Fs>;

    /// Waits for an export that is opening. The caller bounds the wait.
    fn opened(&self, id: ExportId) -> impl Future<Output = Found<Self::Fs>> + Send;

    /// MNT of a path: of an export, or of a directory in one. May open the dataset that it names.
    fn mount(
        &self,
        path: &[u8],
        peer: SocketAddr,
    ) -> impl Future<Output = Result<MountPoint<Self::Fs>, MountRefused>> + Send;

    fn list(&self) -> impl Future<Output = Vec<Listed>> + Send;
}

enum ExportState<F> {
    Opening(watch::Sender<()>),
    Open(Arc<Export<F>>),
    Lost,
}

/// The exports of a process by id: what an [`ExportTable`] usually delegates to.
pub struct Registry<F> {
    states: RwLock<HashMap<ExportId, ExportState<F>>>,
}

impl<F> Default for Registry<F> {
    fn default() -> Self {
        Self { states: RwLock::default() }
    }
}

impl<F: FileSystem> Registry<F> {
    /// Marks this export as being opened: its handles wait. One that is open or lost is left alone.
    /// Returns whether it was neither, nor being opened already.
    pub fn announce(&self, id: ExportId) -> bool {
        match self.states.write().entry(id) {
            Entry::Vacant(free) => {
                free.insert(ExportState::Opening(watch::Sender::new(())));
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Makes an export reachable, replacing an earlier one of its id unless that was lost.
    pub fn publish(&self, export: Arc<Export<F>>) {
        let mut states = self.states.write();
        if !matches!(states.get(&export.id), Some(ExportState::Lost)) {
            states.insert(export.id, ExportState::Open(export));
        }
    }

    /// Like [`Self::publish`], also after a loss: the file system was opened again, and no client
    /// is to be kept from it.
    pub fn republish(&self, export: Arc<Export<F>>) {
        self.states.write().insert(export.id, ExportState::Open(export));
    }

    /// Every handle of this export is `STALE` until it is removed (R25). Its file system is
    /// released.
    pub fn lose(&self, id: ExportId) {
        if let Some(ExportState::Open(export)) = self.states.write().insert(id, ExportState::Lost) {
            export.lose();
        }
    }

    /// Removes an export; calls that wait for it find it unknown. Returns it if it was open.
    pub fn remove(&self, id: ExportId) -> Option<Arc<Export<F>>> {
        match self.states.write().remove(&id) {
            Some(ExportState::Open(export)) => Some(export),
            Some(ExportState::Opening(_) | ExportState::Lost) | None => None,
        }
    }

    /// Removes this very export: one of its id that is being opened, or was opened since, stays.
    /// Returns whether it was there.
    pub fn remove_export(&self, export: &Arc<Export<F>>) -> bool {
        let mut states = self.states.write();
        let found = states.get(&export.id);
        let is_it = matches!(found, Some(ExportState::Open(found)) if Arc::ptr_eq(found, export));
        if is_it {
            states.remove(&export.id);
        }
        is_it
    }

    pub fn find(&self, id: ExportId) -> Found<F> {
        match self.states.read().get(&id) {
            Some(ExportState::Open(export)) => Found::Open(export.clone()),
            Some(ExportState::Opening(_)) => Found::Opening,
            Some(ExportState::Lost) | None => Found::Unknown,
        }
    }

    /// Waits until the export is no longer opening.
    pub async fn opened(&self, id: ExportId) -> Found<F> {
        loop {
            let mut changed = match self.states.read().get(&id) {
                Some(ExportState::Open(export)) => return Found::Open(export.clone()),
                Some(ExportState::Opening(changed)) => changed.subscribe(),
                Some(ExportState::Lost) | None => return Found::Unknown,
            };
            // No value is ever sent: the slot's replacement drops the sender.
            let _closed = changed.changed().await;
        }
    }
}

/// The table of one staged volume: one export, at its own listener, mountable only while a
/// [`MountPass`] is held (R23).
pub struct Endpoint<F> {
    id: ExportId,
    path: String,
    registry: Registry<F>,
    passes: AtomicUsize,
}

/// MNT is answered while this lives.
pub struct MountPass<F> {
    endpoint: Arc<Endpoint<F>>,
}

impl<F> Drop for MountPass<F> {
    fn drop(&mut self) {
        self.endpoint.passes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<F: FileSystem> Endpoint<F> {
    /// The export `id`, mounted as `path` (which starts with `/`), still opening.
    pub fn new(id: ExportId, path: String) -> Arc<Self> {
        let registry = Registry::default();
        registry.announce(id);
        Arc::new(Self { id, path, registry, passes: AtomicUsize::new(0) })
    }

    /// Allows MNT for our own mount(2).
    pub fn allow_mount(self: &Arc<Self>) -> MountPass<F> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        MountPass { endpoint: self.clone() }
    }

    /// The file system is open: calls that waited go on.
    pub fn publish(&self, fs: Arc<F>, handle_key: [u8; 16]) {
        self.registry.publish(Export::new(self.id, fs, handle_key));
    }

    /// See [`Registry::lose`].
    pub fn lose(&self) {
        self.registry.lose(self.id);
    }

    /// Returns whether the file system is open here, and no other owner has taken it.
    pub fn is_served(&self) -> bool {
        matches!(self.registry.find(self.id), Found::Open(export) if !export.is_lost())
    }

    /// Releases the file system, at unstage and when it cannot be opened after all.
    pub fn remove(&self) {
        self.registry.remove(self.id);
    }
}

impl<F: FileSystem> ExportTable for Arc<Endpoint<F>> {
    type Fs = F;

    fn find(&self, id: ExportId) -> Found<F> {
        self.registry.find(id)
    }

    async fn opened(&self, id: ExportId) -> Found<F> {
        self.registry.opened(id).await
    }

    async fn mount(&self, path: &[u8], _peer: SocketAddr) -> Result<MountPoint<F>, MountRefused> {
        let below = path.strip_prefix(self.path.as_bytes()).ok_or(MountRefused::NotFound)?;
        if !matches!(below, [] | [b'/', ..]) {
            return Err(MountRefused::NotFound);
        }
        if self.passes.load(Ordering::Relaxed) == 0 {
            return Err(MountRefused::Denied);
        }
        match self.registry.opened(self.id).await {
            Found::Open(export) => Ok(MountPoint { export, below: below.into() }),
            Found::Opening | Found::Unknown => Err(MountRefused::NotFound),
        }
    }

    async fn list(&self) -> Vec<Listed> {
        vec![Listed { path: self.path.clone() }]
    }
}
