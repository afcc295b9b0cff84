//! The exports of `serve`: every dataset as `/<name>`, every snapshot as `/<name>@<snapshot>`, the
//! pool's default dataset as `/` too, and the decision when a dataset is opened and closed.
//!
//! ```text
//!            MNT, or a call with a handle               no call for `exportIdle`
//!  closed ───────────────────────────────▶ open ───────────────────────────────────▶ closed
//! ```
//! A **closed** dataset is closed and released, so that it can be deleted, or opened elsewhere. Its
//! handles stay valid: clients that have mounted it send no MNT again, so a call on a handle opens
//! it, and waits. For the same reason the datasets that this node owns are opened at start, and
//! every released dataset counts as closed then.
//!
//! An export is idle by the time of its last call, which is written *before* the call looks the
//! export up: a call that finds it before it is closed is seen by the task that closes it.
//!
//! A snapshot, or a dataset that is one, has no owner and is never closed: only the process's
//! snapshot readers have it open, which are closed when they are idle.
//!
//! A volume that is also staged through CSI is in use, and not closed. Its mount outlives this
//! process, so it is reopened, closed and released by the node's use cases alone; after a restart
//! its handles are stale here until it is mounted again.

use crate::catalog::{CatalogError, State};
use crate::control::node::Mounts;
use crate::control::{Carriers, ControlError, Pool, Pools, takeover};
use crate::fs::FsError;
use crate::nfs::{
    Export, ExportId, ExportTable, Found, Listed, MountPoint, MountRefused, Registry,
};
use crate::types::{Backoff, Class, Classify, DatasetId, DatasetName, SnapshotId, SnapshotName};
use crate::volume::{CloseReason, Closing, ExportedFs, Lost, VolumeError, Volumes};
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

#[cfg(test)]
mod tests;

/// Volumes opened at once after a restart.
const REOPENS_AT_ONCE: usize = 8;
/// Pause between attempts to open a closed dataset for the calls that wait for it.
const REOPEN_MIN: Duration = Duration::from_millis(500);
const REOPEN_MAX: Duration = Duration::from_secs(15);
/// Time that a client or a call waits for a dataset that another node owns: its lease, and some
/// seconds for the opening.
const TAKE_LIMIT: Duration = Duration::from_secs(100);
/// Another node that asks for a dataset gets it once no client here has used it for this long.
const HAND_OVER_IDLE: Duration = Duration::from_secs(30);
/// Number of checks of the exports within the idle time.
const POLLS_PER_IDLE: u32 = 4;

/// Returns whether a dataset is staged through CSI, or was by an earlier run and is being reopened.
pub type IsStaged = Box<dyn Fn(DatasetId) -> bool + Send + Sync>;

pub struct Exports {
    pools: Pools,
    volumes: Volumes,
    /// How the owners of volumes in other processes are asked.
    carriers: Carriers,
    is_staged: IsStaged,
    registry: Registry<ExportedFs>,
    /// Datasets that were opened for clients, and are closed when they are idle, or at the end.
    opened: Mutex<HashMap<DatasetId, Arc<Used>>>,
    /// The same by the id in handles.
    used: RwLock<HashMap<ExportId, Arc<Used>>>,
    closed: Mutex<HashMap<ExportId, DatasetId>>,
    /// Snapshots that existed at the start, and those mounted since.
    snapshots: Mutex<HashMap<ExportId, SnapshotId>>,
    started: Instant,
}

/// The time of the last call, in milliseconds since the start.
#[derive(Default)]
struct Used(AtomicU64);

