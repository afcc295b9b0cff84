//! The volumes that one process has open.

use super::claim::{Openings, claim, release, undo};
use super::lease::{End, ExpiredLease, Held, Keeper, LeaseSettings, Watch};
use super::ownership::{self, Before};
use super::restoring::end_restore;
use super::served::{Live, Served};
use super::settings::VolumeSettings;
use super::views::Views;
use super::{VolumeError, home};
use crate::catalog::{Catalog, Dataset, Owner, Snapdir};
use crate::chunk::ChunkStore;
use crate::fs::{Fs, FsError};
use crate::types::{ClaimId, DatasetId, FamilyId, HomeId, PoolId};
use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Volumes closed at once by [`Volumes::close_all`].
pub(super) const CLOSES_AT_ONCE: usize = 8;
/// Reports of lost volumes kept for a slow listener.
const LOST_QUEUED: usize = 256;
/// Between tries to close what is given up.
const HAND_OVER_RETRY: Duration = Duration::from_millis(500);

/// The slot, and the task that watches for losses.
const HOLDERS_OF_OURS: usize = 2;

/// What became of a volume that was to be closed if nobody uses it.
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
    /// The same with its snapshots, for clients.
    pub served: Arc<Served>,
    /// What file handles are authenticated with (R7).
    pub handle_key: [u8; 16],
    chunks: ChunkStore,
}

/// A volume that another owner took, or that failed for good.
#[derive(Clone, Debug)]
pub struct Lost {
    pub pool: PoolId,
    pub dataset: DatasetId,
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
    /// Of the folder of journals, once it was asked for.
    home: tokio::sync::OnceCell<HomeId>,
    /// One for each pool that a volume was opened in.
    keepers: Mutex<HashMap<PoolId, Keeper>>,
    /// A slot stays while its volume is open or someone is opening or closing it.
    pub(super) slots: Mutex<HashMap<DatasetId, Arc<Slot>>>,
    lost: broadcast::Sender<Lost>,
    views: Views,
    /// Another process of this node goes on with the volumes: none is opened here any more.
    pub(super) left: AtomicBool,
}

#[derive(Default)]
pub(super) struct Slot {
    /// Held while opening or closing. Taken before `open`.
    pub(super) gate: tokio::sync::Mutex<()>,
    pub(super) open: RwLock<Option<Open>>,
}

#[derive(Clone)]
pub(super) struct Open {
    pub(super) volume: Arc<Volume>,
    pool: Catalog,
    /// What lets it answer, until it is dropped. Knows the claim that it was opened under.
    held: Arc<Held>,
    /// Ends the watcher.
    pub(super) closed: CancellationToken,
    /// Its closing has begun: it answers nothing any more, and is closed to the end before it is opened again.
    pub(super) closing: Arc<AtomicBool>,
}

impl Volumes {
    pub fn new(settings: VolumeSettings) -> Self {
        Self::with_lease(settings, LeaseSettings::default())
    }

    pub fn with_lease(settings: VolumeSettings, lease: LeaseSettings) -> Self {
        let (lost, views) = (broadcast::Sender::new(LOST_QUEUED), Views::new(settings.clone()));
        let (home, keepers, slots, left) = Default::default();
        Self { inner: Arc::new(Inner { settings, lease, home, keepers, slots, lost, views, left }) }
    }

    pub fn settings(&self) -> &VolumeSettings {
        &self.inner.settings
    }

    /// The snapshots that this process reads.
    pub fn views(&self) -> &Views {
        &self.inner.views
    }

    /// A fresh claim of this process, as it is written into records, but for its home.
    pub fn owner(&self) -> Owner {
        let settings = &self.inner.settings;
        Owner { lease_millis: self.inner.lease.millis(), ..Owner::new(&settings.node, settings.session) }
    }

    async fn owner_at_home(&self) -> Result<Owner, VolumeError> {
        let home = match &self.inner.settings.journal_dir {
            Some(dir) => Some(*self.inner.home.get_or_try_init(|| home::of(dir)).await?),
            None => None,
        };
        Ok(Owner { home, ..self.owner() })
    }

    pub fn lease(&self) -> &LeaseSettings {
        &self.inner.lease
    }

    /// Watches a dataset's owner, as its record names it.
    pub fn watch(&self, pool: &Catalog, dataset: DatasetId, owner: &Owner) -> Watch {
        Watch::new(pool, dataset, owner, &self.inner.lease)
    }

