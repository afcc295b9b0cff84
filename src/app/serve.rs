//! Everything for one machine: both CSI services on one socket, and every dataset under NFS.

use super::collecting;
use super::config::Config;
use super::endpoints::NfsEndpoints;
use super::exports::{Exports, ServeTable, Uses};
use super::handover::{Door, Hello, Listening, Role, Service, Sockets, Turn, wait_for_turn};
use super::health::Health;
use super::life::{self, Ended, Estate, FLUSH_LIMIT, Handed, Life, Ports, REST_LIMIT, STOP_GRACE};
use super::parts::Parts;
use super::pools::{self, Missing};
use super::processes::{Ready, identity, node_info};
use super::state_dir::StateFolder;
use crate::control::node::NodeAgent;
use crate::control::secrets::NoSecrets;
use crate::control::{Controller, Pools};
use crate::csi::{ControllerService, CsiServices, NodeService};
use crate::mount::Mounter;
use crate::nfs::{Budget, Options, Peers, Server};
use anyhow::{Context, bail};
use futures::FutureExt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A second server on a state folder that is not handed over is a mistake; but one that just ends
/// takes a moment.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub state_dir: PathBuf,
    pub csi_endpoint: Option<PathBuf>,
    pub nfs_listen: Option<SocketAddr>,
    /// The peers that may connect there.
    pub nfs_peers: Peers,
    /// The peers that may connect to a staged volume's endpoint.
    pub peers: Peers,
    /// The address that serves `/healthz`, `/readyz` and `/metrics`.
    pub health_listen: Option<SocketAddr>,
}

/// State shared by all lives of the process.
struct Serving<'a, M> {
    config: Config,
    options: ServeOptions,
    mounter: M,
    ready: Ready<'a>,
    stop: CancellationToken,
    folder: StateFolder,
    health: Health,
}

/// Runs until `stop`, or until another process has taken over and serves.
pub async fn serve<M: Mounter>(
    config: Config,
    options: ServeOptions,
    mounter: M,
    ready: Ready<'_>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if let Some((name, _)) = config.pools.iter().find(|(_, pool)| pool.request_secrets) {
        bail!(
            "pool {name}: requestSecrets is for `controller` and `node`: write its credentials \
             into the configuration of `serve`"
        );
    }
    let folder = StateFolder::open(&options.state_dir)?;
    let serving = Serving { config, options, mounter, ready, stop, folder, health: Health::new() };
    let mut turn = serving.folder.try_lock()?.map(Turn::first);
    // Before the pools are opened: a client that is refused comes back only after seconds.
    let mut early = match (&turn, serving.options.nfs_listen) {
        (Some(_), Some(at)) => Some(bind(at).await?),
        _ => None,
    };
    let pools = pools::open(&serving.config, Missing::Create).await?;
    if turn.is_none() {
        let hello = |pools| Hello::new(Role::Serve, None, pools);
        turn = wait_for_turn(
            &serving.folder,
            hello,
            &pools,
            Some(PATIENCE),
            &serving.health,
            &serving.stop,
        )
        .await?;
    }
    while let Some(now) = turn {
        turn = match Box::pin(serving.live(now, &pools, early.take())).await? {
            Ended::Stopped => None,
            Ended::Again(next) => Some(next),
        };
    }
    Ok(())
}

async fn bind(at: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(at)
        .await
        .with_context(|| format!("NFS listener {at}: give another --nfs-listen"))
}

