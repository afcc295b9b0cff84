//! Closing: the steps of [`super::lifecycle`]. A step that fails is retried, by a task and by
//! whoever wants the volume.
//!
//! ```text
//! hold its calls ─▶ flush, close the database, remove the journal ─▶ the record says released
//!                     │ failed for good                                ─▶ the entry is removed
//!                     └─▶ open it again, which replays its journal ─▶ flush, …
//! ```
//! An attempt is a task of its own: a caller that goes away or times out leaves no close half done.

use super::VolumeError;
use super::claim::ActiveClaim;
use super::entry::VolumeEntry;
use super::lifecycle::{ClaimOutcome, CloseAction, CloseReason, CloseStep};
use super::volumes::{ABANDON_LIMIT, Closing, Volumes};
use crate::catalog::{Catalog, CatalogError, Dataset, Owner, State};
use crate::fs::FsError;
use crate::types::{ClaimId, Classify, DatasetId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// The pause between attempts of a close that failed, which doubles. It stays below a lease: each
/// attempt renews the lease, without which another node may take the dataset and lose the changes
/// that only the journal has.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);
const RETRY_DOUBLINGS: u32 = 5;
/// Time, in leases, that a retry of a failed opening is awaited before the volume is closed: a
/// client that has it mounted retries sooner.
const RETRIED_WITHIN: u32 = 4;
/// Attempts to release a record that others change at the same time.
const RELEASE_TRIES: u32 = 16;

impl Volumes {
    /// Flushes and closes the volume, and releases the dataset. Not open counts as closed. After a
    /// failure it is retried by a task, and by the next call; until then the volume's calls are
    /// held.
    pub async fn close(&self, dataset: DatasetId) -> Result<(), VolumeError> {
        self.close_for(dataset, CloseReason::Unmounted).await.map(drop)
    }

    /// As [`Self::close`], for any reason: [`CloseReason::Unused`] leaves a volume open that has
    /// users, who hold a [`VolumeGuard`](super::VolumeGuard).
    pub async fn close_for(
        &self,
        dataset: DatasetId,
        reason: CloseReason,
    ) -> Result<Closing, VolumeError> {
        let Some(entry) = self.find(dataset) else { return Ok(Closing::Closed) };
        let volumes = self.clone();
        let closing = tokio::spawn(async move { volumes.close_exclusively(&entry, reason).await });
        closing.await.unwrap_or_else(|error| {
            Err(VolumeError::Io(format!("closing dataset {dataset}: {error}: see the log; retry")))
        })
    }

    /// Releases a dataset that this session owns and does not have open, for whatever reason (R33),
    /// because another node asks for it. Closed: the record no longer names this session.
    pub async fn release_unopened(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
    ) -> Result<Closing, VolumeError> {
        if self.find(dataset).is_none() {
            let record = pool.dataset_by_id(dataset).await?.map(|at| at.record);
            let Some(claim) = record.and_then(|record| self.own_claim(&record)) else {
                return Ok(Closing::Closed);
            };
            tracing::warn!(
                %dataset,
                "this node owns a dataset that it does not have open; recovering and releasing it"
            );
            self.adopt(pool, dataset, claim).await?;
        }
        self.close_for(dataset, CloseReason::Unused).await
    }

    /// Makes an entry for a dataset that this node owns by this claim and does not have open,
    /// unless there is one.
    pub(super) async fn adopt(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        claim: ClaimId,
    ) -> Result<(), VolumeError> {
        let entry = self.entry(pool, dataset)?;
        let _lock = entry.transition.lock().await;
        if self.is_current(&entry) && entry.lifecycle().is_idle() {
            entry.begin_opening();
            entry.claimed(ActiveClaim::Maintenance(claim));
            entry.not_opened(ClaimOutcome::NeedsRecovery);
        }
        Ok(())
    }

    async fn close_exclusively(
        &self,
        entry: &Arc<VolumeEntry>,
        reason: CloseReason,
    ) -> Result<Closing, VolumeError> {
        let _lock = entry.transition.lock().await;
        if !self.is_current(entry) {
            return Ok(Closing::Closed);
        }
        match entry.begin_closing(reason) {
            CloseAction::Nothing => {
                self.forget(entry);
                return Ok(Closing::Closed);
            }
            CloseAction::InUse => return Ok(Closing::InUse),
            CloseAction::Steps => {}
        }
        if let Some(open) = entry.open()
            && reason != CloseReason::Discarded
            && (reason != CloseReason::Revoked || open.volume.dataset.is_shared())
        {
            // Its clients retry, and find the volume opened again, or another owner. After a
            // revocation those of a volume of one node get ESTALE instead (R25).
            open.volume.fs.hold_calls();
        }
        self.finish_close(entry).await.map(|()| Closing::Closed)
    }

    /// Takes the remaining steps. The caller has locked the entry.
    pub(super) async fn finish_close(&self, entry: &Arc<VolumeEntry>) -> Result<(), VolumeError> {
        let done = Box::pin(self.take_steps(entry)).await;
        if entry.lifecycle().is_idle() {
            self.forget(entry);
        }
        if done.is_err() {
            let doublings = entry.count_failure().min(RETRY_DOUBLINGS);
            self.close_later(entry, (RETRY_MIN * (1 << doublings)).min(RETRY_MAX));
        }
        done
    }

    async fn take_steps(&self, entry: &VolumeEntry) -> Result<(), VolumeError> {
        while let Some(step) = entry.step() {
            match step {
                CloseStep::Flush => self.flush(entry).await?,
                CloseStep::Recover => self.recover(entry).await?,
                CloseStep::Release => {
                    self.step(entry, "volume.close.release").await?;
                    self.release(entry, Settled::No).await?;
                }
                CloseStep::Settle => self.release(entry, Settled::Yes).await?,
                CloseStep::Discard => self.stop_discarded(entry).await,
            }
        }
        Ok(())
    }

    async fn release(&self, entry: &VolumeEntry, settled: Settled) -> Result<(), VolumeError> {
        let discards = entry.lifecycle().discards();
        let was_ours = release(entry, settled).await?;
        entry.released();
        if discards && was_ours {
            self.remove_journal(entry).await;
        }
        Ok(())
    }

    async fn flush(&self, entry: &VolumeEntry) -> Result<(), VolumeError> {
        let Some(open) = entry.open() else {
            entry.failed();
            return Ok(());
        };
        self.step(entry, "volume.close.flush").await?;
        let fs = &open.volume.fs;
        let Err(source) = Box::pin(fs.close()).await else {
            entry.flushed();
            return Ok(());
        };
        if !fs.may_close_again().await {
            // Acknowledged changes are in the store and the journal; the next opening replays them.
            fs.abandon_within(ABANDON_LIMIT).await;
            entry.failed();
        }
        Err(VolumeError::Fs { dataset: open.volume.dataset.name.to_string(), source })
    }

    /// Opens the volume to replay its journal, if the record still names a claim of ours. Nobody
    /// may use it.
    async fn recover(&self, entry: &VolumeEntry) -> Result<(), VolumeError> {
        self.step(entry, "volume.close.recover").await?;
        let record = entry.pool.dataset_by_id(entry.id).await?.map(|at| at.record);
        if !record.is_some_and(|record| entry.owns(&record)) {
            entry.not_ours();
            return Ok(());
        }
        match Box::pin(self.open_now(entry, None)).await {
            Ok(open) => {
                entry.reopened(open);
                Ok(())
            }
            Err(failed) => {
                entry.not_opened(failed.claim);
                Err(failed.error)
            }
        }
    }

    /// The claim by which this session owns a volume, unless it is a maintenance claim.
    pub(super) fn own_claim(&self, record: &Dataset) -> Option<ClaimId> {
        let me = self.owner();
        let is_own = |owner: &&Owner| owner.session == me.session && owner.node == me.node;
        record.owner.as_ref().filter(is_own).map(|owner| owner.claim)
    }

    async fn step(&self, entry: &VolumeEntry, name: &str) -> Result<(), VolumeError> {
        let passed = entry.pool.bucket().failpoints().step(name).await;
        passed.map_err(|injected| VolumeError::Fs {
            dataset: entry.id.to_string(),
            source: FsError::Unavailable(injected.to_string()),
        })
    }

    /// Closes the volume after a failed opening, unless the opening is retried in time.
    pub(super) fn close_unless_retried(&self, entry: &Arc<VolumeEntry>) {
        self.close_later(entry, self.lease().lease * RETRIED_WITHIN);
    }

    pub(super) fn close_later(&self, entry: &Arc<VolumeEntry>, after: Duration) {
        if !entry.try_again(Instant::now() + after) {
            return;
        }
        let (inner, entry) = (Arc::downgrade(&self.inner), entry.clone());
        tokio::spawn(async move {
            while let Some(due) = entry.due() {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = entry.woken.notified() => continue,
                }
                let Some(inner) = inner.upgrade() else { return };
                Self { inner }.close_due(&entry).await;
            }
        });
    }

    async fn close_due(&self, entry: &Arc<VolumeEntry>) {
        let _lock = entry.transition.lock().await;
        if self.inner.handed_over.load(Ordering::SeqCst) {
            // The hand-over comes next.
            entry.try_again(Instant::now() + RETRY_MAX);
            return;
        }
        // The volume may have been opened, or its close retried, while this waited for the lock.
        if self.is_current(entry)
            && entry.due().is_some_and(|due| due <= Instant::now())
            && let Err(error) = self.finish_close(entry).await
        {
            tracing::warn!(
                dataset = %entry.id,
                %error,
                class = ?error.class(),
                "closing an unused volume failed; retrying"
            );
        }
    }
}

/// Takes the claims of the entry out of the record, and tombstones a dataset that is discarded;
/// another claim stays (R31). `Settled::Yes`: also writes a version where none is in it, so that no
/// claim whose write is still on its way can arrive. Returns whether the record had one.
async fn release(entry: &VolumeEntry, settled: Settled) -> Result<bool, VolumeError> {
    let (pool, id) = (&entry.pool, entry.id);
    for _ in 0..RELEASE_TRIES {
        let Some(mut at) = pool.dataset_by_id(id).await? else { return Ok(false) };
        let mut next = at.record.clone();
        let ours = entry.owns(&next);
        match (ours, settled) {
            (true, _) => {
                next.owner = None;
                if entry.lifecycle().discards() && next.state == State::Ready {
                    next.state = State::Deleting;
                }
            }
            (false, Settled::Yes) => {}
            (false, Settled::No) => return Ok(false),
        }
        match pool.swap_dataset(&mut at, next).await {
            Err(CatalogError::Contended { .. }) => {}
            swapped => return Ok(swapped.map(|()| ours)?),
        }
    }
    Err(CatalogError::Contended { what: format!("dataset {id}"), tries: RELEASE_TRIES }.into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Yes,
    No,
}
