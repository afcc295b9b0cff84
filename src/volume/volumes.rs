//! The volumes that one process has open.

use super::VolumeError;
use super::claim::ActiveClaim;
use super::entry::{Open, Users, VolumeEntry, VolumeGuard};
use super::exported::ExportedFs;
use super::lease::{ExpiredLease, LeaseRenewer, LeaseSettings, OwnershipEnd, Watch};
use super::lifecycle::{CloseReason, CloseStep, OpenAction};
use super::open_snapshots::OpenSnapshots;
use super::settings::{VolumeSettings, fs_properties};
use crate::catalog::{Catalog, Dataset, Owner};
use crate::chunk::ChunkStore;
use crate::fs::{Fs, FsError};
use crate::types::{ClaimId, DatasetId, FamilyId, JournalDirId, PoolId, SessionId};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, oneshot};

/// Reports of lost volumes that are buffered for a slow listener.
const LOST_QUEUED: usize = 256;
/// The time limit for the tasks of a failed file system to end.
pub(super) const ABANDON_LIMIT: Duration = Duration::from_secs(5);
/// Between attempts to close a volume whose claim was revoked.
const REVOKED_RETRY: Duration = Duration::from_millis(500);

/// The outcome of closing a volume unless it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    Closed,
    InUse,
}

/// A dataset opened by its owner, this process.
pub struct Volume {
    pub pool: PoolId,
    pub dataset: Dataset,
    pub fs: Arc<Fs>,
    /// The file system with its snapshots, as clients see it.
    pub exported: Arc<ExportedFs>,
    /// The key that file handles are authenticated with (R7).
    pub handle_key: [u8; 16],
    /// No two openings in this process have the same.
    pub opening: u64,
    /// The claim under which it is open.
    pub claim: ActiveClaim,
    /// The number of its guards.
    pub(super) users: Users,
    pub(super) chunks: ChunkStore,
}

/// A volume that another owner took, or that failed for good.
#[derive(Clone, Debug)]
pub struct Lost {
    pub pool: PoolId,
    pub dataset: DatasetId,
    /// The [`Volume::opening`] that was lost: the dataset may have been opened again since.
    pub opening: u64,
    pub why: FsError,
}

/// The volumes that this process has open, over all its pools. Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    settings: VolumeSettings,
    lease: LeaseSettings,
    /// The id of the journal directory, once it was read.
    pub(super) journal_dir_id: tokio::sync::OnceCell<JournalDirId>,
    /// One renewer for each pool that a volume was opened in.
    renewers: Mutex<HashMap<PoolId, LeaseRenewer>>,
    /// An entry stays until the dataset's record no longer names this session (R33).
    pub(super) entries: Mutex<HashMap<DatasetId, Arc<VolumeEntry>>>,
    pub(super) openings: AtomicU64,
    /// Earlier sessions of this journal directory that are known to have ended.
    ended: Mutex<HashSet<SessionId>>,
    lost: broadcast::Sender<Lost>,
    mailbox: Arc<Notify>,
    open_snapshots: OpenSnapshots,
    /// The volumes were handed over to another process of this node: none is opened here.
    pub(super) handed_over: AtomicBool,
}

impl Volumes {
    pub fn new(settings: VolumeSettings) -> Self {
        Self::with_lease(settings, LeaseSettings::default())
    }

