//! Closes a volume in the steps of [`super::life`], each of which may fail and is then retried, by
//! a caller that wants the volume and by a background task.
//!
//! ```text
//! hold calls ─▶ flush, close the database, remove the journal ─▶ release the record ─▶ place free
//!                          │ failed for good
//!                          └─▶ open it again, which replays its journal ─▶ flush, …
//! ```
//! An attempt is a task of its own: a caller that goes away or times out does not leave a close
//! half done.

use super::VolumeError;
use super::life::{Claim, Close, Reason, Step};
use super::place::Place;
use super::volumes::{Closing, Volumes};
use crate::catalog::{Catalog, CatalogError, Dataset, Owner};
use crate::fs::FsError;
use crate::types::{Classify, DatasetId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Pauses between retries of a failed close. A close that has to replay a journal is retried before
/// the lease expires: each attempt renews the lease, and without that another node may take the
/// dataset and lose the changes that only the journal has.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
const RETRY_DOUBLINGS: u32 = 5;
/// After a failed opening, leases to wait for a retry before its remains are closed: a client that
/// has the volume mounted retries sooner.
const REPEATED_WITHIN: u32 = 4;
/// Attempts to release a record that others change meanwhile.
const RELEASE_TRIES: u32 = 16;
/// Time limit for a failed file system to end.
pub(super) const ABANDON_LIMIT: Duration = Duration::from_secs(5);

impl Volumes {
    /// Flushes, closes and releases the ownership. Not open counts as closed. After a failure a
    /// background task retries it, and so does another call; until then the volume's calls are
    /// held.
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

    /// Releases a dataset that this session owns and does not have open, for whatever reason (R36),
    /// because a hand-over was requested. Closed: the record no longer names this session.
    pub async fn close_disowned(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
    ) -> Result<Closing, VolumeError> {
        if self.find(dataset).is_none() {
            let record = pool.dataset_by_id(dataset).await?.map(|at| at.record);
            if !record.is_some_and(|record| names(&record, &self.owner())) {
                return Ok(Closing::Closed);
            }
            let place = self.place(pool, dataset)?;
            let _turn = place.turn.lock().await;
            if self.is_current(&place) && place.life().is_idle() {
                tracing::warn!(
                    %dataset,
                    "this node owns a dataset that it does not have open: it is recovered and \
                     released"
                );
                place.begin_opening();
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
            // Its clients retry, and find the volume opened again, or another owner.
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
                    release(&place.pool, place.id, &self.owner(), Settled::No).await?;
                    place.released();
                }
                Step::Settle => {
                    release(&place.pool, place.id, &self.owner(), Settled::Yes).await?;
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
        if !record.is_some_and(|record| names(&record, &self.owner())) {
            place.not_ours();
            return Ok(());
        }
        match Box::pin(self.open_now(&place.pool, place.id, None)).await {
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
            // The hand-over in progress takes this place next.
            place.try_again(Instant::now() + RETRY_MAX);
            return;
        }
        // The volume may have been opened, or another attempt made, while this waited for its turn.
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

/// Returns whether the record names this session: whatever its claim, the session has only this
/// place for the dataset.
fn names(dataset: &Dataset, me: &Owner) -> bool {
    dataset.owner.as_ref().is_some_and(|owner| owner.session == me.session && owner.node == me.node)
}

/// Makes sure that the record does not name `me`. `Settled::Yes`: nor can a claim of `me` that is
/// still in flight make it do so, because each is of a version that exists now.
async fn release(
    pool: &Catalog,
    id: DatasetId,
    me: &Owner,
    settled: Settled,
) -> Result<(), VolumeError> {
    for _ in 0..RELEASE_TRIES {
        let Some(mut at) = pool.dataset_by_id(id).await? else { return Ok(()) };
        let mut next = at.record.clone();
        match (names(&next, me), settled) {
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
