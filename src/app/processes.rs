//! The three processes: server, controller, node plugin. Each runs until its token is cancelled, then stops in order: no
//! new calls, calls under way finish, data is flushed, ownership is released where nothing is mounted any more.

use super::collecting;
use super::config::Config;
use super::endpoints::NfsEndpoints;
use super::exports::{Exports, ServeTable};
use super::health::{self, Health};
use super::parts::Parts;
use super::pools::Missing;
use super::state_dir::StateDir;
use super::unlock::Unlocker;
use crate::control::node::{Mounts, NodeAgent, NodeSettings};
use crate::control::secrets::NoSecrets;
use crate::control::{Controller, mail};
use crate::csi::{ControllerService, CsiServices, IdentityService, NodeInfo, NodeService, Registrar};
use crate::mount::Mounter;
use crate::nfs::{Budget, Options, Peers, Server};
use anyhow::{Context, bail};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long calls under way may take when the process stops.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// What a node plugin is told beside the configuration.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Kubernetes' name of the node; `None`: one kept in the state folder.
    pub node_id: Option<String>,
    pub state_dir: PathBuf,
    /// In memory (a tmpfs): secrets of requests are kept there for the next start; none: they are not kept.
    pub run_dir: Option<PathBuf>,
    /// `<kubeletDir>/plugins_registry`, and the CSI socket as kubelet sees it.
    pub registration: Option<(PathBuf, PathBuf)>,
    /// Who may connect to a staged volume's endpoint.
    pub peers: Peers,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub health_listen: Option<SocketAddr>,
}

#[derive(Clone, Debug)]
pub struct ServeOptions {
    pub state_dir: PathBuf,
    pub csi_endpoint: Option<PathBuf>,
    pub nfs_listen: Option<SocketAddr>,
    /// Who may connect there.
    pub nfs_peers: Peers,
    /// Who may connect to a staged volume's endpoint.
    pub peers: Peers,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub health_listen: Option<SocketAddr>,
}

/// A process that runs. `Ready` is called once with the line to print.
pub type Ready<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Everything for one machine: both CSI services on one socket, and every dataset under NFS.
pub async fn serve<M: Mounter>(
    config: Config,
    options: ServeOptions,
    mounter: M,
    ready: Ready<'_>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if let Some((name, _)) = config.pools.iter().find(|(_, pool)| pool.request_secrets) {
        bail!(
            "pool {name}: requestSecrets is for `controller` and `node`: write its credentials into the configuration of `serve`"
        );
    }
    let state = StateDir::open(&options.state_dir)?;
    let parts = Parts::start(config, Missing::Create, state.node_name()?, Some(&state)).await?;
    let tasks = TaskTracker::new();
    parts.serve_health(options.health_listen, &tasks, &stop);
    let budget = Budget::new(&parts.nfs);
    // First: what is staged is the agent's to reopen.
    let agent = start_agent(&parts, mounter, &state, options.peers, &budget).await?;
    let staged = agent.clone();
    let is_staged = Box::new(move |id| staged.is_staged(id));
    let (pools, volumes) = (parts.pools.clone(), parts.volumes.clone());
    let exports = Exports::start(pools, volumes, is_staged, parts.config.export_idle, stop.child_token()).await?;
    let nfs = match options.nfs_listen {
        Some(at) => Some(listen(at, options.nfs_peers, &exports, &parts, &budget).await?),
        None => None,
    };
    let controller = Arc::new(parts.controller().with_mounts(agent.clone()));
    tasks.spawn(parts.mail(agent.clone(), &stop));
    tasks.spawn(collecting::run(controller.clone(), parts.config.collect_interval, stop.child_token()));
    let mut line = String::from("ready:");
    if let Some(server) = &nfs {
        line += &format!(" nfs {}", server.local_addr());
    }
    let csi = match &options.csi_endpoint {
        Some(path) => {
            line += &format!(" csi unix://{}", path.display());
            let info = node_info(&parts, parts.volumes.settings().node.clone());
            let services = CsiServices {
                identity: identity(&parts, true),
                controller: Some(ControllerService::new(controller, Arc::new(NoSecrets))),
                node: Some(NodeService::new(agent.clone(), info, Arc::new(NoSecrets))),
            };
            Some(tasks.spawn(crate::csi::serve(path, services, stop.child_token())?))
        }
        None => None,
    };
    ready(line);
    until_stopped(&stop, csi).await?;
    if let Some(server) = nfs {
        drain(server).await;
    }
    finish(&tasks).await;
    let closed = exports.close().await;
    parts.volumes.views().close().await;
    flush_staged(&parts).await?;
    Ok(closed?)
}

