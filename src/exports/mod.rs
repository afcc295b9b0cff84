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
//! every released dataset counts as closed then. One that was closed by others, or has failed, is
//! opened again as well, unless it has another owner (R25, R33).
//!
//! An export is idle by the time of its last call, which is written *before* the call looks the
//! export up: a call that finds it before it is closed is seen by the task that closes it.
//!
//! A snapshot, or a dataset that is one, has no owner and is never closed: only the process's
//! snapshot readers have it open, which are closed when they are idle.
//!
//! A volume that is also staged through CSI is in use, and not closed here. Its mount outlives this
//! process, so it is reopened by the node's use cases alone: after a restart its handles are stale
//! here until it is mounted again. Unstaging it closes and releases it, so that it can be used
//! elsewhere at once; where its export is in use, the next call opens it again.

use crate::catalog::State;
use crate::control::{Carriers, ControlError, Pool, Pools, takeover};
use crate::fs::FsError;
use crate::fs::api::FileSystem;
use crate::nfs::{Export, ExportId, Found, Registry};
use crate::types::{Backoff, Classify, DatasetId};
use crate::volume::{CloseReason, Closing, ExportedFs, Lost, VolumeError, Volumes};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

mod named;
mod table;
#[cfg(test)]
mod tests;

pub use table::{ServeTable, VolumeUsers};

use named::{Named, export_id};

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
    /// The exports that a call may open: those that existed at the start, and those mounted since,
    /// except those of datasets that other nodes own.
    known: RwLock<HashMap<ExportId, Named>>,
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
            known: RwLock::default(),
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
        let (mut ours, mut known) = (Vec::new(), HashMap::new());
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
                    ours.push(Named::Dataset(dataset.id()));
                }
                Some(_) => continue,
                None => {}
            }
            let named = Named::Dataset(dataset.id());
            known.insert(named.export(), named);
        }
        for snapshot in pool.catalog.snapshots(None).await?.into_iter().map(|at| at.record) {
            if snapshot.state == State::Ready && !snapshot.implied {
                let named = Named::Snapshot(snapshot.id());
                known.insert(named.export(), named);
            }
        }
        *self.known.write() = known;
        ours.retain(|named| self.registry.announce(named.export()));
        let exports = self.clone();
        tokio::spawn(async move {
            use futures::StreamExt;
            let opens = futures::stream::iter(ours)
                .map(|named| exports.clone().open_for_waiting(pool.clone(), named));
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
                    self.known.write().remove(&what.export());
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
                self.known.write().insert(export.id, what);
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
        self.known.write().insert(export.id, Named::Dataset(id));
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
                self.drop_ended(id);
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
                self.drop_ended(id);
            }
            return closing;
        };
        let (last, idle) = (used.0.load(Ordering::SeqCst), HAND_OVER_IDLE.as_millis());
        if u128::from(self.now().saturating_sub(last)) < idle {
            return Ok(Closing::InUse);
        }
        self.close_unused(id, &used, last).await
    }

    /// Drops the export of a volume that was closed under it, by an unstage for example: the next
    /// call opens it again.
    fn drop_ended(&self, id: DatasetId) {
        let used = self.opened.lock().get(&id).cloned();
        if let Found::Open(export) = self.registry.find(export_id(id))
            && may_be_reopened(&export)
            && self.registry.remove_export(&export)
            && let Some(used) = used
        {
            self.forget_used(id, &used);
        }
    }

    /// Forgets that an export was opened, unless it was opened again since.
    fn forget_used(&self, id: DatasetId, used: &Used) {
        let mut opened = self.opened.lock();
        if opened.get(&id).is_some_and(|now| std::ptr::eq(Arc::as_ptr(now), used)) {
            opened.remove(&id);
            self.used.write().remove(&export_id(id));
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
        // A call that does not find it opens it again, which waits for the close below.
        let export = match self.registry.find(export_id(id)) {
            Found::Open(export) if self.registry.remove_export(&export) => export,
            // Lost, or being opened again after it was closed by others.
            _ => {
                self.forget_used(id, used);
                return Ok(Closing::InUse);
            }
        };
        let closing = if used.0.load(Ordering::SeqCst) == last {
            self.volumes.close_for(id, CloseReason::Unused).await
        } else {
            Ok(Closing::InUse)
        };
        match &closing {
            Ok(Closing::InUse) => {
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
        self.forget_used(id, used);
        closing
    }

    /// The export that a call names.
    fn find(self: &Arc<Self>, id: ExportId) -> Found<ExportedFs> {
        if let Some(used) = self.used.read().get(&id) {
            used.0.store(self.now(), Ordering::SeqCst);
        }
        match self.registry.find(id) {
            Found::Open(export) if may_be_reopened(&export) => {
                self.registry.remove_export(&export);
            }
            Found::Unknown => {}
            found => return found,
        }
        self.find_closed(id)
    }

    /// Begins to open a closed export, unless that has begun.
    fn find_closed(self: &Arc<Self>, id: ExportId) -> Found<ExportedFs> {
        let named = self.known.read().get(&id).copied();
        let Some((named, pool)) = named.zip(self.pool().cloned()) else { return Found::Unknown };
        if self.registry.announce(id) {
            tokio::spawn(self.clone().open_for_waiting(pool, named));
        }
        self.registry.find(id)
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
        if !is_final(&lost.why) {
            return self.drop_ended(id);
        }
        self.known.write().remove(&export);
        self.registry.lose(export);
        self.opened.lock().remove(&id);
        self.used.write().remove(&export);
    }

    /// As [`Self::lose`], after reports were missed.
    fn lose_missing(&self) {
        let opened: Vec<DatasetId> = self.opened.lock().keys().copied().collect();
        for id in opened.into_iter().filter(|id| self.volumes.get(*id).is_none()) {
            let export = export_id(id);
            match self.registry.find(export) {
                Found::Open(open) if may_be_reopened(&open) => self.drop_ended(id),
                Found::Open(_) => {
                    self.known.write().remove(&export);
                    self.registry.lose(export);
                }
                Found::Opening | Found::Unknown => {}
            }
        }
    }

    /// Flushes, closes and releases the datasets opened here. Returns the first failure after
    /// having tried all.
    pub async fn close(&self, limit: Duration) -> Result<(), VolumeError> {
        self.known.write().clear();
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
}

/// Returns whether a volume that ended for this reason must not be opened again for its clients:
/// another owner has it (R25).
fn is_final(why: &FsError) -> bool {
    matches!(why, FsError::Fenced | FsError::Stale)
}

/// Returns whether an export's file system has ended, and its next call may open it again.
fn may_be_reopened(export: &Export<ExportedFs>) -> bool {
    export.fs.ended().is_some_and(|why| !is_final(&why))
}