impl<M: Mounter> Serving<'_, M> {
    async fn live(
        &self,
        turn: Turn,
        pools: &Pools,
        early: Option<TcpListener>,
    ) -> anyhow::Result<Ended> {
        let replaces = turn.replaces;
        let (state, sockets, predecessor) = turn.split();
        let life = Life::new(&self.folder, &self.stop);
        let parts =
            Parts::over(self.config.clone(), pools.clone(), state.node_name()?, Some(&state))
                .await?;
        self.health.serving(parts.pools.clone(), parts.volumes.clone(), None);
        life.service_tasks.spawn(pools::watch_refusals(parts.pools.clone(), life.services.clone()));
        if let Some(at) = self.options.health_listen {
            life.service_tasks.spawn(self.health.clone().serve(
                at,
                sockets.clone(),
                life.services.clone(),
            ));
        }
        let budget = Budget::new(&parts.nfs);
        // This comes first: the agent reopens the staged volumes.
        let agent = life::start_agent(
            &parts,
            self.mounter.clone(),
            &state,
            self.options.peers,
            &budget,
            sockets.clone(),
        )
        .await?;
        let staged = agent.clone();
        let is_staged = Box::new(move |id| staged.is_staged(id));
        let (pools, volumes) = (parts.pools.clone(), parts.volumes.clone());
        let exports =
            Exports::start(pools, volumes, is_staged, parts.config.export_idle, life.work.clone())
                .await?;
        let nfs = match self.options.nfs_listen {
            Some(at) => Some(self.listen(at, early, &exports, &parts, &budget, &sockets).await?),
            None => None,
        };
        let controller = Arc::new(parts.controller().with_mounts(agent.clone()));
        let uses = Uses { mounts: agent.clone(), exports: exports.clone() };
        life.work_tasks.spawn(parts.mailbox(Arc::new(uses), &life.work));
        life.work_tasks.spawn(parts.journals(&life.work));
        life.work_tasks.spawn(collecting::run(
            controller.clone(),
            parts.config.collect_interval,
            parts.config.collect_rate.0,
            life.work.clone(),
        ));
        let mut line = String::from("ready:");
        if let Some(server) = &nfs {
            line += &format!(" nfs {}", server.local_addr());
        }
        let csi = match &self.options.csi_endpoint {
            Some(path) => {
                line += &format!(" csi unix://{}", path.display());
                let living =
                    if replaces { crate::csi::Living::Replace } else { crate::csi::Living::Refuse };
                let serve = crate::csi::serve(
                    path,
                    living,
                    services(&parts, controller, agent.clone()),
                    life.services.clone(),
                )?;
                Some(life.service_tasks.spawn(serve))
            }
            None => None,
        };
        let door = Door::open(&state)?;
        life::began(&sockets, &predecessor).await;
        (self.ready)(line);
        let (kept, ports) = (Sockets::default(), Ports { csi, door, state });
        let own = || Hello::new(Role::Serve, None, life::used_pools(&parts));
        let estate = Estate { parts: &parts, agent: &agent, health: &self.health, kept: &kept };
        let handed = life
            .serve_until_ended(&self.stop, ports, own, &estate, || rest(nfs.as_ref()).boxed())
            .await?;
        match handed {
            Some(Handed::Back(state)) => {
                life.dismiss_services();
                Ok(Ended::Again(Turn::again(state, kept)))
            }
            Some(Handed::Over(standing)) => {
                let serving = standing.serving().await;
                if serving.is_ok() {
                    life.end_services().await;
                    tracing::info!("another process serves: this one ends");
                    return Ok(Ended::Stopped);
                }
                Ok(life.stand_by(&standing, kept, &self.stop).await)
            }
            Some(Handed::Not) | None => {
                stop(&life, nfs, &exports, &parts).await.map(|()| Ended::Stopped)
            }
        }
    }

    async fn listen(
        &self,
        at: SocketAddr,
        early: Option<TcpListener>,
        exports: &Arc<Exports>,
        parts: &Parts,
        budget: &Budget,
        sockets: &Sockets,
    ) -> anyhow::Result<Server<ServeTable>> {
        let inherited = sockets.take(Service::Exports, at);
        let listener = match (early, &inherited) {
            (Some(listener), _) => listener,
            (None, Some(inherited)) => inherited.listener()?,
            (None, None) => bind(at).await?,
        };
        let options =
            Options { peers: self.options.nfs_peers, limits: parts.nfs, ..Options::default() };
        let server = Server::start_within(listener, ServeTable(exports.clone()), options, budget)?;
        for connection in inherited.into_iter().flat_map(|inherited| inherited.connections) {
            if let Err(error) = server.adopt(connection) {
                tracing::debug!(%error, "a connection has ended meanwhile");
            }
        }
        Ok(server)
    }
}

/// Brings the exports to rest.
async fn rest(nfs: Option<&Server<ServeTable>>) -> Option<Listening> {
    let server = nfs?;
    let connections = server.rest(REST_LIMIT).await;
    match server.listener() {
        Ok(listener) => {
            Some(Listening::on_tcp(Service::Exports, server.local_addr(), listener, connections))
        }
        Err(error) => {
            tracing::warn!(%error, "the NFS socket cannot be handed over: clients connect again");
            None
        }
    }
}

fn services<M: Mounter>(
    parts: &Parts,
    controller: Arc<Controller>,
    agent: Arc<NodeAgent<M, NfsEndpoints>>,
) -> CsiServices<M, NfsEndpoints> {
    let info = node_info(parts, parts.volumes.settings().node.clone());
    CsiServices {
        identity: identity(parts, true),
        controller: Some(ControllerService::new(controller, Arc::new(NoSecrets))),
        node: Some(NodeService::new(agent, info, Arc::new(NoSecrets))),
    }
}

/// Ends in order: flushes everything to the store, and releases datasets that are not mounted.
async fn stop(
    life: &Life,
    nfs: Option<Server<ServeTable>>,
    exports: &Exports,
    parts: &Parts,
) -> anyhow::Result<()> {
    if let Some(server) = nfs
        && !server.stop(STOP_GRACE).await
    {
        tracing::warn!("NFS calls did not end in time: their connections are cut");
    }
    life.stop().await;
    let closed = exports.close(FLUSH_LIMIT).await;
    parts.volumes.views().close().await;
    life::flush_staged(parts).await?;
    Ok(closed?)
}
