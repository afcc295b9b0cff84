//! The parts that the lives of a node plugin and of a server have in common.
//!
//! A **life** begins with a [turn](super::handover::Turn) and ends with a stop, or by giving the
//! turn away. A hand-over that fails, and a successor that ends, begin another life of the same
//! process, with the sockets that it kept.

use super::endpoints::NfsEndpoints;
use super::handover::{
    Door, Hello, Listening, Predecessor, Sockets, Standing, Successor, Turn, pass_on,
};
use super::health::Health;
use super::parts::Parts;
use super::state_dir::{StateDir, StateFolder};
use crate::control::node::{Leaving, NodeAgent, NodeSettings};
use crate::mount::Mounter;
use crate::nfs::{Budget, Options, Peers};
use crate::types::{Class, Classify};
use anyhow::{Context, bail};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Time limit for calls in progress when the process stops: those of connections, of its own work,
/// and of CSI, one after the other. With [`FLUSH_LIMIT`] it stays below the minute after which a
/// pod is killed (`terminationGracePeriodSeconds`).
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// Time limit for flushing unflushed data to the store after that.
pub(super) const FLUSH_LIMIT: Duration = Duration::from_secs(15);
/// Before a hand-over, while everything is served: for CSI calls to end, …
const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// … and for bringing everything to the store.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// Settling that takes longer makes this process check whether the store refuses it.
const SETTLE_SOON: Duration = Duration::from_secs(3);
/// In a hand-over, while nothing is: for NFS calls under way to end, …
pub(super) const REST_LIMIT: Duration = Duration::from_secs(2);
/// … and for leaving the volumes.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// Is written and removed to see whether this process may write.
const PROBE: &str = "probe/handover";
/// Time for which sockets are kept listening for a successor that may end soon after it began.
const PROVING: Duration = Duration::from_secs(60);

/// The tokens and tasks of a life.
pub(super) struct Life {
    pub folder: StateFolder,
    /// Cancels the background work on volumes.
    pub work: CancellationToken,
    /// Cancels the services that answer callers, once another process does.
    pub services: CancellationToken,
    pub work_tasks: TaskTracker,
    pub service_tasks: TaskTracker,
}

/// The end of a life.
pub(super) enum Ended {
    Stopped,
    /// The turn is still, or again, this process's.
    Again(Turn),
}

/// The result of an attempt to hand over.
pub(super) enum Handed {
    /// Nothing is changed: this life goes on.
    Not,
    Over(Standing),
    /// This life has ended, and the turn is here.
    Back(StateDir),
}

/// The parts of a life that go on in another process.
pub(super) struct Estate<'a, M> {
    pub parts: &'a Parts,
    pub agent: &'a NodeAgent<M, NfsEndpoints>,
    pub health: &'a Health,
    /// The collection for sockets that are handed over.
    pub kept: &'a Sockets,
}

/// The sockets on which a life is addressed.
pub(super) struct Ports {
    pub csi: Option<JoinHandle<std::io::Result<()>>>,
    pub door: Door,
    pub state: StateDir,
}

impl Life {
    pub fn new(folder: &StateFolder, stop: &CancellationToken) -> Self {
        Self {
            folder: folder.clone(),
            work: stop.child_token(),
            services: stop.child_token(),
            work_tasks: TaskTracker::new(),
            service_tasks: TaskTracker::new(),
        }
    }

    /// Ends what this life still answers.
    pub async fn end_services(&self) {
        self.services.cancel();
        finish(&self.service_tasks).await;
    }

    /// As [`Self::end_services`], without waiting for the calls that still run.
    pub fn dismiss_services(&self) {
        self.services.cancel();
        let tasks = self.service_tasks.clone();
        tokio::spawn(async move { finish(&tasks).await });
    }

    /// Ends in order.
    pub async fn stop(&self) {
        self.work.cancel();
        finish(&self.work_tasks).await;
        self.end_services().await;
    }

