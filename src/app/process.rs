//! A process in any of its roles: controller, node plugin, or server.
//!
//! A node plugin and a server are [active](super::handover) while they have the state folder. A
//! controller owns nothing, has no state folder, and is active until it stops. On the way out a
//! node plugin flushes staged volumes, which stay owned: their mounts wait for the next start
//! (R24), or for the process that takes over. A server also closes and releases its exports.

use super::admin::AdminEdge;
use super::channel::{AskerParts, ChannelParts};
use super::config::Config;
use super::handover::{Activation, HandoverListener, Predecessor, Sockets, wait_until_active};
use super::health::Health;
use super::lifecycle::{self, Ended, Endings, HandoverInput, HandoverOutcome, Lifecycle};
use super::parts::Parts;
use super::period::Period;
use super::process_pools::ProcessPools;
use super::registration::Registration;
use super::role::{NodeRole, Role, ServeRole};
use super::served::{Served, bind, quiesce_exports, serve_nfs, start_exports};
use super::state_dir::{StateDir, StateFolder};
use super::{cluster, collecting, ephemeral, policies, pools};
use crate::control::{Carriers, Controller, Tasks};
use crate::csi::{
    ControllerService, CsiServices, IdentityService, Living, NodeInfo, NodeService, Registrar,
};
use crate::exports::ServeTable;
use crate::mount::Mounter;
use crate::nfs::{Budget, Options};
use crate::types::WallClock;
use anyhow::Context;
use futures::FutureExt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Called with the line to print whenever the process begins to serve.
pub type Ready<'a> = &'a (dyn Fn(String) + Send + Sync);

/// A server does not wait for ever for a process that does not hand over, because that is a
/// configuration error; but one that is about to exit takes a moment.
const SERVER_PATIENCE: Duration = Duration::from_secs(10);

/// A process, with everything that its active periods share.
pub(super) struct Process<'a, M> {
    pub config: Config,
    pub role: Role,
    pub csi_endpoint: Option<PathBuf>,
    /// The address that serves `/healthz`, `/readyz` and `/metrics`.
    pub health_listen: Option<SocketAddr>,
    pub mounter: M,
    pub ready: Ready<'a>,
    pub stop: CancellationToken,
    pub health: Health,
    /// The administration interface, if it is served.
    pub admin: Option<AdminEdge>,
}

/// Runs until `stop`, or until another process has taken over and serves.
pub(super) async fn run_role<M: Mounter>(process: Process<'_, M>) -> anyhow::Result<()> {
    let Some(state_dir) = process.role.state_dir() else {
        let mut pools = process.pools().await?;
        return Box::pin(process.active_period(None, &mut pools, None)).await.map(drop);
    };
    let folder = StateFolder::open(state_dir)?;
    let mut activation = folder.try_lock()?.map(Activation::first);
    // Bound before the pools are opened: a client that is refused retries only after seconds.
    let mut early = match (&activation, &process.role) {
        (Some(_), Role::Serve(ServeRole { nfs_listen: Some(at), .. })) => Some(bind(*at).await?),
        _ => None,
    };
    let mut pools = process.pools().await?;
    if activation.is_none() {
        activation = process.wait(&folder, &mut pools).await?;
    }
    while let Some(now) = activation {
        let period = process.active_period(Some((&folder, now)), &mut pools, early.take());
        activation = match Box::pin(period).await? {
            Ended::Stopped => None,
            Ended::Active(next) => Some(next),
        };
    }
    Ok(())
}