impl Exports {
    /// Serves the default pool, and begins to open what this node owned before.
    pub async fn start(
        pools: Pools,
        volumes: Volumes,
        carriers: Carriers,
        is_staged: IsStaged,
        idle: Duration,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, ControlError> {
        let exports = Arc::new(Self {
            pools,
            volumes,
            carriers,
            is_staged,
            registry: Registry::default(),
            opened: Mutex::default(),
            used: RwLock::default(),
            closed: Mutex::default(),
            snapshots: Mutex::default(),
            started: Instant::now(),
        });
        exports.watch_losses();
        exports.clone().reopen().await?;
        tokio::spawn(exports.clone().close_idle(idle, stop));
        Ok(exports)
    }

    fn pool(&self) -> Option<&Pool> {
        self.pools.get(None).ok()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn reopen(self: Arc<Self>) -> Result<(), ControlError> {
        let Some(pool) = self.pool().cloned() else { return Ok(()) };
        let node = self.volumes.settings().node.clone();
        let mut ours: Vec<DatasetId> = Vec::new();
        for dataset in pool
            .catalog
            .datasets()
            .await?
            .into_iter()
            .map(|at| at.record)
            .filter(|d| d.state == State::Ready)
        {
            match &dataset.owner {
                Some(owner) if owner.node == node && !(self.is_staged)(dataset.id()) => {
                    ours.push(dataset.id());
                }
                Some(_) => {}
                None => {
                    self.closed.lock().insert(export_id(dataset.id()), dataset.id());
                }
            }
        }
        for snapshot in pool.catalog.snapshots(None).await?.into_iter().map(|at| at.record) {
            if snapshot.state == State::Ready && !snapshot.implied {
                self.snapshots.lock().insert(snapshot_export(snapshot.id()), snapshot.id());
            }
        }
        ours.iter().for_each(|id| self.registry.announce(export_id(*id)));
        let exports = self.clone();
        tokio::spawn(async move {
            use futures::StreamExt;
            let opens = futures::stream::iter(ours)
                .map(|id| exports.clone().open_for_waiting(pool.clone(), Named::Dataset(id)));
            opens.buffer_unordered(REOPENS_AT_ONCE).collect::<Vec<()>>().await;
        });
        Ok(())
    }

    /// Opens an announced export, for as long as it takes: its clients wait.
    async fn open_for_waiting(self: Arc<Self>, pool: Pool, what: Named) {
        let mut backoff = Backoff::new(REOPEN_MIN, REOPEN_MAX);
        loop {
            match self.open(&pool, what).await {
                Ok(_) => return,
                // The next process opens it.
                Err(_) if self.volumes.is_handed_over() => return,
                Err(error) if error.class().may_pass() => {
                    let wait = backoff.pause();
                    tracing::warn!(
                        dataset = %what,
                        %error,
                        retry_secs = wait.as_secs_f32(),
                        "cannot open a dataset that clients have mounted; retrying"
                    );
                    tokio::time::sleep(wait).await;
                }
                Err(error) => {
                    tracing::warn!(
                        dataset = %what,
                        %error,
                        "cannot open a dataset that clients have mounted; their handles are stale"
                    );
                    self.snapshots.lock().remove(&what.export());
                    self.registry.remove(what.export());
                    return;
                }
            }
        }
    }

    async fn open(
        &self,
        pool: &Pool,
        what: Named,
    ) -> Result<Arc<Export<ExportedFs>>, ControlError> {
        match what {
            Named::Dataset(id) => self.open_dataset(pool, id).await,
            Named::Snapshot(id) => {
                let (served, key) = self.volumes.export_snapshot(&pool.catalog, id).await?;
                let export = Export::new(what.export(), served, key);
                self.snapshots.lock().insert(export.id, id);
                self.registry.publish(export.clone());
                Ok(export)
            }
        }
    }

    async fn open_dataset(
        &self,
        pool: &Pool,
        id: DatasetId,
    ) -> Result<Arc<Export<ExportedFs>>, ControlError> {
        // Held until the export is registered, so that it is not closed meanwhile.
        let volume = takeover::open(pool, &self.volumes, &self.carriers, id, TAKE_LIMIT).await?;
        let export = Export::new(export_id(id), volume.exported.clone(), volume.handle_key);
        if volume.is_owned() {
            let used = Arc::new(Used(AtomicU64::new(self.now())));
            self.used.write().insert(export.id, used.clone());
            self.opened.lock().insert(id, used);
        }
        self.closed.lock().remove(&export.id);
        self.registry.republish(export.clone());
        drop(volume);
        Ok(export)
    }

    async fn close_idle(self: Arc<Self>, idle: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(idle / POLLS_PER_IDLE) => {}
            }
            let idle_millis = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
            let since = self.now().saturating_sub(idle_millis);
            let old: Vec<(DatasetId, Arc<Used>)> =
                self.opened.lock().iter().map(|(id, used)| (*id, used.clone())).collect();
            for (id, used) in old {
                let last = used.0.load(Ordering::SeqCst);
                if last < since {
                    // A failure is logged already.
                    let _closing = self.close_unused(id, &used, last).await;
                }
            }
        }
    }