    /// Serves until it is stopped (`None`), or until a hand-over succeeded or failed. `own`: this
    /// process's description. `rest`: quiesces services beside the staged volumes. The sockets that
    /// were kept are in the estate's collection afterwards.
    ///
    /// # Errors
    /// When the CSI socket ends by itself.
    pub async fn serve_until_ended<'a, M: Mounter>(
        &self,
        stop: &CancellationToken,
        mut ports: Ports,
        own: impl Fn() -> Hello,
        estate: &Estate<'a, M>,
        rest: impl Fn() -> BoxFuture<'a, Option<Listening>>,
    ) -> anyhow::Result<Option<Handed>> {
        let mut state = Some(ports.state);
        loop {
            let successor = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                ended = ended_by_itself(&mut ports.csi) => {
                    return if stop.is_cancelled() { Ok(None) } else { ended.map(|()| None) };
                }
                successor = ports.door.next(|hello| fits(hello, &own())) => successor,
            };
            match self.hand_over(&mut state, successor, estate, rest()).await {
                Handed::Not => {}
                handed => return Ok(Some(handed)),
            }
        }
    }

    async fn hand_over<M: Mounter>(
        &self,
        state: &mut Option<StateDir>,
        successor: Successor,
        estate: &Estate<'_, M>,
        rest: BoxFuture<'_, Option<Listening>>,
    ) -> Handed {
        let (parts, agent) = (estate.parts, estate.agent);
        let Some(successor) = prepare(successor, parts).await else { return Handed::Not };
        let held = match agent.hold(HOLD_LIMIT).await {
            Ok(held) => held,
            Err(error) => {
                successor.refuse(error.to_string()).await;
                return Handed::Not;
            }
        };
        // Calls have changed things meanwhile.
        let Some(successor) = settle(successor, parts).await else { return Handed::Not };
        let Some(owned) = state.take() else { return Handed::Not };
        if !successor.is_there().await {
            *state = Some(owned);
            tracing::warn!("the process that was to take over has ended; this one goes on");
            return Handed::Not;
        }
        self.give(owned, successor, estate, rest, held).await
    }

    /// From here on this life has ended.
    async fn give<M: Mounter>(
        &self,
        state: StateDir,
        successor: Successor,
        estate: &Estate<'_, M>,
        rest: BoxFuture<'_, Option<Listening>>,
        held: Leaving,
    ) -> Handed {
        let Estate { parts, agent, health, kept } = *estate;
        let begun = Instant::now();
        self.work.cancel();
        let (volumes, exports) =
            futures::future::join(agent.endpoints().rest(REST_LIMIT), rest).await;
        volumes
            .into_iter()
            .chain(exports)
            .chain(health.give())
            .for_each(|listening| kept.put(listening));
        let rested = begun.elapsed();
        if let Err(error) = parts.volumes.leave(LEAVE_LIMIT).await {
            tracing::warn!(
                %error,
                "the next process waits for this volume until the store lets go of it here"
            );
        }
        let left = begun.elapsed();
        let program = successor.hello.program.clone();
        health.stand_by();
        let passed = pass_on(successor, &self.folder, state, kept).await;
        held.leave();
        parts.volumes.views().close().await;
        match passed {
            Ok(standing) => {
                // Another process answers on them: connections that it closes must really be
                // closed.
                kept.hang_up();
                let (rested, left, given) =
                    (rested.as_millis(), left.as_millis(), begun.elapsed().as_millis());
                tracing::info!(
                    program,
                    rested,
                    left,
                    given,
                    "handed over: milliseconds without service on this side"
                );
                Handed::Over(standing)
            }
            Err((state, error)) => {
                tracing::error!(%error, "the hand-over failed; this process goes on");
                Handed::Back(state)
            }
        }
    }

    /// Stands by after a hand-over until this process is stopped, or has the turn again.
    pub async fn stand_by(
        &self,
        standing: &Standing,
        kept: Sockets,
        stop: &CancellationToken,
    ) -> Ended {
        let served = tokio::select! {
            () = stop.cancelled() => None,
            serving = standing.serving() => Some(serving),
        };
        // Until the other process had its own, these held callers back.
        self.dismiss_services();
        match served {
            None => return Ended::Stopped,
            Some(Ok(())) => {
                tracing::info!("another process serves; this one stands by until it is stopped")
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the process that took over has ended before it served")
            }
        }
        let mut kept = Some(kept);
        let turn = standing.turn();
        tokio::pin!(turn);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ended::Stopped,
                state = &mut turn => {
                    tracing::error!("the process that took over has ended: this one serves again");
                    return Ended::Again(Turn::again(state, kept.unwrap_or_default()));
                }
                () = tokio::time::sleep(PROVING), if kept.is_some() => drop(kept.take()),
            }
        }
    }
}

/// While everything is served.
async fn prepare(successor: Successor, parts: &Parts) -> Option<Successor> {
    if let Err(error) = successor.accept().await {
        tracing::warn!(%error, "the process that was to take over has ended; this one goes on");
        return None;
    }
    settle(successor, parts).await
}

