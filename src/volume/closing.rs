//! Closing: the steps of [`super::life`], each of which may fail and is then tried again, by
//! whoever wants the volume and by itself.
//!
//! ```text
//! hold its calls ─▶ flush, close the database, remove the journal ─▶ the record says released ─▶ the place is free
//!                          │ failed for good
//!                          └─▶ open it anew, which replays its journal ─▶ flush, …
//! ```
//! An attempt is a task of its own: a caller that goes away, or whose patience ends, does not leave
//! a close half done.

use super::VolumeError;
use super::claim::ActiveClaim;
use super::life::{Claim, Close, Reason, Step};
use super::place::Place;
use super::volumes::{Closing, Volumes};
use crate::catalog::{Catalog, CatalogError, Dataset, Owner};
use crate::fs::FsError;
use crate::types::{ClaimId, Classify, DatasetId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Between tries of a close that failed. What is owed to a journal is tried more often than a lease
/// ends: each try is a sign of life, without which another node may take the dataset and lose what
/// only the journal has.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
const RETRY_DOUBLINGS: u32 = 5;
/// Leases that an opening that failed is waited to be repeated before what it left is closed:
/// whoever has the volume mounted repeats it sooner.
const REPEATED_WITHIN: u32 = 4;
/// How often others may change the record while it is released.
const RELEASE_TRIES: u32 = 16;
/// How long what has failed may take to end.
pub(super) const ABANDON_LIMIT: Duration = Duration::from_secs(5);

impl Volumes {
    /// Flushes, closes and releases the ownership. Not open counts as closed. After a failure it is
    /// tried again by itself, and by a repeated call; until then the volume's calls are held.
    pub async fn close(&self, dataset: DatasetId) -> Result<(), VolumeError> {
        self.close_for(dataset, Reason::Unmounted).await.map(drop)
    }

    /// As [`Self::close`], unless the volume has a holder: a holder gets it from [`Self::open`] or
    /// [`Self::get`], and keeps it while it is in use. No caller gets it while this decides.
    pub async fn close_unused(&self, dataset: DatasetId) -> Result<Closing, VolumeError> {
        self.close_for(dataset, Reason::Unused).await
    }

    pub(super) async fn close_for(
        &self,
        dataset: DatasetId,
        reason: Reason,
    ) -> Result<Closing, VolumeError> {
        let Some(place) = self.find(dataset) else { return Ok(Closing::Closed) };
        let volumes = self.clone();
        let closing = tokio::spawn(async move { volumes.close_in_turn(&place, reason).await });
        closing.await.unwrap_or_else(|error| {
            Err(VolumeError::Io(format!("closing dataset {dataset}: {error}: see the log; repeat")))
        })
    }

    /// Releases a dataset that this session owns and does not have open, whatever made it so (R36):
    /// a hand-over was asked for. Closed: the record does not name this session any more.
    pub async fn close_disowned(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
    ) -> Result<Closing, VolumeError> {
        if self.find(dataset).is_none() {
            let record = pool.dataset_by_id(dataset).await?.map(|at| at.record);
            let Some(claim) = record.and_then(|record| self.own_claim(&record)) else {
                return Ok(Closing::Closed);
            };
            let place = self.place(pool, dataset)?;
            let _turn = place.turn.lock().await;
            if self.is_current(&place) && place.life().is_idle() {
                tracing::warn!(
                    %dataset,
                    "this node owns a dataset that it does not have open: it is recovered and \
                     released"
                );
                place.begin_opening();
                place.claimed(ActiveClaim::Maintenance(claim));
                place.not_opened(Claim::Owed);
            }
        }
        self.close_unused(dataset).await
    }

    async fn close_in_turn(
        &self,
        place: &Arc<Place>,
        reason: Reason,
    ) -> Result<Closing, VolumeError> {
        let _turn = place.turn.lock().await;
        if !self.is_current(place) {
            return Ok(Closing::Closed);
        }
        match place.begin_closing(reason) {
            Close::Nothing => {
                self.forget(place);
                return Ok(Closing::Closed);
            }
            Close::InUse => return Ok(Closing::InUse),
            Close::Steps => {}
        }
        if let Some(open) = place.open()
            && reason != Reason::Revoked
        {
            // Its clients come again, and find the volume opened anew, or another owner.
            open.volume.fs.hold_calls();
        }
        self.finish_close(place).await.map(|()| Closing::Closed)
    }

    /// Takes the remaining steps, under the place's turn.
    pub(super) async fn finish_close(&self, place: &Arc<Place>) -> Result<(), VolumeError> {
        let done = Box::pin(self.take_steps(place)).await;
        if place.life().is_idle() {
            self.forget(place);
        }
        if done.is_err() {
            let doublings = place.count_failure().min(RETRY_DOUBLINGS);
            self.close_later(place, (RETRY_MIN * (1 << doublings)).min(RETRY_MAX));
        }
        done
    }

    async fn take_steps(&self, place: &Place) -> Result<(), VolumeError> {
        while let Some(step) = place.step() {
            match step {
                Step::Flush => self.flush(place).await?,
                Step::Recover => self.recover(place).await?,
                Step::Release => {
                    self.step(place, "volume.close.release").await?;
                    release(place, Settled::No).await?;
                    place.released();
                }
                Step::Settle => {
                    release(place, Settled::Yes).await?;
                    place.released();
                }
            }
        }
        Ok(())
    }

    async fn flush(&self, place: &Place) -> Result<(), VolumeError> {
        let Some(open) = place.open() else {
            place.failed();
            return Ok(());
        };
        self.step(place, "volume.close.flush").await?;
        let fs = &open.volume.fs;
        let Err(source) = Box::pin(fs.close()).await else {
            place.flushed();
            return Ok(());
        };
        if !fs.may_close_again().await {
            // Acknowledged changes are in the store and the journal; opening it again replays them.
            fs.abandon_within(ABANDON_LIMIT).await;
            place.failed();
        }
        Err(VolumeError::Fs { dataset: open.volume.dataset.name.to_string(), source })
    }

    /// Opens a volume that the record names as this session's, only to replay its journal. No
    /// caller gets it.
    async fn recover(&self, place: &Place) -> Result<(), VolumeError> {
        self.step(place, "volume.close.recover").await?;
        let record = place.pool.dataset_by_id(place.id).await?.map(|at| at.record);
        if !record.is_some_and(|record| place.owns(&record)) {
            place.not_ours();
            return Ok(());
        }
        match Box::pin(self.open_now(place, None)).await {
            Ok(open) => {
                place.reopened(open);
                Ok(())
            }
            Err(failed) => {
                place.not_opened(failed.claim);
                Err(failed.error)
            }
        }
    }

    /// The claim that names this session as the owner of a volume, and not for maintenance.
    fn own_claim(&self, record: &Dataset) -> Option<ClaimId> {
        let me = self.owner();
        let is_own = |owner: &&Owner| owner.session == me.session && owner.node == me.node;
        record.owner.as_ref().filter(is_own).map(|owner| owner.claim)
    }

    async fn step(&self, place: &Place, name: &str) -> Result<(), VolumeError> {
        let passed = place.pool.bucket().failpoints().step(name).await;
        passed.map_err(|injected| VolumeError::Fs {
            dataset: place.id.to_string(),
            source: FsError::Unavailable(injected.to_string()),
        })
    }

    /// Closes the remains of a failed opening, unless the opening is retried.
    pub(super) fn close_unless_repeated(&self, place: &Arc<Place>) {
        self.close_later(place, self.lease().lease * REPEATED_WITHIN);
    }

    pub(super) fn close_later(&self, place: &Arc<Place>, after: Duration) {
        if !place.try_again(Instant::now() + after) {
            return;
        }
        let (inner, place) = (Arc::downgrade(&self.inner), place.clone());
        tokio::spawn(async move {
            while let Some(due) = place.due() {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = place.woken.notified() => continue,
                }
                let Some(inner) = inner.upgrade() else { return };
                Self { inner }.close_due(&place).await;
            }
        });
    }

    async fn close_due(&self, place: &Arc<Place>) {
        let _turn = place.turn.lock().await;
        if self.inner.left.load(Ordering::SeqCst) {
            // Whoever leaves it comes next.
            place.try_again(Instant::now() + RETRY_MAX);
            return;
        }
        // It may have been opened, or tried, while this waited for its turn.
        if self.is_current(place)
            && place.due().is_some_and(|due| due <= Instant::now())
            && let Err(error) = self.finish_close(place).await
        {
            tracing::warn!(
                dataset = %place.id,
                %error,
                class = ?error.class(),
                "a volume that is not used here any more cannot be closed yet: it is tried again"
            );
        }
    }
}

/// Takes the claims that were made here out of the record; another claim stays (R31).
/// `Settled::Yes`: and none that is still on its way can arrive, because each is of a version that
/// is there now.
async fn release(place: &Place, settled: Settled) -> Result<(), VolumeError> {
    let (pool, id) = (&place.pool, place.id);
    for _ in 0..RELEASE_TRIES {
        let Some(mut at) = pool.dataset_by_id(id).await? else { return Ok(()) };
        let mut next = at.record.clone();
        match (place.owns(&next), settled) {
            (true, _) => next.owner = None,
            (false, Settled::Yes) => {}
            (false, Settled::No) => return Ok(()),
        }
        match pool.swap_dataset(&mut at, next).await {
            Err(CatalogError::Contended { .. }) => {}
            swapped => return Ok(swapped?),
        }
    }
    Err(CatalogError::Contended { what: format!("dataset {id}"), tries: RELEASE_TRIES }.into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Yes,
    No,
}