    /// Closes and releases a dataset that another node asks for, unless it is in use (R27).
    async fn hand_over(&self, id: DatasetId) -> Result<Closing, VolumeError> {
        let Some(used) = self.opened.lock().get(&id).cloned() else {
            let closing = self.volumes.close_for(id, CloseReason::Unused).await;
            if matches!(closing, Ok(Closing::Closed)) {
                self.note_closed(id);
            }
            return closing;
        };
        let (last, idle) = (used.0.load(Ordering::SeqCst), HAND_OVER_IDLE.as_millis());
        if u128::from(self.now().saturating_sub(last)) < idle {
            return Ok(Closing::InUse);
        }
        self.close_unused(id, &used, last).await
    }

    /// A client may have mounted the dataset while it was being closed: the next call opens it
    /// again.
    fn note_closed(&self, id: DatasetId) {
        let export = export_id(id);
        if self.volumes.get(id).is_none() && matches!(self.registry.find(export), Found::Open(_)) {
            // This comes first, as in `close_unused`.
            self.closed.lock().insert(export, id);
            self.registry.remove(export);
            self.opened.lock().remove(&id);
            self.used.write().remove(&export);
        }
    }

    /// Closes and releases an export, unless a call arrives meanwhile, or the volume has another
    /// user.
    async fn close_unused(
        &self,
        id: DatasetId,
        used: &Used,
        last: u64,
    ) -> Result<Closing, VolumeError> {
        // This comes first: a call that does not find it open must find it closed, and opens it
        // again, which waits for the close below.
        self.closed.lock().insert(export_id(id), id);
        let Some(export) = self.registry.remove(export_id(id)) else {
            // Lost.
            self.closed.lock().remove(&export_id(id));
            self.opened.lock().remove(&id);
            return Ok(Closing::InUse);
        };
        let closing = if used.0.load(Ordering::SeqCst) == last {
            self.volumes.close_for(id, CloseReason::Unused).await
        } else {
            Ok(Closing::InUse)
        };
        match &closing {
            Ok(Closing::InUse) => {
                self.closed.lock().remove(&export.id);
                self.registry.publish(export);
                return closing;
            }
            Ok(Closing::Closed) => {
                tracing::info!(
                    dataset = %id,
                    "closed the idle dataset; the next call opens it"
                );
            }
            // The dataset stays closed: a call first completes the close, and then opens the
            // dataset again (R33).
            Err(error) => {
                tracing::warn!(
                    dataset = %id,
                    %error,
                    "cannot close the idle dataset; retrying"
                );
            }
        }
        let mut opened = self.opened.lock();
        // The dataset may have been opened again by now.
        if opened.get(&id).is_some_and(|now| std::ptr::eq(Arc::as_ptr(now), used)) {
            opened.remove(&id);
            self.used.write().remove(&export.id);
        }
        closing
    }

    /// The export that a call names.
    fn find(self: &Arc<Self>, id: ExportId) -> Found<ExportedFs> {
        if let Some(used) = self.used.read().get(&id) {
            used.0.store(self.now(), Ordering::SeqCst);
        }
        match self.registry.find(id) {
            Found::Unknown => {}
            found => return found,
        }
        let dataset = self.closed.lock().remove(&id).map(Named::Dataset);
        let snapshot = || self.snapshots.lock().get(&id).copied().map(Named::Snapshot);
        let Some(what) = dataset.or_else(snapshot) else { return Found::Unknown };
        let Some(pool) = self.pool().cloned() else { return Found::Unknown };
        self.registry.announce(id);
        tokio::spawn(self.clone().open_for_waiting(pool, what));
        Found::Opening
    }