/// The controller: stateless, owns nothing.
pub async fn controller(
    config: Config,
    csi_endpoint: &Path,
    health_listen: Option<SocketAddr>,
    ready: Ready<'_>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let node = format!("controller-{:08x}", rand::random::<u32>());
    let parts = Parts::start_patiently(config, node, None, &stop).await?;
    let unlock = Arc::new(Unlocker::start(&parts.config, parts.pools.clone(), None).await?);
    let tasks = TaskTracker::new();
    parts.serve_health(health_listen, &tasks, &stop);
    let controller = Arc::new(parts.controller());
    tasks.spawn(collecting::run(controller.clone(), parts.config.collect_interval, stop.child_token()));
    let services: CsiServices<crate::mount::KernelMounter, NfsEndpoints> =
        CsiServices { identity: identity(&parts, true), controller: Some(ControllerService::new(controller, unlock)), node: None };
    let csi = tasks.spawn(crate::csi::serve(csi_endpoint, services, stop.child_token())?);
    ready(format!("ready: csi unix://{}", csi_endpoint.display()));
    until_stopped(&stop, Some(csi)).await?;
    finish(&tasks).await;
    Ok(())
}

/// The node plugin. On the way out staged volumes are flushed but stay owned: their mounts wait for the next start (R24).
pub async fn node<M: Mounter>(
    config: Config,
    csi_endpoint: &Path,
    options: NodeOptions,
    mounter: M,
    ready: Ready<'_>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let state = StateDir::open(&options.state_dir)?;
    let id = match options.node_id {
        Some(id) => id,
        None => state.node_name()?,
    };
    let parts = Parts::start_patiently(config, id.clone(), Some(&state), &stop).await?;
    let unlock = Arc::new(Unlocker::start(&parts.config, parts.pools.clone(), options.run_dir.as_deref()).await?);
    let tasks = TaskTracker::new();
    parts.serve_health(options.health_listen, &tasks, &stop);
    let agent = start_agent(&parts, mounter, &state, options.peers, &Budget::new(&parts.nfs)).await?;
    // The controller is another process: it asks for a snapshot of what is open here by mail.
    tasks.spawn(parts.mail(agent.clone(), &stop));
    let info = node_info(&parts, id);
    let services = CsiServices {
        identity: identity(&parts, false),
        controller: None,
        node: Some(NodeService::new(agent.clone(), info, unlock)),
    };
    let csi = tasks.spawn(crate::csi::serve(csi_endpoint, services, stop.child_token())?);
    if let Some((registry_dir, endpoint)) = options.registration {
        let registrar = Registrar { driver: parts.config.driver_name.clone(), registry_dir, endpoint };
        let stop = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = registrar.serve(stop.child_token()).await {
                tracing::error!(%error, "kubelet cannot register the driver: check the registration folder; stopping");
                stop.cancel();
            }
        });
    }
    ready(format!("ready: csi unix://{}", csi_endpoint.display()));
    until_stopped(&stop, Some(csi)).await?;
    finish(&tasks).await;
    parts.volumes.views().close().await;
    flush_staged(&parts).await
}