    /// Reports of volumes lost from now on. They are gone from here when they are reported.
    pub fn lost(&self) -> broadcast::Receiver<Lost> {
        self.inner.lost.subscribe()
    }

    /// Opens a volume, or answers the open one. Concurrent calls share one opening.
    ///
    /// # Errors
    /// [`VolumeError::Owned`] when another node has it.
    pub async fn open(&self, pool: &Catalog, dataset: DatasetId) -> Result<Arc<Volume>, VolumeError> {
        self.open_over(pool, dataset, None).await
    }

    /// As [`Self::open`], from an owner that must have stopped. What only that owner's journal holds is lost, and it is fenced.
    ///
    /// # Errors
    /// [`VolumeError::Owned`] when another has it by now, or that one came back.
    pub async fn take_over(&self, pool: &Catalog, dataset: DatasetId, expired: &ExpiredLease) -> Result<Arc<Volume>, VolumeError> {
        self.open_over(pool, dataset, Some(expired)).await
    }

    async fn open_over(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        expired: Option<&ExpiredLease>,
    ) -> Result<Arc<Volume>, VolumeError> {
        loop {
            if let Some(volume) = self.get(dataset) {
                return Ok(volume);
            }
            let slot = self.slot(dataset)?;
            let gate = slot.gate.lock().await;
            if !self.is_current(dataset, &slot) || self.inner.left.load(Ordering::SeqCst) {
                continue;
            }
            if let Some(volume) = slot.volume() {
                return Ok(volume);
            }
            if slot.open.read().is_some() {
                drop(gate);
                self.close(dataset).await?;
                continue;
            }
            return match Box::pin(self.open_now(pool, dataset, expired)).await {
                Ok((volume, held)) => {
                    self.keep(&slot, pool, volume.clone(), held);
                    Ok(volume)
                }
                Err(error) => {
                    self.forget(dataset, &slot);
                    Err(error)
                }
            };
        }
    }

    /// The volume if it is open.
    pub fn get(&self, dataset: DatasetId) -> Option<Arc<Volume>> {
        self.inner.slots.lock().get(&dataset)?.volume()
    }

    /// Every open volume.
    pub fn list(&self) -> Vec<Arc<Volume>> {
        self.inner.slots.lock().values().filter_map(|slot| slot.volume()).collect()
    }

    /// Applies the byte and inode quota of a dataset's record, as it is now, to the open volume.
    pub fn set_quota(&self, dataset: &Dataset) {
        if let Some(volume) = self.get(dataset.id()) {
            volume.fs.set_quota(dataset.size, dataset.properties.quota_inodes);
        }
    }

    /// Flushes, closes and releases the ownership. Not open counts as closed. After a failure: repeat; until then the volume answers nothing.
    pub async fn close(&self, dataset: DatasetId) -> Result<(), VolumeError> {
        let Some(slot) = self.inner.slots.lock().get(&dataset).cloned() else { return Ok(()) };
        let _gate = slot.gate.lock().await;
        let Some(open) = slot.open.read().clone() else { return Ok(()) };
        let name = open.volume.dataset.name.to_string();
        open.closing.store(true, Ordering::Release);
        if let Err(source) = Box::pin(open.volume.fs.close()).await {
            if !open.volume.fs.may_close_again().await {
                // What was acknowledged is in the store and the journal; the next opening here brings it back.
                open.closed.cancel();
                self.forget(dataset, &slot);
            }
            return Err(VolumeError::Fs { dataset: name, source });
        }
        open.closed.cancel();
        self.forget(dataset, &slot);
        release(&open.pool, dataset, &open.held.is_ours()).await
    }

    /// As [`Self::close`], unless somebody holds the volume: whoever does has it from [`Self::open`] or [`Self::get`], and keeps it
    /// for as long as it is used. Nobody gets it while this decides.
    pub async fn close_unused(&self, dataset: DatasetId) -> Result<Closing, VolumeError> {
        let Some(slot) = self.inner.slots.lock().get(&dataset).cloned() else { return Ok(Closing::Closed) };
        let _gate = slot.gate.lock().await;
        let taken = {
            let mut open = slot.open.write();
            match open.as_ref() {
                None => return Ok(Closing::Closed),
                Some(found) if Arc::strong_count(&found.volume) > HOLDERS_OF_OURS => return Ok(Closing::InUse),
                Some(_) => open.take(),
            }
        };
        let Some(open) = taken else { return Ok(Closing::Closed) };
        let name = open.volume.dataset.name.to_string();
        if let Err(source) = Box::pin(open.volume.fs.close()).await {
            *slot.open.write() = Some(open);
            return Err(VolumeError::Fs { dataset: name, source });
        }
        open.closed.cancel();
        self.forget(dataset, &slot);
        release(&open.pool, dataset, &open.held.is_ours()).await.map(|()| Closing::Closed)
    }