    fn watch_losses(self: &Arc<Self>) {
        let mut losses = self.volumes.lost();
        let exports = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let loss = losses.recv().await;
                let Some(exports) = exports.upgrade() else { return };
                match loss {
                    Ok(lost) => exports.lose(&lost),
                    Err(RecvError::Lagged(_)) => exports.lose_missing(),
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    /// Another owner's data must not be shown through earlier handles (R25). A volume that only
    /// failed is opened again for the next call (R33).
    fn lose(&self, lost: &Lost) {
        let (id, export) = (lost.dataset, export_id(lost.dataset));
        if self.volumes.get(id).is_some() {
            // Opened again since.
            return;
        }
        let has_new_owner = matches!(lost.why, FsError::Fenced | FsError::Stale);
        if has_new_owner {
            self.registry.lose(export);
        } else {
            // This comes first: a call that does not find it open must find it closed.
            self.closed.lock().insert(export, id);
            self.registry.remove(export);
        }
        self.opened.lock().remove(&id);
        self.used.write().remove(&export);
    }

    fn lose_missing(&self) {
        let opened: Vec<DatasetId> = self.opened.lock().keys().copied().collect();
        for id in opened.into_iter().filter(|id| self.volumes.get(*id).is_none()) {
            self.registry.lose(export_id(id));
        }
    }

    /// Flushes, closes and releases the datasets opened here. Returns the first failure after
    /// having tried all.
    pub async fn close(&self, limit: Duration) -> Result<(), VolumeError> {
        self.closed.lock().clear();
        let opened: Vec<DatasetId> = self.opened.lock().drain().map(|(id, _)| id).collect();
        for id in &opened {
            self.registry.remove(export_id(*id));
        }
        // Including those that could not be closed when they were idle.
        let mut unused: Vec<DatasetId> = opened.into_iter().chain(self.volumes.closing()).collect();
        unused.sort_unstable();
        unused.dedup();
        unused.retain(|id| !(self.is_staged)(*id));
        self.volumes.close_within(unused, limit).await
    }

    /// A dataset's name may hold `@` itself: a dataset of the whole name comes first, then the last
    /// `@` counts.
    async fn find_named(&self, name: &[u8]) -> Result<(Pool, Named), MountRefused> {
        let path = std::str::from_utf8(name).map_err(|_| MountRefused::NotFound)?;
        let pool = self.pool().ok_or(MountRefused::NotFound)?;
        let unavailable = |error: CatalogError| MountRefused::Unavailable(error.to_string());
        if path.is_empty() {
            let default = pool.catalog.default_dataset().await.map_err(unavailable)?;
            let default = default.ok_or(MountRefused::NotFound)?;
            return Ok((pool.clone(), Named::Dataset(default)));
        }
        let find = async |name: &str| {
            let name: DatasetName = name.parse().map_err(|_| MountRefused::NotFound)?;
            Ok::<_, MountRefused>(
                pool.catalog.dataset(&name).await.map_err(unavailable)?.map(|at| at.record),
            )
        };
        if let Some(dataset) = find(path).await?.filter(|dataset| dataset.state == State::Ready) {
            return Ok((pool.clone(), Named::Dataset(dataset.id())));
        }
        let (dataset, snapshot) = path.rsplit_once('@').ok_or(MountRefused::NotFound)?;
        let dataset = find(dataset).await?.ok_or(MountRefused::NotFound)?;
        let snapshot: SnapshotName = snapshot.parse().map_err(|_| MountRefused::NotFound)?;
        let found = pool
            .catalog
            .snapshot(dataset.id(), &snapshot)
            .await
            .map_err(unavailable)?
            .map(|at| at.record);
        let found = found
            .filter(|snapshot| snapshot.state == State::Ready)
            .ok_or(MountRefused::NotFound)?;
        Ok((pool.clone(), Named::Snapshot(found.id())))
    }
}

/// The dataset or snapshot of an export.
#[derive(Clone, Copy, Debug)]
enum Named {
    Dataset(DatasetId),
    Snapshot(SnapshotId),
}

impl Named {
    fn export(self) -> ExportId {
        match self {
            Self::Dataset(id) => export_id(id),
            Self::Snapshot(id) => snapshot_export(id),
        }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dataset(id) => write!(f, "{id}"),
            Self::Snapshot(id) => write!(f, "{id}"),
        }
    }
}

/// The snapshot's own incarnation: two exports never share a handle.
fn snapshot_export(snapshot: SnapshotId) -> ExportId {
    ExportId(*snapshot.snapshot.incarnation.as_bytes())
}

fn export_id(dataset: DatasetId) -> ExportId {
    ExportId(*dataset.incarnation.as_bytes())
}

/// The users of volumes in `serve`: mounts of staged volumes, and exports.
pub struct VolumeUsers {
    pub mounts: Arc<dyn Mounts>,
    pub exports: Arc<Exports>,
}

impl Mounts for VolumeUsers {
    fn sync(&self, dataset: DatasetId) -> BoxFuture<'_, Result<(), ControlError>> {
        self.mounts.sync(dataset)
    }

