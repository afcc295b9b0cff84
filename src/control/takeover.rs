//! Opening a dataset that another node may own (R26, R27).
//!
//! ```text
//! open ─▶ Owned ─▶ ask the owner to hand over ─▶ not in use there: it closes and releases ─▶ open
//!           │ └──▶ watch its heartbeats ───────▶ none for a whole lease: it stopped ─▶ take over
//!           └────▶ poll the record ────────────▶ released meanwhile ─▶ open
//! ```
//! All three run concurrently until one leads to the dataset, or the caller's time limit ends. A
//! dataset that is in use on a live node is never taken here: only that node releases it, by itself
//! or after a revocation.
//!
//! A caller that is dropped leaves a request, which the owner answers and the collector removes.

use super::owner::{Carriers, OwnerRequest};
use super::{ControlError, Pool};
use crate::catalog::Owner;
use crate::types::{Class, Classify, DatasetId};
use crate::volume::{Attached, ExpiredLease, Verdict, VolumeError, Volumes, Watch};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;

/// Between reads of the record: an owner that releases is noticed within half a second.
const RECORD_POLL: Duration = Duration::from_millis(400);
/// Between listings of the owner's heartbeats, unless the next one decides.
const HEARTBEAT_POLL: Duration = Duration::from_secs(2);
/// An owner that uses the dataset is asked again after this.
const ASK_RETRY: Duration = Duration::from_secs(10);
/// Time limit for an answer: a live owner sees the request with the next renewal of its lease,
/// after a third of it (20 s at most), and then closes the volume.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// Opens a dataset, and waits for another node's hand-over or expired lease where that is allowed.
/// A dataset that is a snapshot is read: it has no owner, and needs no lease.
///
/// # Errors
/// [`ControlError::Precondition`] with the owner's name when `patience` was not enough.
pub async fn open(
    pool: &Pool,
    volumes: &Volumes,
    carriers: &Carriers,
    id: DatasetId,
    patience: Duration,
) -> Result<Attached, ControlError> {
    let deadline = Instant::now() + patience;
    let mut wait = Wait::new(pool, volumes, id);
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
            return Err(wait.refused(&dataset, &owner, patience));
        }
        expired = wait.step(carriers, &dataset, &owner, deadline).await?;
    }
}

/// A wait for an owner: findings about it, and operations in progress.
struct Wait<'a> {
    pool: &'a Pool,
    volumes: &'a Volumes,
    id: DatasetId,
    watch: Option<Watch>,
    look_at: Instant,
    asking: Option<BoxFuture<'a, Result<(), ControlError>>>,
    ask_at: Instant,
    /// Why the owner keeps the dataset, if it answered.
    refusal: Option<String>,
}

impl<'a> Wait<'a> {
    fn new(pool: &'a Pool, volumes: &'a Volumes, id: DatasetId) -> Self {
        let now = Instant::now();
        Self {
            pool,
            volumes,
            id,
            watch: None,
            look_at: now,
            asking: None,
            ask_at: now,
            refusal: None,
        }
    }

    /// Waits until another opening may succeed; answers the expired lease if the owner must have
    /// stopped.
    async fn step(
        &mut self,
        carriers: &'a Carriers,
        dataset: &str,
        owner: &Owner,
        deadline: Instant,
    ) -> Result<Option<ExpiredLease>, ControlError> {
        if !self.watch.as_ref().is_some_and(|watch| watch.is_of(owner)) {
            tracing::info!(
                dataset,
                owner = owner.node,
                "dataset owned by another node; requested hand-over, waiting for lease expiry"
            );
            let now = Instant::now();
            self.watch = Some(self.volumes.watch(&self.pool.catalog, self.id, owner));
            (self.look_at, self.ask_at, self.asking, self.refusal) = (now, now, None, None);
        }
        if let Some(expired) = self.look().await? {
            return Ok(Some(expired));
        }
        if self.asking.is_none() && Instant::now() >= self.ask_at {
            let (pool, id, dataset, owner) =
                (self.pool, self.id, dataset.to_owned(), owner.clone());
            let ask = async move {
                let request = OwnerRequest::HandOver { claim: owner.claim };
                let about = (id, dataset.as_str());
                carriers.ask_owner(pool, about, &owner, &request, ASK_LIMIT).await.map(drop)
            };
            self.asking = Some(ask.boxed());
        }
        let until = deadline.min(self.look_at).min(Instant::now() + RECORD_POLL);
        let Some(asking) = &mut self.asking else {
            tokio::time::sleep_until(until).await;
            return Ok(None);
        };
        if let Ok(answer) = tokio::time::timeout_at(until, asking).await {
            self.asking = None;
            self.ask_at = Instant::now() + ASK_RETRY;
            self.refusal = answer.err().map(|error| error.to_string());
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
            Verdict::NotExpired { wait } => {
                self.look_at = Instant::now() + wait.min(HEARTBEAT_POLL);
                Ok(None)
            }
        }
    }

    fn refused(&self, dataset: &str, owner: &Owner, patience: Duration) -> ControlError {
        let (node, secs) = (&owner.node, patience.as_secs());
        let why = self.refusal.as_deref().unwrap_or("it did not answer, but renews its lease");
        ControlError::Precondition(format!(
            "dataset {dataset} is open on node {node}, and stayed so for {secs} s ({why}): stop \
             what uses it there, or revoke that node's claim with `zerofs-csi dataset release \
             {dataset} --force` (and --pool or --config)"
        ))
    }
}

/// The outcome of waiting for an owner.
pub(super) enum OwnerState {
    /// The record names no owner, or another claim.
    Ended,
    /// The owner must have stopped.
    Stopped(ExpiredLease),
    Alive,
}

/// The action while the owner renews its lease.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WhileAlive {
    /// Its claim was revoked, and it will give the dataset up.
    Wait,
    GiveUp,
}

/// Waits until an owner's claim has ended, or it must have stopped.
pub(super) async fn until_stopped(
    pool: &Pool,
    volumes: &Volumes,
    id: DatasetId,
    owner: &Owner,
    while_alive: WhileAlive,
) -> Result<OwnerState, ControlError> {
    let mut wait = Wait::new(pool, volumes, id);
    wait.watch = Some(volumes.watch(&pool.catalog, id, owner));
    loop {
        let record = pool.catalog.dataset_by_id(id).await?;
        let now = record.and_then(|at| at.record.owner);
        if now.is_none_or(|now| now.claim != owner.claim) {
            return Ok(OwnerState::Ended);
        }
        match wait.look().await {
            Ok(Some(expired)) => return Ok(OwnerState::Stopped(expired)),
            Err(error) if error.class() != Class::Unavailable => return Err(error),
            // The store did not answer; the next look may tell more.
            Ok(None) | Err(_) => {}
        }
        if while_alive == WhileAlive::GiveUp
            && wait.watch.as_ref().is_some_and(Watch::saw_heartbeat)
        {
            return Ok(OwnerState::Alive);
        }
        let soon = Instant::now() + RECORD_POLL;
        tokio::time::sleep_until(if wait.look_at > Instant::now() {
            wait.look_at.min(soon)
        } else {
            soon
        })
        .await;
    }
}
