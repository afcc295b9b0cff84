//! The active period of a process: its tokens and tasks, and how it ends.
//!
//! An active period begins with an [activation](super::handover::Activation) and ends with a stop
//! or a hand-over. After a hand-over that failed, or when the successor exits, another active
//! period of the same process begins, with the sockets that it has kept.

use super::channel::ChannelParts;
use super::config::Config;
use super::endpoints::NfsEndpoints;
use super::handover::{
    Activation, HandoverListener, Hello, Listening, Sockets, Standby, Successor, transfer,
};
use super::health::Health;
use super::parts::Parts;
use super::state_dir::{StateDir, StateFolder};
use crate::control::node::{EphemeralSettings, HandoverHold, NodeAgent, NodeSettings};
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
/// Time limit for the last flush to the store after that.
pub(super) const FLUSH_LIMIT: Duration = Duration::from_secs(15);
/// Time limits before a hand-over, while this process serves: for CSI calls to end, …
const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// … and for the flush to the store.
const HANDOVER_FLUSH_LIMIT: Duration = Duration::from_secs(30);
/// After a flush has taken this long, this process checks whether the store refuses it.
const FLUSH_SUSPECT: Duration = Duration::from_secs(3);
/// Time limits in a hand-over, while no process serves: for NFS calls in progress to end, …
pub(super) const QUIESCE_LIMIT: Duration = Duration::from_secs(2);
/// … and for closing the volumes.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// An object that is written and deleted to find out whether this process may write.
const PROBE: &str = "probe/handover";
/// Time for which the sockets stay open on standby, because the successor may exit soon.
const PROVING: Duration = Duration::from_secs(60);

/// The tokens and tasks of an active period.
pub(super) struct Lifecycle {
    /// Cancels background work on volumes.
    pub work: CancellationToken,
    /// Cancels the services, which answer callers until another process does.
    pub services: CancellationToken,
    pub work_tasks: TaskTracker,
    pub service_tasks: TaskTracker,
}

/// The end of an active period.
pub(super) enum Ended {
    Stopped,
    /// This process is still, or again, the active one.
    Active(Activation),
}

/// The outcome of a hand-over.
pub(super) enum HandoverOutcome {
    /// Nothing has changed: this active period continues.
    Refused,
    Done(Standby),
    /// This active period has ended, but this process is still the active one.
    Failed(StateDir),
}

/// The parts of an active period that a hand-over needs.
pub(super) struct HandoverInput<'a, M> {
    pub folder: &'a StateFolder,
    pub parts: &'a Parts,
    pub agent: &'a NodeAgent<M, NfsEndpoints>,
    pub health: &'a Health,
    /// Receives the sockets that are handed over.
    pub sockets: &'a Sockets,
}

/// The causes that can end an active period, beside a stop.
pub(super) struct Endings {
    pub csi: Option<JoinHandle<std::io::Result<()>>>,
    pub handover: HandoverListener,
    pub state: StateDir,
}

impl Lifecycle {
    pub fn new(stop: &CancellationToken) -> Self {
        Self {
            work: stop.child_token(),
            services: stop.child_token(),
            work_tasks: TaskTracker::new(),
            service_tasks: TaskTracker::new(),
        }
    }

    /// Ends the services.
    pub async fn end_services(&self) {
        self.services.cancel();
        finish(&self.service_tasks).await;
    }

    /// Like [`Self::end_services`], without waiting for calls in progress.
    pub fn abandon_services(&self) {
        self.services.cancel();
        let tasks = self.service_tasks.clone();
        tokio::spawn(async move { finish(&tasks).await });
    }

    /// Ends the work, then the services.
    pub async fn stop(&self) {
        self.work.cancel();
        finish(&self.work_tasks).await;
        self.end_services().await;
    }