fn node_info(parts: &Parts, id: String) -> NodeInfo {
    let limit = u32::try_from(parts.config.limits.volumes_max).unwrap_or(u32::MAX);
    NodeInfo { id, volumes_max: limit.min(NodeInfo::VOLUMES_MAX) }
}

fn identity(parts: &Parts, with_controller: bool) -> IdentityService {
    let pools = parts.pools.clone();
    let ready: crate::csi::IsReady = Arc::new(move || pools.not_open().is_empty());
    IdentityService { driver: parts.config.driver_name.clone(), with_controller, ready }
}

async fn start_agent<M: Mounter>(
    parts: &Parts,
    mounter: M,
    state: &StateDir,
    peers: Peers,
    budget: &Budget,
) -> anyhow::Result<Arc<NodeAgent<M, NfsEndpoints>>> {
    let settings = NodeSettings::new(state.path().join("staged"))?;
    let endpoints = NfsEndpoints::new(Options { peers, limits: parts.nfs, ..Options::default() }, budget.clone());
    Ok(NodeAgent::start(mounter, endpoints, parts.volumes.clone(), parts.pools.clone(), settings).await?)
}

async fn listen(
    at: SocketAddr,
    peers: Peers,
    exports: &Arc<Exports>,
    parts: &Parts,
    budget: &Budget,
) -> anyhow::Result<Server<ServeTable>> {
    let listener =
        tokio::net::TcpListener::bind(at).await.with_context(|| format!("NFS listener {at}: give another --nfs-listen"))?;
    let options = Options { peers, limits: parts.nfs, ..Options::default() };
    Ok(Server::start_within(listener, ServeTable(exports.clone()), options, budget)?)
}

/// Until the token is cancelled, or the socket's service ends by itself, which is an error.
async fn until_stopped(stop: &CancellationToken, csi: Option<tokio::task::JoinHandle<std::io::Result<()>>>) -> anyhow::Result<()> {
    match csi {
        None => stop.cancelled().await,
        Some(csi) => tokio::select! {
            () = stop.cancelled() => {}
            ended = csi => {
                if !stop.is_cancelled() {
                    match ended {
                        Ok(Ok(())) => bail!("the CSI socket ended"),
                        Ok(Err(error)) => return Err(error).context("the CSI socket ended"),
                        Err(error) => return Err(error).context("the CSI socket ended"),
                    }
                }
            }
        },
    }
    Ok(())
}

async fn drain(server: Server<ServeTable>) {
    if !server.stop(STOP_GRACE).await {
        tracing::warn!("NFS calls did not end in time: their connections are cut");
    }
}

async fn finish(tasks: &TaskTracker) {
    tasks.close();
    if tokio::time::timeout(STOP_GRACE, tasks.wait()).await.is_err() {
        tracing::warn!("calls did not end in time: they are repaired by their retry");
    }
}

/// What is still mounted stays owned; everything acknowledged is in the store when this returns.
async fn flush_staged(parts: &Parts) -> anyhow::Result<()> {
    let mut result = Ok(());
    for volume in parts.volumes.list() {
        if let Err(error) = volume.fs.sync().await {
            tracing::error!(dataset = %volume.dataset.name, %error, "not everything is in the store: the journal keeps it for the next start");
            result = Err(error).with_context(|| format!("flushing dataset {}", volume.dataset.name));
        }
    }
    result
}

impl Parts {
    fn controller(&self) -> Controller {
        Controller::new(self.pools.clone(), self.volumes.clone()).with_owner_timeout(self.config.owner_timeout)
    }

    fn serve_health(&self, at: Option<SocketAddr>, tasks: &TaskTracker, stop: &CancellationToken) {
        if let Some(at) = at {
            let health = Health { pools: self.pools.clone(), volumes: self.volumes.clone() };
            tasks.spawn(health::serve(at, health, stop.child_token()));
        }
    }

    fn mail(&self, mounts: Arc<dyn Mounts>, stop: &CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        mail::serve(self.pools.clone(), self.volumes.clone(), mounts, self.config.mail_interval, stop.child_token())
    }
}
