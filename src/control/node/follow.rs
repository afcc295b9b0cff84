//! Following the owner of a shared volume: this node serves it, or relays its calls to the node
//! that does, and takes it over when nobody does.
//!
//! ```text
//!            opened here                          lost to another owner
//!   search ───────────────▶ owner: calls served ─────────────────────────▶ search
//!     │ ▲
//!     │ └──────────── calls wait, or the owner is silent ─────────────┐
//!     └── another owns it, and has a channel ──▶ relay: calls passed on
//! ```
//! A search opens the volume where that is allowed: it is released, or its owner's lease has
//! expired by this node's own clock (R26, R31). Of several nodes that try, one changes the record,
//! and the others find it there. A live owner is never asked to give a shared volume up: its
//! address is in the bucket, and calls reach it there.

use super::super::channel::{self, OwnerRoute, RouteFor};
use super::super::takeover;
use super::super::{ControlError, Pool};
use super::agent::NodeAgent;
use super::endpoint::Endpoints;
use super::shared::{Position, SharedVolume};
use crate::catalog::Owner;
use crate::mount::Mounter;
use crate::types::{Backoff, Class, Classify, DatasetId, VolumeHandle};
use crate::volume::{Attached, ExpiredLease, Verdict, VolumeError, Watch};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

/// Between reads of the record while calls wait: a new owner, or none, is noticed within half a
/// second.
const RECORD_POLL: Duration = Duration::from_millis(400);
/// The longest pause while the store does not answer.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Between listings of the owner's heartbeats, unless the next one decides.
const HEARTBEAT_POLL: Duration = Duration::from_secs(2);
/// A node that has lost a volume leaves it to others for this long: it was perhaps told to give it
/// up.
const LEFT_TO_OTHERS: Duration = Duration::from_secs(5);

/// A search for the owner of a volume.
struct Search {
    /// The owner whose calls waited when the search began.
    known: Option<Owner>,
    /// Until then, a released volume is left to others.
    leave_until: Option<Instant>,
    watch: Option<Watch>,
    look_at: Instant,
    expired: Option<ExpiredLease>,
}

impl Search {
    fn new(leave_until: Option<Instant>) -> Self {
        Self { known: None, leave_until, watch: None, look_at: Instant::now(), expired: None }
    }

    fn is_known(&self, owner: &Owner) -> bool {
        self.known.as_ref().is_some_and(|known| known.claim == owner.claim)
    }

    /// Begins again because calls wait for this owner. Its heartbeats are watched on: an owner that
    /// is cut off from the store may still answer that it cannot answer, now and then, and would
    /// never be taken over if each of these began the lease anew.
    fn begin_again(&mut self, known: Owner) {
        (self.known, self.leave_until, self.expired) = (Some(known), None, None);
        self.look_at = Instant::now();
    }

    /// Looks at the owner's heartbeats when that is due.
    async fn look(
        &mut self,
        watch: impl FnOnce() -> Watch,
        owner: &Owner,
    ) -> Result<(), ControlError> {
        if !self.watch.as_ref().is_some_and(|watch| watch.is_of(owner)) {
            (self.watch, self.look_at) = (Some(watch()), Instant::now());
        }
        let Some(watch) = self.watch.as_mut().filter(|_| Instant::now() >= self.look_at) else {
            return Ok(());
        };
        match watch.look().await? {
            Verdict::Expired(expired) => self.expired = Some(expired),
            Verdict::NotExpired { wait } => {
                tracing::debug!(owner = owner.node, ?wait, "the owner's lease has not expired");
                self.look_at = Instant::now() + wait.min(HEARTBEAT_POLL);
            }
        }
        Ok(())
    }
}

/// Returns whether the search goes on after an error. An opening is fenced by one of an earlier
/// claim that was late, or because another node was faster.
fn is_retried(class: Class) -> bool {
    class.may_pass() || class == Class::Fenced
}

impl<M: Mounter, E: Endpoints> NodeAgent<M, E> {
    /// Makes this node's channel known in the pool: others must find it there before the record
    /// names this session.
    pub(super) async fn publish_channel(&self, pool: &Pool) -> Result<(), ControlError> {
        match &self.settings.channel {
            Some(channel) => channel.publish_for_relays(pool).await,
            None => Ok(()),
        }
    }

    /// Who answers the calls of a volume that is being staged: this node if it can open it, or a
    /// node that has a channel. Waits for one that has none as long as `patience`.
    ///
    /// # Errors
    /// `Precondition` when such a node keeps it.
    pub(super) async fn first_position(
        &self,
        pool: &Pool,
        id: DatasetId,
        patience: Duration,
    ) -> Result<Position, ControlError> {
        self.publish_channel(pool).await?;
        let owner = match Box::pin(self.volumes.attach(&pool.catalog, id)).await {
            Err(VolumeError::Owned { owner, .. }) => *owner,
            opened => return Ok(Position::Owner(opened?)),
        };
        if let Some(route) = channel::route(pool, id, owner.session, RouteFor::Relay).await? {
            return Ok(Position::Relay { owner, route });
        }
        match Box::pin(takeover::open(pool, &self.volumes, &self.settings.carriers, id, patience))
            .await
        {
            Ok(opened) => Ok(Position::Owner(opened)),
            Err(ControlError::Precondition(why)) => Err(ControlError::Precondition(format!(
                "{why}; calls cannot be relayed to node {}, which has no channel: set \
                 channel.listen there",
                owner.node
            ))),
            Err(error) => Err(error),
        }
    }