    /// Serves until it is stopped (`None`), handed over, or a hand-over fails. `own` describes this
    /// process; `quiesce` gives the sockets of the services beside the staged volumes. They are in
    /// `input` afterwards.
    ///
    /// # Errors
    /// When the CSI socket ends by itself.
    pub async fn serve_until_ended<'a, M: Mounter>(
        &self,
        stop: &CancellationToken,
        mut endings: Endings,
        own: impl Fn() -> Hello,
        input: &HandoverInput<'a, M>,
        quiesce: impl Fn() -> BoxFuture<'a, Vec<Listening>>,
    ) -> anyhow::Result<Option<HandoverOutcome>> {
        let mut state = Some(endings.state);
        loop {
            let successor = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                ended = ended_by_itself(&mut endings.csi) => {
                    return if stop.is_cancelled() { Ok(None) } else { ended.map(|()| None) };
                }
                successor = endings.handover.next(|hello| fits(hello, &own())) => successor,
            };
            match self.hand_over(&mut state, successor, input, quiesce()).await {
                HandoverOutcome::Refused => {}
                outcome => return Ok(Some(outcome)),
            }
        }
    }

    async fn hand_over<M: Mounter>(
        &self,
        state: &mut Option<StateDir>,
        successor: Successor,
        input: &HandoverInput<'_, M>,
        quiesce: BoxFuture<'_, Vec<Listening>>,
    ) -> HandoverOutcome {
        let (parts, agent) = (input.parts, input.agent);
        let Some(successor) = prepare(successor, parts).await else {
            return HandoverOutcome::Refused;
        };
        let held = match agent.hold(HOLD_LIMIT).await {
            Ok(held) => held,
            Err(error) => {
                successor.refuse(error.to_string()).await;
                return HandoverOutcome::Refused;
            }
        };
        // Calls have changed volumes meanwhile.
        let Some(successor) = flush_for(successor, parts).await else {
            return HandoverOutcome::Refused;
        };
        let Some(owned) = state.take() else { return HandoverOutcome::Refused };
        if !successor.is_there().await {
            *state = Some(owned);
            tracing::warn!("the process that asked for a hand-over exited; this one keeps serving");
            return HandoverOutcome::Refused;
        }
        self.transfer_to(owned, successor, input, quiesce, held).await
    }

    /// Hands over. From here on this active period has ended.
    async fn transfer_to<M: Mounter>(
        &self,
        state: StateDir,
        successor: Successor,
        input: &HandoverInput<'_, M>,
        quiesce: BoxFuture<'_, Vec<Listening>>,
        held: HandoverHold,
    ) -> HandoverOutcome {
        let HandoverInput { folder, parts, agent, health, sockets } = *input;
        let begun = Instant::now();
        self.work.cancel();
        let (volumes, others) =
            futures::future::join(agent.endpoints().quiesce(QUIESCE_LIMIT), quiesce).await;
        volumes
            .into_iter()
            .chain(others)
            .chain(health.give())
            .for_each(|listening| sockets.put(listening));
        let quiesced = begun.elapsed();
        if let Err(error) = parts.volumes.hand_over(CLOSE_LIMIT).await {
            tracing::warn!(
                %error,
                "timed out closing the volume's database; the next process waits for it"
            );
        }
        let released = begun.elapsed();
        let program = successor.hello.program.clone();
        health.stand_by();
        let transferred = transfer(successor, folder, state, sockets).await;
        held.hand_over();
        parts.volumes.open_snapshots().close().await;
        match transferred {
            Ok(standby) => {
                // Another process answers on them: a connection that it closes must be closed.
                sockets.close_connections();
                tracing::info!(
                    program,
                    quiesced_millis = quiesced.as_millis(),
                    released_millis = released.as_millis(),
                    total_millis = begun.elapsed().as_millis(),
                    "hand-over complete"
                );
                HandoverOutcome::Done(standby)
            }
            Err((state, error)) => {
                tracing::error!(%error, "hand-over failed; this process resumes service");
                HandoverOutcome::Failed(state)
            }
        }
    }

    /// Follows a hand-over: this process is on standby until it is stopped, or active again.
    pub async fn stand_by(
        &self,
        standby: &Standby,
        sockets: Sockets,
        stop: &CancellationToken,
    ) -> Ended {
        let served = tokio::select! {
            () = stop.cancelled() => None,
            serving = standby.serving() => Some(serving),
        };
        // Until the other process had its own services, these held callers.
        self.abandon_services();
        match served {
            None => return Ended::Stopped,
            Some(Ok(())) => {
                tracing::info!(
                    "another process is serving; this one is on standby until it is stopped"
                );
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the process that took over exited before it served");
            }
        }
        let mut sockets = Some(sockets);
        let active = standby.until_active();
        tokio::pin!(active);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ended::Stopped,
                state = &mut active => {
                    tracing::error!("the process that took over exited; this one resumes service");
                    return Ended::Active(Activation::resumed(state, sockets.unwrap_or_default()));
                }
                () = tokio::time::sleep(PROVING), if sockets.is_some() => drop(sockets.take()),
            }
        }
    }
}

/// Accepts the successor and flushes, while this process serves.
async fn prepare(successor: Successor, parts: &Parts) -> Option<Successor> {
    if let Err(error) = successor.accept().await {
        tracing::warn!(
            %error,
            "the process that asked for a hand-over exited; this one keeps serving"
        );
        return None;
    }
    flush_for(successor, parts).await
}