    pub fn with_lease(settings: VolumeSettings, lease: LeaseSettings) -> Self {
        let (lost, open_snapshots) =
            (broadcast::Sender::new(LOST_QUEUED), OpenSnapshots::new(settings.clone()));
        let (journal_dir_id, renewers, entries, openings, ended, mailbox, handed_over) =
            Default::default();
        let inner = Inner {
            settings,
            lease,
            journal_dir_id,
            renewers,
            entries,
            openings,
            ended,
            lost,
            mailbox,
            open_snapshots,
            handed_over,
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn settings(&self) -> &VolumeSettings {
        &self.inner.settings
    }

    /// The snapshots that this process has open.
    pub fn open_snapshots(&self) -> &OpenSnapshots {
        &self.inner.open_snapshots
    }

    /// A fresh claim of this process, as it is written into records, without its journal directory.
    pub fn owner(&self) -> Owner {
        let settings = &self.inner.settings;
        Owner {
            lease_millis: self.inner.lease.millis(),
            ..Owner::new(&settings.node, settings.session)
        }
    }

    pub(super) fn ended_sessions(&self) -> &Mutex<HashSet<SessionId>> {
        &self.inner.ended
    }

    pub fn lease(&self) -> &LeaseSettings {
        &self.inner.lease
    }

    /// Watches a dataset's owner, as its record names it.
    pub fn watch(&self, pool: &Catalog, dataset: DatasetId, owner: &Owner) -> Watch {
        Watch::new(pool, dataset, owner, &self.inner.lease)
    }

    /// Resolves when a renewal of the lease has seen a request in this session's mailbox, which is
    /// in the folder that each renewal lists. For one task at a time.
    pub async fn requested(&self) {
        self.inner.mailbox.notified().await;
    }

    /// Reports of volumes lost from now on. A volume that is reported is no longer open.
    pub fn lost(&self) -> broadcast::Receiver<Lost> {
        self.inner.lost.subscribe()
    }

    /// Opens a volume, or returns the open one. Concurrent calls share one opening.
    ///
    /// # Errors
    /// [`VolumeError::Owned`] when another node has it.
    pub async fn open(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
    ) -> Result<VolumeGuard, VolumeError> {
        self.open_over(pool, dataset, None).await
    }

    /// As [`Self::open`], taking over from an owner that must have stopped: it is fenced, and
    /// changes that only its journal holds are lost.
    ///
    /// # Errors
    /// [`VolumeError::Owned`] when another owns it by now, or that owner has come back.
    pub async fn take_over(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        expired: &ExpiredLease,
    ) -> Result<VolumeGuard, VolumeError> {
        self.open_over(pool, dataset, Some(expired)).await
    }

    async fn open_over(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        expired: Option<&ExpiredLease>,
    ) -> Result<VolumeGuard, VolumeError> {
        if let Some(volume) = self.get(dataset) {
            return Ok(volume);
        }
        let (volumes, pool, expired) = (self.clone(), pool.clone(), expired.cloned());
        let (answer, answered) = oneshot::channel();
        // A task of its own: a caller that goes away must not leave an unused claim.
        tokio::spawn(async move {
            let opened = Box::pin(volumes.open_exclusively(&pool, dataset, expired.as_ref())).await;
            if let Err(Ok(unwanted)) = answer.send(opened) {
                drop(unwanted);
                if let Err(error) = volumes.close_for(dataset, CloseReason::Unused).await {
                    tracing::warn!(
                        %dataset,
                        %error,
                        "closing a volume whose opening was abandoned failed; retrying"
                    );
                }
            }
        });
        let ended = |_| {
            VolumeError::Io(format!(
                "the opening of dataset {dataset} ended without an answer: see the log; retry"
            ))
        };
        answered.await.map_err(ended)?
    }

    async fn open_exclusively(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        expired: Option<&ExpiredLease>,
    ) -> Result<VolumeGuard, VolumeError> {
        loop {
            let entry = self.entry(pool, dataset)?;
            let _lock = entry.transition.lock().await;
            if !self.is_current(&entry) || self.inner.handed_over.load(Ordering::SeqCst) {
                continue;
            }
            match (entry.open_action(), entry.volume()) {
                (OpenAction::Use, Some(volume)) => return Ok(volume),
                (OpenAction::Use | OpenAction::Open, _) => {
                    return self.open_place(&entry, expired).await;
                }
                (OpenAction::FinishClose, _) => match self.finish_close(&entry).await {
                    Err(error) if entry.open_action() == OpenAction::FinishClose => {
                        return Err(error);
                    }
                    Ok(()) | Err(_) => {}
                },
            }
        }
    }

    async fn open_place(
        &self,
        entry: &Arc<VolumeEntry>,
        expired: Option<&ExpiredLease>,
    ) -> Result<VolumeGuard, VolumeError> {
        entry.begin_opening();
        match Box::pin(self.open_now(entry, expired)).await {
            Ok(open) => {
                self.watch_volume(entry, &open);
                Ok(entry.opened(open))
            }
            Err(failed) => {
                entry.not_opened(failed.claim);
                match entry.step() {
                    None => self.forget(entry),
                    Some(CloseStep::Recover) => self.close_unless_retried(entry),
                    // Nothing was opened: others need not wait. A failed close is retried by a
                    // task.
                    Some(_) => drop(self.finish_close(entry).await),
                }
                Err(failed.error)
            }
        }
    }

    /// The volume if it is open.
    pub fn get(&self, dataset: DatasetId) -> Option<VolumeGuard> {
        self.find(dataset)?.volume()
    }

    /// Every open volume.
    pub fn list(&self) -> Vec<VolumeGuard> {
        self.inner.entries.lock().values().filter_map(|entry| entry.volume()).collect()
    }

    /// Returns whether this session owns, or may own, a dataset of this pool, so that others may
    /// send it requests.
    pub fn has_any_of(&self, pool: PoolId) -> bool {
        self.inner.entries.lock().values().any(|entry| entry.pool.pool().id == pool)
    }

    /// Volumes whose close has begun and has not ended.
    pub fn closing(&self) -> Vec<DatasetId> {
        self.inner
            .entries
            .lock()
            .values()
            .filter(|entry| entry.step().is_some())
            .map(|entry| entry.id)
            .collect()
    }

    /// Applies the byte and inode quota of the dataset's record to the open volume.
    pub fn set_quota(&self, dataset: &Dataset) {
        if let Some(volume) = self.get(dataset.id()) {
            volume.fs.set_quota(dataset.size, dataset.properties.quota_inodes);
        }
    }

    /// Applies the properties and quotas of the dataset's record to the open volume.
    pub async fn set_properties(&self, dataset: &Dataset) -> Result<(), FsError> {
        match self.get(dataset.id()) {
            Some(volume) => volume.fs.set_properties(&fs_properties(dataset)).await,
            None => Ok(()),
        }
    }

    pub(super) fn find(&self, dataset: DatasetId) -> Option<Arc<VolumeEntry>> {
        self.inner.entries.lock().get(&dataset).cloned()
    }

    pub(super) fn entry(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
    ) -> Result<Arc<VolumeEntry>, VolumeError> {
        if self.inner.handed_over.load(Ordering::SeqCst) {
            return Err(VolumeError::HandedOver { dataset: dataset.to_string() });
        }
        let mut entries = self.inner.entries.lock();
        let max = self.inner.settings.volumes_max;
        if let Some(entry) = entries.get(&dataset) {
            return Ok(entry.clone());
        }
        if entries.len() >= max {
            return Err(VolumeError::Full { dataset: dataset.to_string(), max });
        }
        Ok(entries
            .entry(dataset)
            .or_insert_with(|| Arc::new(VolumeEntry::new(dataset, pool.clone())))
            .clone())
    }

    pub(super) fn is_current(&self, entry: &Arc<VolumeEntry>) -> bool {
        self.inner.entries.lock().get(&entry.id).is_some_and(|current| Arc::ptr_eq(current, entry))
    }

    pub(super) fn forget(&self, entry: &Arc<VolumeEntry>) {
        let mut entries = self.inner.entries.lock();
        if entries.get(&entry.id).is_some_and(|current| Arc::ptr_eq(current, entry)) {
            entries.remove(&entry.id);
        }
    }

    pub(super) fn renewer(&self, pool: &Catalog) -> LeaseRenewer {
        let mut renewers = self.inner.renewers.lock();
        let new = || {
            LeaseRenewer::new(
                pool.clone(),
                &self.owner(),
                self.inner.lease.clone(),
                self.inner.mailbox.clone(),
            )
        };
        renewers.entry(pool.pool().id).or_insert_with(new).clone()
    }

    /// Open volumes of one family share one store, and with it its caches.
    pub(super) fn chunks(&self, pool: &Catalog, family: FamilyId) -> ChunkStore {
        let shared = self.list().into_iter().find(|volume| volume.dataset.family == family);
        match shared {
            Some(volume) => volume.chunks.clone(),
            None => self.inner.settings.chunks(pool, family),
        }
    }

    fn watch_volume(&self, entry: &Arc<VolumeEntry>, open: &Open) {
        let (volumes, entry) = (self.clone(), Arc::downgrade(entry));
        let (volume, closed, ownership) =
            (open.volume.clone(), open.closed.clone(), open.guard.ownership().clone());
        tokio::spawn(async move {
            let why = tokio::select! {
                () = closed.cancelled() => return,
                why = volume.fs.stopped() => why,
                end = ownership.ended() => match end {
                    OwnershipEnd::Revoked(claim) => {
                        let Some(entry) = entry.upgrade() else { return };
                        return volumes.close_revoked(&entry.pool, &volume, claim).await;
                    }
                    // The new owner may not have fenced this one yet.
                    OwnershipEnd::Taken => {
                        volume.fs.give_up(FsError::Fenced);
                        FsError::Fenced
                    }
                },
            };
            if let Some(entry) = entry.upgrade() {
                volumes.lose(&entry, &volume, why).await;
            }
        });
    }

    /// Reports a volume that failed or was taken, and has its journal recovered unless the dataset
    /// has another owner.
    async fn lose(&self, entry: &Arc<VolumeEntry>, volume: &Volume, why: FsError) {
        let _lock = entry.transition.lock().await;
        // A close that has begun does the rest.
        if !self.is_current(entry) || !entry.lost(volume) {
            return;
        }
        tracing::error!(
            dataset = %volume.dataset.name,
            error = %why,
            "volume lost: its mounts answer ESTALE until they are unmounted, or relay to the next \
             owner if it is shared"
        );
        self.report(volume, why);
        volume.fs.abandon_within(ABANDON_LIMIT).await;
        self.close_later(entry, Duration::ZERO);
    }

    /// Nobody listens in a process without mounts.
    fn report(&self, volume: &Volume, why: FsError) {
        let _ = self.inner.lost.send(Lost {
            pool: volume.pool,
            dataset: volume.dataset.id(),
            opening: volume.opening,
            why,
        });
    }

    /// Closes a volume whose claim was revoked (R27): no call is answered, and acknowledged changes
    /// are flushed to the store before others may take the dataset.
    async fn close_revoked(&self, pool: &Catalog, volume: &Volume, claim: ClaimId) {
        let dataset = volume.dataset.id();
        self.report(volume, FsError::Fenced);
        let closed = tokio::time::timeout(self.inner.lease.lease, async {
            while let Err(error) = self.close_for(dataset, CloseReason::Revoked).await {
                tracing::warn!(
                    dataset = %volume.dataset.name,
                    %error,
                    "closing a volume whose claim was revoked failed; retrying"
                );
                tokio::time::sleep(REVOKED_RETRY).await;
            }
        });
        if closed.await.is_err() {
            volume.fs.give_up(FsError::Fenced);
            tracing::error!(
                dataset = %volume.dataset.name,
                "a volume whose claim was revoked could not be closed in time: changes that only \
                 this node's journal holds are lost to the next owner"
            );
        } else if let Err(error) = pool.remove_revocation(self.inner.settings.session, claim).await
        {
            tracing::debug!(
                %error,
                "the revocation of a released claim stays until a collection removes it"
            );
        }
    }
}
