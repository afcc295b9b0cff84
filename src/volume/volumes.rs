//! The volumes that one process has open.

use super::claim::{ActiveClaim, Openings, claim};
use super::closing::ABANDON_LIMIT;
use super::lease::{End, ExpiredLease, Held, Keeper, LeaseSettings, Watch};
use super::life::{Claim, Reason, Step, Want};
use super::ownership::{self, Before};
use super::place::{Open, Place, Users, VolumeGuard};
use super::restoring::end_restore;
use super::served::{Live, Served};
use super::settings::VolumeSettings;
use super::views::Views;
use super::{VolumeError, home, journals};
use crate::catalog::{Catalog, Dataset, Owner, Snapdir};
use crate::chunk::ChunkStore;
use crate::fs::{Fs, FsError};
use crate::types::{ClaimId, DatasetId, FamilyId, HomeId, PoolId, SessionId};
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, oneshot};
use tokio_util::sync::CancellationToken;

/// Volumes closed at once by [`Volumes::close_all`].
pub(super) const CLOSES_AT_ONCE: usize = 8;
/// Reports of lost volumes kept for a slow listener.
const LOST_QUEUED: usize = 256;
/// Between tries to close what is given up.
const HAND_OVER_RETRY: Duration = Duration::from_millis(500);

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
    /// No two openings in this process have the same.
    pub opening: u64,
    /// What it is open under.
    pub claim: ActiveClaim,
    /// How many guards there are of it.
    pub(super) users: Users,
    chunks: ChunkStore,
}

/// A volume that another owner took, or that failed for good.
#[derive(Clone, Debug)]
pub struct Lost {
    pub pool: PoolId,
    pub dataset: DatasetId,
    /// The [`Volume::opening`] that was lost: the dataset may have been opened anew since.
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
    /// Of the folder of journals, once it was asked for.
    home: tokio::sync::OnceCell<HomeId>,
    /// One for each pool that a volume was opened in.
    keepers: Mutex<HashMap<PoolId, Keeper>>,
    /// A place stays until the dataset's record does not name this session (R33).
    pub(super) places: Mutex<HashMap<DatasetId, Arc<Place>>>,
    openings: AtomicU64,
    /// Earlier runs on this folder that are known to be over: each is asked about once.
    ended: Mutex<HashSet<SessionId>>,
    lost: broadcast::Sender<Lost>,
    mailbox: Arc<Notify>,
    views: Views,
    /// Another process of this node goes on with the volumes: none is opened here any more.
    pub(super) left: AtomicBool,
}

impl Volumes {
    pub fn new(settings: VolumeSettings) -> Self {
        Self::with_lease(settings, LeaseSettings::default())
    }

    pub fn with_lease(settings: VolumeSettings, lease: LeaseSettings) -> Self {
        let (lost, views) = (broadcast::Sender::new(LOST_QUEUED), Views::new(settings.clone()));
        let (home, keepers, places, openings, ended, mailbox, left) = Default::default();
        let inner = Inner {
            settings,
            lease,
            home,
            keepers,
            places,
            openings,
            ended,
            lost,
            mailbox,
            views,
            left,
        };
        Self { inner: Arc::new(inner) }
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
        Owner {
            lease_millis: self.inner.lease.millis(),
            ..Owner::new(&settings.node, settings.session)
        }
    }

    pub(super) async fn owner_at_home(&self) -> Result<Owner, VolumeError> {
        let home = match &self.inner.settings.journal_dir {
            Some(dir) => Some(*self.inner.home.get_or_try_init(|| home::of(dir)).await?),
            None => None,
        };
        Ok(Owner { home, ..self.owner() })
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

    /// Resolves when a renewal of the lease has seen that somebody waits for an answer of this
    /// session: its mailbox is in the folder that each renewal lists. For one task at a time.
    pub async fn requested(&self) {
        self.inner.mailbox.notified().await;
    }

    /// Reports of volumes lost from now on. They are gone from here when they are reported.
    pub fn lost(&self) -> broadcast::Receiver<Lost> {
        self.inner.lost.subscribe()
    }

    /// Opens a volume, or answers the open one. Concurrent calls share one opening.
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

    /// As [`Self::open`], from an owner that must have stopped. What only that owner's journal
    /// holds is lost, and it is fenced.
    ///
    /// # Errors
    /// [`VolumeError::Owned`] when another has it by now, or that one came back.
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
        // A task of its own: a caller that goes away must not leave a claim that nobody knows of.
        tokio::spawn(async move {
            let opened = Box::pin(volumes.open_in_turn(&pool, dataset, expired.as_ref())).await;
            if let Err(Ok(unwanted)) = answer.send(opened) {
                drop(unwanted);
                if let Err(error) = volumes.close_unused(dataset).await {
                    tracing::warn!(
                        %dataset,
                        %error,
                        "a volume whose opening nobody waited for cannot be closed yet: it is \
                         tried again"
                    );
                }
            }
        });
        let ended = |_| {
            VolumeError::Io(format!(
                "the opening of dataset {dataset} ended without an answer: see the log; repeat"
            ))
        };
        answered.await.map_err(ended)?
    }