    /// Follows the volume's owner in a task until `shared` is stopped or dropped, or the volume is
    /// handed over. `first`: the position to begin with; without one, calls wait.
    pub(super) fn follow(
        self: &Arc<Self>,
        shared: &Arc<SharedVolume>,
        pool: Pool,
        volume: VolumeHandle,
        first: Option<Position>,
    ) {
        let (agent, weak) = (self.clone(), Arc::downgrade(shared));
        let (stop, handed_over) = (shared.stop.clone(), self.stopped.clone());
        shared.tasks.spawn(async move {
            let error = tokio::select! {
                () = stop.cancelled() => return,
                () = handed_over.cancelled() => return,
                ended = Box::pin(agent.follow_owner(&pool, volume.dataset, first)) => match ended {
                    Err(error) => error,
                },
            };
            agent.lose_shared(volume, &weak, &error.to_string());
        });
    }

    async fn follow_owner(
        &self,
        pool: &Pool,
        id: DatasetId,
        first: Option<Position>,
    ) -> Result<Infallible, ControlError> {
        let mut next = first;
        let mut search = Search::new(None);
        loop {
            let position = match next.take() {
                Some(position) => position,
                None => self.search(pool, id, &mut search).await?,
            };
            match position {
                Position::Owner(volume) => {
                    self.serve_until_lost(&volume).await?;
                    search = Search::new(Some(Instant::now() + LEFT_TO_OTHERS));
                }
                Position::Relay { owner, route } => {
                    self.relay_until_disturbed(&owner, route).await?;
                    search.begin_again(owner);
                }
            }
        }
    }

    async fn serve_until_lost(&self, volume: &Attached) -> Result<(), ControlError> {
        let id = volume.dataset;
        // Subscribed before the check: a loss after it is not missed.
        let mut losses = self.volumes.lost();
        let is_open =
            || self.volumes.get(id).is_some_and(|now| Some(now.opening) == volume.opening());
        if is_open() {
            self.endpoints.serve(volume)?;
            tracing::info!(dataset = %id, "this node owns the shared volume and serves it");
        }
        while is_open() {
            match losses.recv().await {
                Ok(lost) if lost.dataset == id && Some(lost.opening) == volume.opening() => break,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
        self.endpoints.suspend(id);
        tracing::warn!(dataset = %id, "this node no longer owns the shared volume; calls wait");
        Ok(())
    }

    async fn relay_until_disturbed(
        &self,
        owner: &Owner,
        route: OwnerRoute,
    ) -> Result<(), ControlError> {
        let id = route.dataset;
        tracing::info!(
            dataset = %id,
            owner = owner.node,
            address = %route.address,
            "relaying the calls of the shared volume to its owner"
        );
        self.endpoints.relay(id, route)?;
        self.endpoints.disturbed(id).await;
        tracing::info!(
            dataset = %id,
            owner = owner.node,
            "calls to the owner of the shared volume wait; watching its lease"
        );
        Ok(())
    }

    async fn search(
        &self,
        pool: &Pool,
        id: DatasetId,
        search: &mut Search,
    ) -> Result<Position, ControlError> {
        let mut failing: Option<Backoff> = None;
        loop {
            let pause = match Box::pin(self.try_position(pool, id, search)).await {
                Ok(Some(position)) => return Ok(position),
                Ok(None) => {
                    failing = None;
                    RECORD_POLL
                }
                Err(error) if is_retried(error.class()) => {
                    if failing.is_none() {
                        tracing::warn!(dataset = %id, %error, "looking for the owner; retrying");
                    }
                    failing.get_or_insert(Backoff::new(RECORD_POLL, RETRY_MAX)).pause()
                }
                Err(error) => return Err(error),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Returns whether this node has released the volume, or is about to, and no other has taken
    /// it.
    async fn is_left(&self, pool: &Pool, id: DatasetId) -> Result<bool, ControlError> {
        let Some(at) = pool.catalog.dataset_by_id(id).await? else { return Ok(false) };
        let session = self.volumes.settings().session;
        Ok(at.record.owner.is_none_or(|owner| owner.session == session))
    }

    /// `None`: the owner that is known still has it, and may be alive.
    async fn try_position(
        &self,
        pool: &Pool,
        id: DatasetId,
        search: &mut Search,
    ) -> Result<Option<Position>, ControlError> {
        // A process that was replaced opens nothing.
        let _present = self.present().await?;
        if search.leave_until.is_some() && self.volumes.closing().contains(&id) {
            // The others can take it only once it is released: their time begins then.
            search.leave_until = Some(Instant::now() + LEFT_TO_OTHERS);
            return Ok(None);
        }
        if search.leave_until.is_some_and(|until| Instant::now() < until)
            && self.is_left(pool, id).await?
        {
            return Ok(None);
        }
        self.publish_channel(pool).await?;
        let opened = match search.expired.take() {
            Some(expired) => {
                let taken = self.volumes.take_over(&pool.catalog, id, &expired).await;
                taken.map(Attached::from)
            }
            None => self.volumes.attach(&pool.catalog, id).await,
        };
        let owner = match opened {
            Err(VolumeError::Owned { owner, .. }) => *owner,
            opened => return Ok(Some(Position::Owner(opened?))),
        };
        if (!search.is_known(&owner) || !self.endpoints.is_disturbed(id))
            && let Some(route) = channel::route(pool, id, owner.session, RouteFor::Relay).await?
        {
            return Ok(Some(Position::Relay { owner, route }));
        }
        search.look(|| self.volumes.watch(&pool.catalog, id, &owner), &owner).await?;
        Ok(None)
    }
}