    /// Closes everything; answers the first failure after having tried all.
    pub async fn close_all(&self) -> Result<(), VolumeError> {
        let ids: Vec<DatasetId> = self.inner.slots.lock().keys().copied().collect();
        let closes = futures::stream::iter(ids).map(|id| self.close(id)).buffer_unordered(CLOSES_AT_ONCE);
        let results: Vec<_> = closes.collect().await;
        results.into_iter().collect()
    }

    fn slot(&self, dataset: DatasetId) -> Result<Arc<Slot>, VolumeError> {
        if self.inner.left.load(Ordering::SeqCst) {
            return Err(VolumeError::Left { dataset: dataset.to_string() });
        }
        let mut slots = self.inner.slots.lock();
        let max = self.inner.settings.volumes_max;
        if let Some(slot) = slots.get(&dataset) {
            return Ok(slot.clone());
        }
        if slots.len() >= max {
            return Err(VolumeError::Full { dataset: dataset.to_string(), max });
        }
        Ok(slots.entry(dataset).or_default().clone())
    }

    fn is_current(&self, dataset: DatasetId, slot: &Arc<Slot>) -> bool {
        self.inner.slots.lock().get(&dataset).is_some_and(|current| Arc::ptr_eq(current, slot))
    }

    pub(super) fn forget(&self, dataset: DatasetId, slot: &Arc<Slot>) {
        *slot.open.write() = None;
        let mut slots = self.inner.slots.lock();
        if slots.get(&dataset).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            slots.remove(&dataset);
        }
    }

    fn keeper(&self, pool: &Catalog) -> Keeper {
        let mut keepers = self.inner.keepers.lock();
        let new = || Keeper::new(pool.clone(), &self.owner(), self.inner.lease.clone());
        keepers.entry(pool.pool().id).or_insert_with(new).clone()
    }

    async fn open_now(
        &self,
        pool: &Catalog,
        id: DatasetId,
        expired: Option<&ExpiredLease>,
    ) -> Result<(Arc<Volume>, Arc<Held>), VolumeError> {
        let me = self.owner_at_home().await?;
        let absent = || VolumeError::NotFound { what: format!("dataset {id}") };
        // Before a heartbeat is written for nothing.
        let record = pool.dataset_by_id(id).await?.ok_or_else(absent)?.record;
        ownership::may_take(&record, &me, expired)?;
        let begun = self.keeper(pool).begin(id, me.claim).await?;
        let (dataset, before) = claim(pool, id, &me, expired).await?;
        if let (Before::Another, Some(owner)) = (before, &record.owner) {
            tracing::warn!(dataset = %dataset.name, from = owner.node, session = %owner.session, "taking the dataset over from a node that has stopped: changes that were only in its journal are lost");
        }
        begun.held.claimed(begun.life);
        let step = pool.bucket().failpoints().step("volume.open.claimed").await;
        let opened = match step {
            Ok(()) => self.open_fs(pool, &dataset, &begun.held).await,
            Err(injected) => {
                let source = FsError::Unavailable(injected.to_string());
                return Err(VolumeError::Fs { dataset: dataset.name.to_string(), source });
            }
        };
        match opened {
            Ok(volume) => {
                end_restore(pool, &volume, me.session).await;
                Ok((Arc::new(volume), Arc::new(begun.held)))
            }
            Err(error) => {
                undo(pool, id, &begun.held.is_ours(), (before, me.session)).await;
                Err(error)
            }
        }
    }

    async fn open_fs(&self, pool: &Catalog, dataset: &Dataset, held: &Held) -> Result<Volume, VolumeError> {
        let settings = &self.inner.settings;
        let journal = match &settings.journal_dir {
            Some(dir) => Some(journal_path(dir, dataset).await?),
            None => None,
        };
        let place = settings.place(pool, dataset.family, dataset.incarnation);
        let chunks = self.chunks(pool, dataset.family);
        let is_ours = held.is_ours();
        let mut openings = Openings::new(pool, &place, dataset.id(), &is_ours);
        let fs = loop {
            let (expected, options) = (openings.expected().await?, settings.options(dataset, journal.clone()));
            match Fs::open_under(&place, chunks.clone(), options, expected, held.tenure().clone()).await {
                Err(FsError::Fenced) => {}
                opened => break opened.map_err(|source| VolumeError::Fs { dataset: dataset.name.to_string(), source })?,
            }
        };
        let handle_key = pool.keyring().handle_key(dataset.incarnation, &dataset.handle_secret);
        let fs = Arc::new(fs);
        if dataset.properties.snapdir == Snapdir::Visible {
            fs.show_snapshots();
        }
        let served = Served::Live(Live::new(fs.clone(), pool.clone(), dataset.incarnation, self.views().clone()));
        Ok(Volume { pool: pool.pool().id, dataset: dataset.clone(), fs, served: Arc::new(served), handle_key, chunks })
    }

    /// Open volumes of one family share one store, and with it its caches.
    fn chunks(&self, pool: &Catalog, family: FamilyId) -> ChunkStore {
        let slots = self.inner.slots.lock();
        let shared = slots.values().filter_map(|slot| slot.volume()).find(|volume| volume.dataset.family == family);
        match shared {
            Some(volume) => volume.chunks.clone(),
            None => self.inner.settings.chunks(pool, family),
        }
    }

    fn keep(&self, slot: &Arc<Slot>, pool: &Catalog, volume: Arc<Volume>, held: Arc<Held>) {
        let closed = CancellationToken::new();
        let closing = Arc::new(AtomicBool::new(false));
        let tenure = held.tenure().clone();
        let open = Open { volume: volume.clone(), pool: pool.clone(), held, closed: closed.clone(), closing: closing.clone() };
        *slot.open.write() = Some(open);
        let (volumes, slot, pool) = (self.clone(), Arc::downgrade(slot), pool.clone());
        tokio::spawn(async move {
            let why = tokio::select! {
                () = closed.cancelled() => return,
                why = volume.fs.stopped() => why,
                end = tenure.ended() => match end {
                    End::Revoked(claim) => return volumes.hand_over(&pool, &volume, claim).await,
                    // Whoever has it now may not have fenced this one yet.
                    End::Taken => {
                        volume.fs.give_up(FsError::Fenced);
                        FsError::Fenced
                    }
                },
            };
            let Some(slot) = slot.upgrade() else { return };
            let _gate = slot.gate.lock().await;
            // Whoever closes it sees to the rest.
            if closed.is_cancelled() || closing.load(Ordering::Acquire) {
                return;
            }
            let dataset = volume.dataset.id();
            tracing::error!(dataset = %volume.dataset.name, error = %why, "the volume is lost to this process: its mounts answer ESTALE until they are unmounted");
            volumes.forget(dataset, &slot);
            // Nobody listens in a process without mounts.
            let _ = volumes.inner.lost.send(Lost { pool: pool.pool().id, dataset, why });
        });
    }

    /// A volume whose claim was revoked (R27): nothing is answered any more, and what was is
    /// brought to the store while there is time.
    async fn hand_over(&self, pool: &Catalog, volume: &Volume, claim: ClaimId) {
        let dataset = volume.dataset.id();
        let _ = self.inner.lost.send(Lost { pool: pool.pool().id, dataset, why: FsError::Fenced });
        let closed = tokio::time::timeout(self.inner.lease.lease, async {
            while let Err(error) = self.close(dataset).await {
                tracing::warn!(dataset = %volume.dataset.name, %error, "a volume that is given up could not be closed yet");
                tokio::time::sleep(HAND_OVER_RETRY).await;
            }
        });
        if closed.await.is_err() {
            volume.fs.give_up(FsError::Fenced);
            tracing::error!(dataset = %volume.dataset.name, "a volume that was given up could not be closed in time: who takes it does not find what only this node's journal has");
        } else if let Err(error) = pool.remove_revocation(self.inner.settings.session, claim).await {
            tracing::debug!(%error, "the revocation of a claim that was released stays until it is collected");
        }
    }
}

impl Slot {
    fn volume(&self) -> Option<Arc<Volume>> {
        let open = self.open.read();
        let open = open.as_ref().filter(|open| !open.closing.load(Ordering::Acquire));
        open.map(|open| open.volume.clone())
    }
}

async fn journal_path(dir: &std::path::Path, dataset: &Dataset) -> Result<PathBuf, VolumeError> {
    tokio::fs::create_dir_all(dir).await.map_err(|error| {
        VolumeError::Io(format!("journal folder {}: {error}: make it writable, or give another --state-dir", dir.display()))
    })?;
    Ok(dir.join(format!("{}.journal", dataset.incarnation)))
}