    fn hand_over<'a>(
        &'a self,
        volumes: &'a Volumes,
        dataset: DatasetId,
    ) -> BoxFuture<'a, Result<Closing, ControlError>> {
        if (self.exports.is_staged)(dataset) {
            return self.mounts.hand_over(volumes, dataset);
        }
        Box::pin(async move { Ok(self.exports.hand_over(dataset).await?) })
    }
}

/// The first name of a path, which is an export's, and the rest.
fn export_and_below(path: &[u8]) -> (&[u8], &[u8]) {
    let is_slash = |byte: &u8| *byte == b'/';
    let (_, path) =
        path.split_at(path.iter().position(|byte| !is_slash(byte)).unwrap_or(path.len()));
    path.split_at(path.iter().position(is_slash).unwrap_or(path.len()))
}

/// The table that the NFS server asks.
#[derive(Clone)]
pub struct ServeTable(pub Arc<Exports>);

impl ExportTable for ServeTable {
    type Fs = ExportedFs;

    fn find(&self, id: ExportId) -> Found<ExportedFs> {
        self.0.find(id)
    }

    async fn opened(&self, id: ExportId) -> Found<ExportedFs> {
        self.0.registry.opened(id).await
    }

    async fn mount(
        &self,
        path: &[u8],
        peer: SocketAddr,
    ) -> Result<MountPoint<ExportedFs>, MountRefused> {
        let (name, below) = export_and_below(path);
        let (pool, id) = self.0.find_named(name).await?;
        let opened =
            self.0.open(&pool, id).await.map(|export| MountPoint { export, below: below.into() });
        opened.map_err(|error| match error.class() {
            Class::NotFound => MountRefused::NotFound,
            Class::Precondition | Class::Denied => {
                tracing::warn!(%peer, dataset = %id, %error, "refused a mount");
                MountRefused::Denied
            }
            _ => {
                tracing::error!(
                    %peer,
                    dataset = %id,
                    %error,
                    "cannot open a dataset for a mount"
                );
                MountRefused::Unavailable(error.to_string())
            }
        })
    }

    async fn list(&self) -> Vec<Listed> {
        let Some(pool) = self.0.pool() else { return vec![] };
        match pool.catalog.datasets().await {
            Ok(datasets) => {
                let ready =
                    datasets.into_iter().map(|at| at.record).filter(|d| d.state == State::Ready);
                ready.map(|d| Listed { path: format!("/{}", d.name) }).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "cannot list the datasets for a client");
                vec![]
            }
        }
    }
}