/// Flushes to the store; refuses the successor if that is not possible.
async fn flush_for(successor: Successor, parts: &Parts) -> Option<Successor> {
    let flushed = parts.volumes.prepare_handover();
    tokio::pin!(flushed);
    let soon = tokio::time::timeout(FLUSH_SUSPECT, &mut flushed).await;
    if let Ok(Ok(())) = soon {
        return Some(successor);
    }
    if let Some(refusal) = refusal(parts).await {
        // The other process has every pool open that is in use, with credentials of its own. It
        // continues as after the death of this one: the journals have the changes that the store
        // lacks, and clients resend the data that is in no journal (R16, R17).
        tracing::warn!(
            refusal,
            "the object store refuses this process; handing over without a last flush"
        );
        return Some(successor);
    }
    let rest = match soon {
        Ok(failed) => Ok(failed),
        Err(_) => tokio::time::timeout(HANDOVER_FLUSH_LIMIT, flushed).await,
    };
    let why = match rest {
        Ok(Ok(())) => return Some(successor),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "timed out flushing to the object store".to_owned(),
    };
    tracing::warn!(why, "hand-over refused; this process keeps serving");
    successor.refuse(why).await;
    None
}

/// The refusal of the store of a pool in use: the credentials of this process have expired, or lost
/// their rights. A store that does not answer is no refusal.
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
                    tracing::debug!(
                        %error,
                        "cannot delete the probe object; the next probe replaces it"
                    );
                }
            }
            Err(error) if error.class() == Class::Unavailable => {}
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}

/// Checks whether another process can serve the volumes of this one.
fn fits(hello: &Hello, own: &Hello) -> Result<(), String> {
    if hello.role != own.role {
        return Err(format!(
            "its role is {:?}, but this process's is {:?}: give it another --state-dir",
            hello.role, own.role
        ));
    }
    if hello.node != own.node {
        let name = |hello: &Hello| hello.node.clone().unwrap_or_default();
        return Err(format!(
            "its node id is {:?}, but this process's is {:?}: correct --node-id",
            name(hello),
            name(own)
        ));
    }
    match own.pools.iter().find(|pool| !hello.pools.contains(pool)) {
        Some(pool) => {
            Err(format!("it does not have pool {pool} open, which volumes here are using"))
        }
        None => Ok(()),
    }
}

/// The ids of the pools whose volumes are in use.
pub(super) fn used_pools(parts: &Parts) -> Vec<String> {
    let mut ids: Vec<String> =
        parts.volumes.list().into_iter().map(|volume| volume.pool.to_string()).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn ephemeral(config: &Config) -> EphemeralSettings {
    let allowed = config.ephemeral.clone();
    allowed.map_or_else(EphemeralSettings::default, |allowed| EphemeralSettings {
        pools: allowed.pools,
        size_max: allowed.max_size.0,
    })
}

pub(super) async fn start_agent<M: Mounter>(
    parts: &Parts,
    mounter: M,
    state: &StateDir,
    peers: Peers,
    (budget, channel): (&Budget, Option<&ChannelParts>),
    sockets: Arc<Sockets>,
) -> anyhow::Result<Arc<NodeAgent<M, NfsEndpoints>>> {
    let settings = NodeSettings {
        channel: channel.map(|channel| channel.channel.clone()),
        carriers: channel.map(|channel| channel.carriers.clone()).unwrap_or_default(),
        ephemeral: ephemeral(&parts.config),
        ..NodeSettings::new(state.path().join("staged"), parts.config.driver_name.clone())?
    };
    let endpoints = NfsEndpoints::new(
        Options { peers, limits: parts.nfs, ..Options::default() },
        budget.clone(),
        sockets,
    )
    .with_relay(channel.map(|channel| channel.relay.clone()));
    Ok(NodeAgent::start(mounter, endpoints, parts.volumes.clone(), parts.pools.clone(), settings)
        .await?)
}

/// Resolves when the CSI server exits by itself, which is an error.
async fn ended_by_itself(csi: &mut Option<JoinHandle<std::io::Result<()>>>) -> anyhow::Result<()> {
    match csi {
        None => std::future::pending().await,
        Some(csi) => match csi.await {
            Ok(Ok(())) => bail!("the CSI server exited"),
            Ok(Err(error)) => Err(error).context("the CSI server exited"),
            Err(error) => Err(error).context("the CSI server exited"),
        },
    }
}

/// Waits until `stop`, or until the CSI server exits by itself, which is an error.
pub(super) async fn until_stopped(
    mut csi: Option<JoinHandle<std::io::Result<()>>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = ended_by_itself(&mut csi) => if stop.is_cancelled() { Ok(()) } else { ended },
    }
}

async fn finish(tasks: &TaskTracker) {
    tasks.close();
    if tokio::time::timeout(STOP_GRACE, tasks.wait()).await.is_err() {
        tracing::warn!("calls did not end in time; their retries complete them");
    }
}

/// Flushes the mounted volumes, which stay owned: every acknowledged change is in the store then,
/// unless that takes too long.
pub(super) async fn flush_staged(parts: &Parts) -> anyhow::Result<()> {
    parts.volumes.sync_all(FLUSH_LIMIT).await.context("not all data reached the object store")
}