    async fn open_in_turn(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        expired: Option<&ExpiredLease>,
    ) -> Result<VolumeGuard, VolumeError> {
        loop {
            let place = self.place(pool, dataset)?;
            let _turn = place.turn.lock().await;
            if !self.is_current(&place) || self.inner.left.load(Ordering::SeqCst) {
                continue;
            }
            match (place.want(), place.volume()) {
                (Want::Use, Some(volume)) => return Ok(volume),
                (Want::Use | Want::Open, _) => return self.open_place(&place, expired).await,
                (Want::Close, _) => match self.finish_close(&place).await {
                    Err(error) if place.want() == Want::Close => return Err(error),
                    Ok(()) | Err(_) => {}
                },
            }
        }
    }

    async fn open_place(
        &self,
        place: &Arc<Place>,
        expired: Option<&ExpiredLease>,
    ) -> Result<VolumeGuard, VolumeError> {
        place.begin_opening();
        match Box::pin(self.open_now(place, expired)).await {
            Ok(open) => {
                self.watch_volume(place, &open);
                Ok(place.opened(open))
            }
            Err(failed) => {
                place.not_opened(failed.claim);
                match place.step() {
                    None => self.forget(place),
                    Some(Step::Recover) => self.close_unless_repeated(place),
                    // Nothing was opened: others need not wait. It is tried again by itself.
                    Some(_) => drop(self.finish_close(place).await),
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
        self.inner.places.lock().values().filter_map(|place| place.volume()).collect()
    }

    /// Whether this session has, or may have, a dataset of this pool: others may ask it for
    /// something.
    pub fn has_any_of(&self, pool: PoolId) -> bool {
        self.inner.places.lock().values().any(|place| place.pool.pool().id == pool)
    }

    /// Those whose close has begun and is not at its end.
    pub fn closing(&self) -> Vec<DatasetId> {
        self.inner
            .places
            .lock()
            .values()
            .filter(|place| place.step().is_some())
            .map(|place| place.id)
            .collect()
    }

    /// Applies the byte and inode quota of a dataset's record, as it is now, to the open volume.
    pub fn set_quota(&self, dataset: &Dataset) {
        if let Some(volume) = self.get(dataset.id()) {
            volume.fs.set_quota(dataset.size, dataset.properties.quota_inodes);
        }
    }

    /// Closes everything; answers the first failure after having tried all.
    pub async fn close_all(&self) -> Result<(), VolumeError> {
        let ids: Vec<DatasetId> = self.inner.places.lock().keys().copied().collect();
        let closes =
            futures::stream::iter(ids).map(|id| self.close(id)).buffer_unordered(CLOSES_AT_ONCE);
        let results: Vec<_> = closes.collect().await;
        results.into_iter().collect()
    }

    pub(super) fn find(&self, dataset: DatasetId) -> Option<Arc<Place>> {
        self.inner.places.lock().get(&dataset).cloned()
    }

    pub(super) fn place(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
    ) -> Result<Arc<Place>, VolumeError> {
        if self.inner.left.load(Ordering::SeqCst) {
            return Err(VolumeError::Left { dataset: dataset.to_string() });
        }
        let mut places = self.inner.places.lock();
        let max = self.inner.settings.volumes_max;
        if let Some(place) = places.get(&dataset) {
            return Ok(place.clone());
        }
        if places.len() >= max {
            return Err(VolumeError::Full { dataset: dataset.to_string(), max });
        }
        Ok(places
            .entry(dataset)
            .or_insert_with(|| Arc::new(Place::new(dataset, pool.clone())))
            .clone())
    }

    pub(super) fn is_current(&self, place: &Arc<Place>) -> bool {
        self.inner.places.lock().get(&place.id).is_some_and(|current| Arc::ptr_eq(current, place))
    }

    pub(super) fn forget(&self, place: &Arc<Place>) {
        let mut places = self.inner.places.lock();
        if places.get(&place.id).is_some_and(|current| Arc::ptr_eq(current, place)) {
            places.remove(&place.id);
        }
    }

    fn keeper(&self, pool: &Catalog) -> Keeper {
        let mut keepers = self.inner.keepers.lock();
        let new = || {
            Keeper::new(
                pool.clone(),
                &self.owner(),
                self.inner.lease.clone(),
                self.inner.mailbox.clone(),
            )
        };
        keepers.entry(pool.pool().id).or_insert_with(new).clone()
    }

    pub(super) async fn open_now(
        &self,
        place: &Place,
        expired: Option<&ExpiredLease>,
    ) -> Result<Open, NotOpened> {
        let (pool, id) = (&place.pool, place.id);
        let me = self.owner_at_home().await?;
        let absent = || NotOpened {
            error: VolumeError::NotFound { what: format!("dataset {id}") },
            claim: Claim::Refused,
        };
        // Before a heartbeat is written for nothing.
        let record = pool.dataset_by_id(id).await?.ok_or_else(absent)?.record;
        let stopped = self.stopped_at_home(pool, &record, &me).await?;
        let expired = expired.or(stopped.as_ref());
        ownership::may_take(&record, &me, expired).map_err(NotOpened::at_claim)?;
        let begun = self.keeper(pool).begin(id, me.claim).await?;
        if self.inner.left.load(Ordering::SeqCst) {
            // Whoever left did not wait for this: the next process may have it open by now.
            return Err(VolumeError::Left { dataset: id.to_string() }.into());
        }
        let active = ActiveClaim::Volume(begun.held.tenure().clone());
        place.claiming(active.clone());
        let (dataset, before) = claim(pool, id, &me, expired).await.map_err(NotOpened::at_claim)?;
        place.claimed(active.clone());
        if let (Before::Another, Some(owner)) = (before, &record.owner) {
            tracing::warn!(
                dataset = %dataset.name,
                from = owner.node,
                session = %owner.session,
                "taking the dataset over from a node that has stopped: changes that were only in \
                 its journal are lost"
            );
        }
        begun.held.claimed(begun.life);
        let step = pool.bucket().failpoints().step("volume.open.claimed").await;
        let opened = match step {
            Ok(()) => self.open_fs(pool, &dataset, &begun.held, active).await,
            Err(injected) => {
                let source = FsError::Unavailable(injected.to_string());
                Err(VolumeError::Fs { dataset: dataset.name.to_string(), source })
            }
        };
        match opened {
            Ok(volume) => {
                end_restore(pool, &volume).await;
                Ok(Open {
                    volume: Arc::new(volume),
                    held: Arc::new(begun.held),
                    closed: CancellationToken::new(),
                })
            }
            Err(error) => {
                // An unfinished release by force is finished by an opening, which voids the journal
                // before (R34).
                let claim = if before == Before::Released { Claim::Clean } else { Claim::Owed };
                Err(NotOpened { error, claim })
            }
        }
    }

    async fn open_fs(
        &self,
        pool: &Catalog,
        dataset: &Dataset,
        held: &Held,
        claim: ActiveClaim,
    ) -> Result<Volume, VolumeError> {
        let settings = &self.inner.settings;
        let journal =
            settings.journal_dir.as_ref().map(|dir| journals::path(dir, pool, dataset.id()));
        let place = settings.place(pool, dataset.family, dataset.incarnation);
        let chunks = self.chunks(pool, dataset.family);
        let mut openings = Openings::new(pool, &place, dataset.id(), &claim);
        let fs = loop {
            let (expected, options) =
                (openings.expected().await?, settings.options(dataset, journal.clone()));
            match Fs::open_under(&place, chunks.clone(), options, expected, held.tenure().clone())
                .await
            {
                Err(FsError::Fenced) => {}
                opened => {
                    break opened.map_err(|source| VolumeError::Fs {
                        dataset: dataset.name.to_string(),
                        source,
                    })?;
                }
            }
        };
        let handle_key = pool.keyring().handle_key(dataset.incarnation, &dataset.handle_secret);
        let fs = Arc::new(fs);
        if dataset.properties.snapdir == Snapdir::Visible {
            fs.show_snapshots();
        }
        let served = Served::Live(Live::new(
            fs.clone(),
            pool.clone(),
            dataset.incarnation,
            self.views().clone(),
        ));
        let opening = self.inner.openings.fetch_add(1, Ordering::Relaxed);
        let (served, users) = (Arc::new(served), Users::default());
        Ok(Volume {
            pool: pool.pool().id,
            dataset: dataset.clone(),
            fs,
            served,
            handle_key,
            opening,
            claim,
            users,
            chunks,
        })
    }

    /// Open volumes of one family share one store, and with it its caches.
    fn chunks(&self, pool: &Catalog, family: FamilyId) -> ChunkStore {
        let shared = self.list().into_iter().find(|volume| volume.dataset.family == family);
        match shared {
            Some(volume) => volume.chunks.clone(),
            None => self.inner.settings.chunks(pool, family),
        }
    }

    fn watch_volume(&self, place: &Arc<Place>, open: &Open) {
        let (volumes, place) = (self.clone(), Arc::downgrade(place));
        let (volume, closed, tenure) =
            (open.volume.clone(), open.closed.clone(), open.held.tenure().clone());
        tokio::spawn(async move {
            let why = tokio::select! {
                () = closed.cancelled() => return,
                why = volume.fs.stopped() => why,
                end = tenure.ended() => match end {
                    End::Revoked(claim) => {
                        let Some(place) = place.upgrade() else { return };
                        return volumes.hand_over(&place.pool, &volume, claim).await;
                    }
                    // Whoever has it now may not have fenced this one yet.
                    End::Taken => {
                        volume.fs.give_up(FsError::Fenced);
                        FsError::Fenced
                    }
                },
            };
            if let Some(place) = place.upgrade() {
                volumes.lose(&place, &volume, why).await;
            }
        });
    }

    /// Recovers what only the journal holds, unless the dataset is another owner's.
    async fn lose(&self, place: &Arc<Place>, volume: &Volume, why: FsError) {
        let _turn = place.turn.lock().await;
        // Whoever closes it sees to the rest.
        if !self.is_current(place) || !place.lost(volume) {
            return;
        }
        tracing::error!(
            dataset = %volume.dataset.name,
            error = %why,
            "the volume is lost to this process: its mounts answer ESTALE until they are unmounted"
        );
        self.report(volume, why);
        volume.fs.abandon_within(ABANDON_LIMIT).await;
        self.close_later(place, Duration::ZERO);
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

    /// A volume whose claim was revoked (R27): nothing is answered any more, and what was is
    /// brought to the store while there is time.
    async fn hand_over(&self, pool: &Catalog, volume: &Volume, claim: ClaimId) {
        let dataset = volume.dataset.id();
        self.report(volume, FsError::Fenced);
        let closed = tokio::time::timeout(self.inner.lease.lease, async {
            while let Err(error) = self.close_for(dataset, Reason::Revoked).await {
                tracing::warn!(
                    dataset = %volume.dataset.name,
                    %error,
                    "a volume that is given up could not be closed yet"
                );
                tokio::time::sleep(HAND_OVER_RETRY).await;
            }
        });
        if closed.await.is_err() {
            volume.fs.give_up(FsError::Fenced);
            tracing::error!(
                dataset = %volume.dataset.name,
                "a volume that was given up could not be closed in time: who takes it does not \
                 find what only this node's journal has"
            );
        } else if let Err(error) = pool.remove_revocation(self.inner.settings.session, claim).await
        {
            tracing::debug!(
                %error,
                "the revocation of a claim that was released stays until it is collected"
            );
        }
    }
}

/// Why a volume did not open, and what became of its claim.
pub(super) struct NotOpened {
    pub error: VolumeError,
    pub claim: Claim,
}

impl NotOpened {
    fn at_claim(error: VolumeError) -> Self {
        let claim = match &error {
            VolumeError::Catalog(_) | VolumeError::Io(_) | VolumeError::Fs { .. } => Claim::Unknown,
            VolumeError::NotFound { .. }
            | VolumeError::Owned { .. }
            | VolumeError::Deleting { .. }
            | VolumeError::Creating { .. }
            | VolumeError::Full { .. }
            | VolumeError::Left { .. }
            | VolumeError::ReadOnly { .. } => Claim::Refused,
        };
        Self { error, claim }
    }
}

impl<E: Into<VolumeError>> From<E> for NotOpened {
    fn from(error: E) -> Self {
        Self { error: error.into(), claim: Claim::NotTried }
    }
}
