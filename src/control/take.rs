//! Opening a dataset that another node may have (R26, R27).
//!
//! ```text
//! open ──▶ Owned ──▶ ask the owner by mail ──▶ not used there: it closes and releases ──▶ open
//!            │  └──▶ watch its heartbeats ───▶ none for a whole lease: it must have stopped ──▶ take over
//!            └─────▶ look at the record ─────▶ released meanwhile ──▶ open
//! ```
//! All three go on at once until one leads to the dataset, or the caller's patience ends. A dataset
//! that is in use on a node that is alive is never taken here: only that node, or a revocation,
//! gives it up.
//!
//! A caller that is dropped leaves a letter, which the owner answers and the collector removes.

use super::{ControlError, Pool, mail};
use crate::catalog::Owner;
use crate::types::{Class, Classify, DatasetId};
use crate::volume::{Attached, ExpiredLease, Verdict, VolumeError, Volumes, Watch};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;

/// Between looks at the record: an owner that releases is noticed within half a second.
const RECORD_POLL: Duration = Duration::from_millis(400);
/// Between looks at the owner's heartbeats, unless the next one decides.
const SIGNS_POLL: Duration = Duration::from_secs(2);
/// An owner that uses the dataset is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long an answer is waited for: an owner that is alive sees the request with the next renewal
/// of its lease, after a third of it (20 s at most), and then closes the volume.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// Opens a dataset, taking it from another node if that may be. One that is a snapshot is read: it
/// has no owner, and needs no lease.
///
/// # Errors
/// [`ControlError::Precondition`] with the owner's name when `patience` was not enough.
pub async fn open(
    pool: &Pool,
    volumes: &Volumes,
    id: DatasetId,
    patience: Duration,
) -> Result<Attached, ControlError> {
    let deadline = Instant::now() + patience;
    let mut taking = Taking::new(pool, volumes, id);
    let mut expired: Option<ExpiredLease> = None;
    loop {
        let opened = match &expired {
            None => Box::pin(volumes.attach(&pool.catalog, id)).await,
            Some(expired) => {
                Box::pin(volumes.take_over(&pool.catalog, id, expired)).await.map(Attached::from)
            }
        };
        let (dataset, owner) = match opened {
            Err(VolumeError::Owned { dataset, owner, .. }) => (dataset, *owner),
            opened => return Ok(opened?),
        };
        let now = Instant::now();
        if now >= deadline {
            return Err(taking.refused(&dataset, &owner, patience));
        }
        expired = taking.wait(&dataset, &owner, deadline).await?;
    }
}

/// What is known of the owner, and what is under way.
struct Taking<'a> {
    pool: &'a Pool,
    volumes: &'a Volumes,
    id: DatasetId,
    watch: Option<Watch>,
    look_at: Instant,
    asking: Option<BoxFuture<'a, Result<(), ControlError>>>,
    ask_at: Instant,
    /// Why it keeps the dataset, if it said so.
    said: Option<String>,
}

impl<'a> Taking<'a> {
    fn new(pool: &'a Pool, volumes: &'a Volumes, id: DatasetId) -> Self {
        let now = Instant::now();
        Self { pool, volumes, id, watch: None, look_at: now, asking: None, ask_at: now, said: None }
    }

    /// Until it is worth another try; the finding, if the owner must have stopped.
    async fn wait(
        &mut self,
        dataset: &str,
        owner: &Owner,
        deadline: Instant,
    ) -> Result<Option<ExpiredLease>, ControlError> {
        if !self.watch.as_ref().is_some_and(|watch| watch.is_of(owner)) {
            tracing::info!(
                dataset,
                owner = owner.node,
                "the dataset is another node's: asking for it, and waiting for the end of that \
                 node's lease"
            );
            let now = Instant::now();
            self.watch = Some(self.volumes.watch(&self.pool.catalog, self.id, owner));
            (self.look_at, self.ask_at, self.asking, self.said) = (now, now, None, None);
        }
        if let Some(expired) = self.look().await? {
            return Ok(Some(expired));
        }
        if self.asking.is_none() && Instant::now() >= self.ask_at {
            let (pool, id, dataset, owner) =
                (self.pool, self.id, dataset.to_owned(), owner.clone());
            let ask =
                async move { mail::ask_to_hand_over(pool, &dataset, id, &owner, ASK_LIMIT).await };
            self.asking = Some(ask.boxed());
        }
        let until = deadline.min(self.look_at).min(Instant::now() + RECORD_POLL);
        let Some(asking) = &mut self.asking else {
            tokio::time::sleep_until(until).await;
            return Ok(None);
        };
        if let Ok(answer) = tokio::time::timeout_at(until, asking).await {
            self.asking = None;
            self.ask_at = Instant::now() + ASK_AGAIN;
            self.said = answer.err().map(|error| error.to_string());
        }
        Ok(None)
    }

    async fn look(&mut self) -> Result<Option<ExpiredLease>, ControlError> {
        let now = Instant::now();
        let Some(watch) = self.watch.as_mut().filter(|_| now >= self.look_at) else {
            return Ok(None);
        };
        match watch.look().await? {
            Verdict::Expired(expired) => Ok(Some(expired)),
            Verdict::MayLive { wait } => {
                self.look_at = Instant::now() + wait.min(SIGNS_POLL);
                Ok(None)
            }
        }
    }

    fn refused(&self, dataset: &str, owner: &Owner, patience: Duration) -> ControlError {
        let (node, secs) = (&owner.node, patience.as_secs());
        let said = self.said.as_deref().unwrap_or("it did not answer, and shows signs of life");
        ControlError::Precondition(format!(
            "dataset {dataset} is open on node {node}, and stayed so for {secs} s ({said}): stop \
             what uses it there, or take it away with \
             `zerofs-csi dataset release {dataset} --force`"
        ))
    }
}

/// What became of an owner that was waited for.
pub(super) enum Outcome {
    /// Its claim is the record's no more: released, or another's.
    Ended,
    /// It must have stopped.
    Stopped(ExpiredLease),
    Alive,
}

/// Whether a sign of life ends the waiting.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// The owner was told to give the dataset up, and will.
    Tolerated,
    Decides,
}

/// Waits until an owner's claim has ended, or it must have stopped.
pub(super) async fn until_stopped(
    pool: &Pool,
    volumes: &Volumes,
    id: DatasetId,
    owner: &Owner,
    life: Life,
) -> Result<Outcome, ControlError> {
    let mut taking = Taking::new(pool, volumes, id);
    taking.watch = Some(volumes.watch(&pool.catalog, id, owner));
    loop {
        let record = pool.catalog.dataset_by_id(id).await?;
        let now = record.and_then(|at| at.record.owner);
        if now.is_none_or(|now| now.claim != owner.claim) {
            return Ok(Outcome::Ended);
        }
        match taking.look().await {
            Ok(Some(expired)) => return Ok(Outcome::Stopped(expired)),
            Err(error) if error.class() != Class::Unavailable => return Err(error),
            // A look that failed has seen nothing; the next one may.
            Ok(None) | Err(_) => {}
        }
        if life == Life::Decides && taking.watch.as_ref().is_some_and(Watch::has_seen_life) {
            return Ok(Outcome::Alive);
        }
        let soon = Instant::now() + RECORD_POLL;
        tokio::time::sleep_until(if taking.look_at > Instant::now() {
            taking.look_at.min(soon)
        } else {
            soon
        })
        .await;
    }
}