impl<M: Mounter> Process<'_, M> {
    async fn pools(&self) -> anyhow::Result<ProcessPools> {
        ProcessPools::start(&self.config, &self.role, &self.stop).await
    }

    /// Waits until this process is active. `None`: it was stopped before.
    async fn wait(
        &self,
        folder: &StateFolder,
        pools: &mut ProcessPools,
    ) -> anyhow::Result<Option<Activation>> {
        // A defect of this process must show before anything changes for the active one.
        self.check_socket_folders()?;
        pools.unlock(&self.config, &self.role).await?;
        let patience = matches!(self.role, Role::Serve(_)).then_some(SERVER_PATIENCE);
        let hello = |pools| self.role.hello(pools);
        let waiting = |why| self.health.wait(why);
        wait_until_active(folder, hello, pools.pools(), patience, waiting, &self.stop).await
    }

    fn check_socket_folders(&self) -> anyhow::Result<()> {
        let at = |dir: &Path| format!("folder {} of a socket", dir.display());
        if let Role::Node(NodeRole { registration: Some((registry_dir, _)), .. }) = &self.role {
            std::fs::read_dir(registry_dir).with_context(|| at(registry_dir))?;
        }
        match self.csi_endpoint.as_deref().and_then(Path::parent) {
            Some(dir) => std::fs::create_dir_all(dir).with_context(|| at(dir)),
            None => Ok(()),
        }
    }

    async fn active_period(
        &self,
        activation: Option<(&StateFolder, Activation)>,
        pools: &mut ProcessPools,
        early: Option<TcpListener>,
    ) -> anyhow::Result<Ended> {
        let living = match &activation {
            Some((_, Activation { replaces: true, .. })) => Living::Replace,
            _ => Living::Refuse,
        };
        let (held, sockets, predecessor) = match activation {
            Some((folder, activation)) => {
                let (state, sockets, predecessor) = activation.split();
                (Some((folder, state)), sockets, Some(predecessor))
            }
            None => (None, Arc::default(), None),
        };
        let state = held.as_ref().map(|(_, state)| state);
        let period = self.start(state, &sockets, pools, early).await?;
        let csi = self.serve_csi(&period, (living, &sockets), pools).await?;
        self.register(&period, &sockets)?;
        let line = self.ready_line(period.served.as_ref());
        let Some((folder, state)) = held else {
            self.say_ready(line);
            lifecycle::until_stopped(csi, &self.stop).await?;
            return period.stop().await.map(|()| Ended::Stopped);
        };
        let handover = HandoverListener::bind(&state)?;
        announce(&sockets, predecessor.as_ref()).await;
        self.say_ready(line);
        self.until_ended(period, folder, Endings { csi, handover, state }).await
    }

    /// Starts everything that serves volumes.
    async fn start(
        &self,
        state: Option<&StateDir>,
        sockets: &Arc<Sockets>,
        pools: &ProcessPools,
        early: Option<TcpListener>,
    ) -> anyhow::Result<Period<M>> {
        let lifecycle = Lifecycle::new(&self.stop);
        let owner = self.role.owner(state)?;
        let parts = Parts::over(self.config.clone(), pools.pools().clone(), owner, state).await?;
        let registration = Registration::default();
        self.report_health(&parts, &registration);
        let refusals = pools::watch_refusals(parts.pools.clone(), lifecycle.services.clone());
        lifecycle.service_tasks.spawn(refusals);
        let budget = Budget::new(&parts.nfs);
        let (mut carriers, mut asker, mut port) = (Carriers::default(), None, None);
        // Before everything else: calls on staged volumes must find a listener.
        let agent = match state {
            Some(state) => {
                let (mounter, peers) = (self.mounter.clone(), self.role.peers());
                let channel = match &parts.config.channel {
                    Some(config) => Some(ChannelParts::open(config, &parts.volumes, peers).await?),
                    None => None,
                };
                let relay = (&budget, channel.as_ref());
                let sockets = sockets.clone();
                let started = lifecycle::start_agent(&parts, mounter, state, peers, relay, sockets);
                let agent = started.await?;
                if let Some(channel) = &channel {
                    carriers = channel.carriers.clone();
                }
                port = channel;
                Some(agent)
            }
            None => {
                let parts = AskerParts::new(&parts.volumes)?;
                carriers = parts.carriers;
                asker = Some(parts.channel);
                None
            }
        };
        if let Some(at) = self.health_listen {
            let serve = self.health.clone().serve(at, sockets.clone(), lifecycle.services.clone());
            lifecycle.service_tasks.spawn(serve);
        }
        let (served, requests) = (None, None);
        let mut period =
            Period { lifecycle, parts, agent, served, registration, requests, carriers, asker };
        if let (Role::Serve(role), Some(agent)) = (&self.role, &period.agent) {
            let carriers = period.carriers.clone();
            let exports = start_exports(agent, &period.parts, carriers, &period.lifecycle).await?;
            let nfs = match role.nfs_listen {
                Some(at) => {
                    let limits = period.parts.nfs;
                    let options = Options { peers: role.nfs_peers, limits, ..Options::default() };
                    let table = ServeTable(exports.clone());
                    Some(serve_nfs(at, early, table, options, &budget, sockets).await?)
                }
                None => None,
            };
            period.served = Some(Served { exports, nfs });
        }
        period.take_requests(port)?;
        Ok(period)
    }

    /// Starts the background work, and serves CSI.
    async fn serve_csi(
        &self,
        period: &Period<M>,
        (living, sockets): (Living, &Sockets),
        pools: &mut ProcessPools,
    ) -> anyhow::Result<Option<JoinHandle<std::io::Result<()>>>> {
        let Period { lifecycle, parts, agent, .. } = period;
        let unlock = pools.unlock(&self.config, &self.role).await?;
        let controller = self.controller(period);
        let tasks = Tasks::new(lifecycle.work.child_token());
        self.start_work(period, controller.as_ref(), &tasks);
        if let (Some(admin), Some(controller)) = (&self.admin, &controller) {
            admin.start(parts, (controller, tasks), lifecycle, (living, sockets)).await?;
        }
        let node = agent.as_ref().map(|agent| {
            let info = node_info(parts, parts.volumes.settings().node.clone());
            NodeService::new(agent.clone(), info, unlock.clone())
        });
        let services = CsiServices {
            identity: self.identity(parts),
            controller: controller.map(|controller| ControllerService::new(controller, unlock)),
            node,
        };
        let Some(path) = &self.csi_endpoint else { return Ok(None) };
        let serve = crate::csi::serve(path, living, services, lifecycle.services.clone())?;
        Ok(Some(lifecycle.service_tasks.spawn(serve)))
    }

    /// Serves until this process stops, or another one is active; then on standby, if it resumes.
    async fn until_ended(
        &self,
        period: Period<M>,
        folder: &StateFolder,
        endings: Endings,
    ) -> anyhow::Result<Ended> {
        let Some(agent) = &period.agent else {
            return period.stop().await.map(|()| Ended::Stopped);
        };
        let handed_over = Sockets::default();
        let input = HandoverInput {
            folder,
            parts: &period.parts,
            agent,
            health: &self.health,
            sockets: &handed_over,
        };
        // Evaluated only in a hand-over.
        let quiesce = || {
            async {
                let given = match period.served.as_ref().and_then(|served| served.nfs.as_ref()) {
                    Some(nfs) => quiesce_exports(nfs).await,
                    None => period.registration.take(),
                };
                let admin = self.admin.as_ref().and_then(AdminEdge::give);
                given.into_iter().chain(admin).collect::<Vec<_>>()
            }
            .boxed()
        };
        let own = || self.role.hello(lifecycle::used_pools(&period.parts));
        let ended = period.lifecycle.serve_until_ended(&self.stop, endings, own, &input, quiesce);
        match ended.await? {
            Some(HandoverOutcome::Failed(state)) => {
                period.lifecycle.abandon_services();
                Ok(Ended::Active(Activation::resumed(state, handed_over)))
            }
            Some(HandoverOutcome::Done(standby)) => {
                let Period { lifecycle, parts, agent, served, requests, carriers, .. } = period;
                if served.is_some() && standby.serving().await.is_ok() {
                    lifecycle.end_services().await;
                    tracing::info!("another process is serving; this one exits");
                    return Ok(Ended::Stopped);
                }
                if let Some(agent) = &agent {
                    agent.end().await;
                }
                // The other process needs the memory.
                drop((parts, agent, served, requests, carriers));
                Ok(lifecycle.stand_by(&standby, handed_over, &self.stop).await)
            }
            Some(HandoverOutcome::Refused) | None => period.stop().await.map(|()| Ended::Stopped),
        }
    }

    fn report_health(&self, parts: &Parts, registration: &Registration) {
        let expected = match &self.role {
            Role::Node(NodeRole { registration: Some(_), .. }) => Some(registration.state.clone()),
            _ => None,
        };
        let policies = parts.policies.clone();
        self.health.serving(parts.pools.clone(), parts.volumes.clone(), policies, expected);
    }

    fn controller(&self, period: &Period<M>) -> Option<Arc<Controller>> {
        let carriers = period.carriers.clone();
        let controller = self.role.is_controller().then(|| period.parts.controller(carriers))?;
        Some(Arc::new(match &period.agent {
            Some(agent) => controller.with_mounts(agent.clone()),
            None => controller,
        }))
    }

    /// Background work: requests of other processes, obsolete journals, reports of damage,
    /// collections, snapshot policies, lost nodes.
    fn start_work(&self, period: &Period<M>, controller: Option<&Arc<Controller>>, tasks: &Tasks) {
        let Period { lifecycle, parts, requests, .. } = period;
        let Lifecycle { work, work_tasks, .. } = lifecycle;
        if let Some(requests) = requests {
            let interval = parts.config.mailbox_interval;
            work_tasks.spawn(requests.clone().serve_mailbox(interval, work.child_token()));
            work_tasks.spawn(parts.journals(work));
            work_tasks.spawn(parts.damage_reports(work));
        }
        if let Some(controller) = controller {
            work_tasks.spawn(collecting::run(
                controller.clone(),
                tasks.clone(),
                parts.config.collect_interval,
                parts.config.collect_rate.0,
                work.clone(),
            ));
            work_tasks.spawn(ephemeral::run(controller.clone(), work.clone()));
            work_tasks.spawn(policies::run(
                controller.clone(),
                parts.policies.clone(),
                WallClock::default(),
                work.clone(),
            ));
            if matches!(self.role, Role::Controller) {
                cluster::watch(controller, lifecycle);
            }
        }
    }

    fn identity(&self, parts: &Parts) -> IdentityService {
        let pools = parts.pools.clone();
        let ready: crate::csi::IsReady = Arc::new(move || pools.not_open().is_empty());
        let with_controller = self.role.is_controller();
        IdentityService { driver: parts.config.driver_name.clone(), with_controller, ready }
    }

    fn register(&self, period: &Period<M>, sockets: &Sockets) -> anyhow::Result<()> {
        let Period { lifecycle, parts, registration, .. } = period;
        let Role::Node(NodeRole { registration: Some((registry_dir, endpoint)), .. }) = &self.role
        else {
            return Ok(());
        };
        let registrar = Registrar {
            driver: parts.config.driver_name.clone(),
            registry_dir: registry_dir.clone(),
            endpoint: endpoint.clone(),
            state: registration.state.clone(),
        };
        registration.register(registrar, lifecycle, sockets, self.stop.clone())
    }

    fn ready_line(&self, served: Option<&Served>) -> String {
        let mut line = String::from("ready:");
        if let Some(nfs) = served.and_then(|served| served.nfs.as_ref()) {
            line += &format!(" nfs {}", nfs.local_addr());
        }
        if let Some(path) = &self.csi_endpoint {
            line += &format!(" csi unix://{}", path.display());
        }
        if let Some(admin) = &self.admin {
            line += &admin.addresses();
        }
        line
    }

    fn say_ready(&self, line: String) {
        (self.ready)(line);
        if let (Role::Serve(_), Some(admin)) = (&self.role, &self.admin) {
            admin.print_login();
        }
    }
}

fn node_info(parts: &Parts, id: String) -> NodeInfo {
    let limits = &parts.config.limits;
    let volumes_max = u32::try_from(limits.volumes_max).unwrap_or(u32::MAX);
    NodeInfo { id, volumes_max, connections_per_volume: limits.connections_per_volume }
}

/// Closes the inherited sockets that no service took, and tells the previous process that this one
/// serves.
async fn announce(sockets: &Sockets, predecessor: Option<&Predecessor>) {
    sockets.clear();
    if let Some(predecessor) = predecessor {
        predecessor.serving().await;
    }
}