async fn settle(successor: Successor, parts: &Parts) -> Option<Successor> {
    let settled = parts.volumes.prepare_to_leave();
    tokio::pin!(settled);
    let soon = tokio::time::timeout(SETTLE_SOON, &mut settled).await;
    if let Ok(Ok(())) = soon {
        return Some(successor);
    }
    if let Some(refusal) = refusal(parts).await {
        // The other process has every pool open that is in use, with credentials of its own. It
        // goes on as after the death of this one: the journals have the changes that the store
        // lacks, and clients resend those that are in no journal (R16, R17).
        tracing::warn!(
            refusal,
            "the object store refuses this process: handed over without a last flush"
        );
        return Some(successor);
    }
    let rest = match soon {
        Ok(failed) => Ok(failed),
        Err(_) => tokio::time::timeout(SETTLE_LIMIT, settled).await,
    };
    let why = match rest {
        Ok(Ok(())) => return Some(successor),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the object store is too slow at the moment".to_owned(),
    };
    tracing::warn!(why, "not handed over: this process goes on");
    successor.refuse(why).await;
    None
}

/// The refusal of the store of a pool in use, if it answers and refuses: the credentials of this
/// process have expired, or lost their rights. A store that does not answer says nothing of them.
async fn refusal(parts: &Parts) -> Option<String> {
    let used = used_pools(parts);
    for pool in parts.pools.iter().filter(|pool| used.contains(&pool.id().to_string())) {
        let bucket = pool.catalog.bucket();
        match bucket
            .put(PROBE, bytes::Bytes::from_static(b"zerofs-csi tries to write before a hand-over"))
            .await
        {
            Ok(()) => {
                if let Err(error) = bucket.delete(&[PROBE.to_owned()]).await {
                    tracing::debug!(%error, "the object of a probe stays until the next one");
                }
            }
            Err(error) if error.class() == Class::Unavailable => {}
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}

/// Checks that a process can serve everything that this one does.
fn fits(hello: &Hello, own: &Hello) -> Result<(), String> {
    if hello.role != own.role {
        return Err(format!(
            "it is a {:?}, this process a {:?}: give it another --state-dir",
            hello.role, own.role
        ));
    }
    if hello.node != own.node {
        let name = |hello: &Hello| hello.node.clone().unwrap_or_default();
        return Err(format!("its node id is {:?}, this process's {:?}", name(hello), name(own)));
    }
    match own.pools.iter().find(|pool| !hello.pools.contains(pool)) {
        Some(pool) => {
            Err(format!("it does not have pool {pool} open, of which volumes are in use here"))
        }
        None => Ok(()),
    }
}

/// The ids of the pools that volumes are in use of.
pub(super) fn used_pools(parts: &Parts) -> Vec<String> {
    let mut ids: Vec<String> =
        parts.volumes.list().into_iter().map(|volume| volume.pool.to_string()).collect();
    ids.sort();
    ids.dedup();
    ids
}

pub(super) async fn start_agent<M: Mounter>(
    parts: &Parts,
    mounter: M,
    state: &StateDir,
    peers: Peers,
    budget: &Budget,
    sockets: Arc<Sockets>,
) -> anyhow::Result<Arc<NodeAgent<M, NfsEndpoints>>> {
    let settings =
        NodeSettings::new(state.path().join("staged"), parts.config.driver_name.clone())?;
    let endpoints = NfsEndpoints::new(
        Options { peers, limits: parts.nfs, ..Options::default() },
        budget.clone(),
        sockets,
    );
    Ok(NodeAgent::start(mounter, endpoints, parts.volumes.clone(), parts.pools.clone(), settings)
        .await?)
}

/// Resolves when the socket's service ends by itself, which is an error.
pub(super) async fn ended_by_itself(
    csi: &mut Option<JoinHandle<std::io::Result<()>>>,
) -> anyhow::Result<()> {
    match csi {
        None => std::future::pending().await,
        Some(csi) => match csi.await {
            Ok(Ok(())) => bail!("the CSI socket ended"),
            Ok(Err(error)) => Err(error).context("the CSI socket ended"),
            Err(error) => Err(error).context("the CSI socket ended"),
        },
    }
}

pub(super) async fn finish(tasks: &TaskTracker) {
    tasks.close();
    if tokio::time::timeout(STOP_GRACE, tasks.wait()).await.is_err() {
        tracing::warn!("calls did not end in time: they are repaired by their retry");
    }
}

/// Flushes the mounted volumes, which stay owned; everything acknowledged is in the store when this
/// returns, unless that takes too long.
pub(super) async fn flush_staged(parts: &Parts) -> anyhow::Result<()> {
    parts.volumes.sync_all(FLUSH_LIMIT).await.context("the store does not have everything")
}

/// Closes inherited sockets that no service took, and notifies the predecessor.
pub(super) async fn began(sockets: &Sockets, predecessor: &Predecessor) {
    sockets.clear();
    predecessor.serving().await;
}
