//! The node plugin. On the way out staged volumes are flushed but stay owned: their mounts wait for
//! the next start (R24), or for the process that takes over.

use super::config::Config;
use super::handover::{Door, Hello, Listening, Role, Service, Sockets, Turn, wait_for_turn};
use super::health::Health;
use super::life::{self, Ended, Estate, Handed, Life, Ports};
use super::parts::Parts;
use super::pools::{self, Opening};
use super::processes::{Ready, identity, node_info};
use super::state_dir::StateFolder;
use super::unlock::Unlocker;
use crate::csi::{CsiServices, NodeService, Registrar, RegistrationSocket, RegistrationState};
use crate::mount::Mounter;
use crate::nfs::{Budget, Peers};
use anyhow::Context;
use futures::FutureExt;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Options of a node plugin beside the configuration.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Kubernetes' name of the node; `None`: one kept in the state folder.
    pub node_id: Option<String>,
    pub state_dir: PathBuf,
    /// In memory (a tmpfs): secrets of requests are kept there for the next start; none: they are
    /// not kept.
    pub run_dir: Option<PathBuf>,
    /// `<kubeletDir>/plugins_registry`, and the CSI socket as kubelet sees it.
    pub registration: Option<(PathBuf, PathBuf)>,
    /// The peers that may connect to a staged volume's endpoint.
    pub peers: Peers,
    /// The address that serves `/healthz`, `/readyz` and `/metrics`.
    pub health_listen: Option<SocketAddr>,
    /// The socket on which this very process reports whether it is ready: a path that no other
    /// process has.
    pub health_socket: Option<PathBuf>,
}

/// State shared by all lives of the process.
struct Plugin<'a, M> {
    config: Config,
    csi_endpoint: &'a Path,
    options: NodeOptions,
    mounter: M,
    ready: Ready<'a>,
    stop: CancellationToken,
    folder: StateFolder,
    health: Health,
}

/// Runs until `stop`.
pub async fn node<M: Mounter>(
    config: Config,
    csi_endpoint: &Path,
    options: NodeOptions,
    mounter: M,
    ready: Ready<'_>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (folder, health) = (StateFolder::open(&options.state_dir)?, Health::new());
    if let Some(path) = &options.health_socket {
        health.serve_own(path)?;
    }
    let plugin = Plugin { config, csi_endpoint, options, mounter, ready, stop, folder, health };
    let mut opening = pools::open_patiently(&plugin.config, &plugin.stop)?;
    let mut unlocker = None;
    let mut turn = match plugin.folder.try_lock()? {
        Some(state) => Turn::first(state),
        None => {
            // A fault of this process must show before anything changes for the one that serves.
            plugin.check_places()?;
            opening.tried().await;
            unlocker = Some(plugin.unlocker(&opening).await?);
            let (folder, pools) = (&plugin.folder, &opening.pools);
            let hello = |pools| Hello::new(Role::Node, plugin.options.node_id.clone(), pools);
            match wait_for_turn(folder, hello, pools, None, &plugin.health, &plugin.stop).await? {
                Some(turn) => turn,
                None => return Ok(()),
            }
        }
    };
    loop {
        match plugin.live(turn, &mut opening, &mut unlocker).await? {
            Ended::Stopped => return Ok(()),
            Ended::Again(next) => turn = next,
        }
    }
}

impl<M: Mounter> Plugin<'_, M> {
    async fn unlocker(&self, opening: &Opening) -> anyhow::Result<Arc<Unlocker>> {
        let started =
            Unlocker::start(&self.config, opening.pools.clone(), self.options.run_dir.as_deref())
                .await;
        started.map(Arc::new)
    }

    /// The folders of the sockets that it will make.
    fn check_places(&self) -> anyhow::Result<()> {
        let at = |dir: &Path| format!("folder {} of a socket", dir.display());
        if let Some((registry_dir, _)) = &self.options.registration {
            std::fs::read_dir(registry_dir).with_context(|| at(registry_dir))?;
        }
        match self.csi_endpoint.parent() {
            Some(dir) => std::fs::create_dir_all(dir).with_context(|| at(dir)),
            None => Ok(()),
        }
    }

    async fn live(
        &self,
        turn: Turn,
        opening: &mut Opening,
        unlocker: &mut Option<Arc<Unlocker>>,
    ) -> anyhow::Result<Ended> {
        let replaces = turn.replaces;
        let (state, sockets, predecessor) = turn.split();
        let id = match &self.options.node_id {
            Some(id) => id.clone(),
            None => state.node_name()?,
        };
        let life = Life::new(&self.folder, &self.stop);
        let parts =
            Parts::over(self.config.clone(), opening.pools.clone(), id.clone(), Some(&state))
                .await?;
        let kubelet = RegistrationState::default();
        let expected = self.options.registration.is_some().then(|| kubelet.clone());
        self.health.serving(parts.pools.clone(), parts.volumes.clone(), expected);
        life.service_tasks.spawn(pools::watch_refusals(parts.pools.clone(), life.services.clone()));
        // This comes first: clients that wait for a staged volume must find a listening endpoint.
        let budget = Budget::new(&parts.nfs);
        let agent = life::start_agent(
            &parts,
            self.mounter.clone(),
            &state,
            self.options.peers,
            &budget,
            sockets.clone(),
        )
        .await?;
        if let Some(at) = self.options.health_listen {
            life.service_tasks.spawn(self.health.clone().serve(
                at,
                sockets.clone(),
                life.services.clone(),
            ));
        }
        let unlock = match unlocker {
            Some(unlock) => unlock.clone(),
            None => {
                opening.tried().await;
                unlocker.insert(self.unlocker(opening).await?).clone()
            }
        };
        // The controller is another process: it requests snapshots of volumes that are open here
        // through the mailbox.
        life.work_tasks.spawn(parts.mailbox(agent.clone(), &life.work));
        life.work_tasks.spawn(parts.journals(&life.work));
        let services = CsiServices {
            identity: identity(&parts, false),
            controller: None,
            node: Some(NodeService::new(agent.clone(), node_info(&parts, id), unlock)),
        };
        let living =
            if replaces { crate::csi::Living::Replace } else { crate::csi::Living::Refuse };
        let serve = crate::csi::serve(self.csi_endpoint, living, services, life.services.clone())?;
        let csi = Some(life.service_tasks.spawn(serve));
        let registration = self.register(&parts, &life, &sockets, kubelet.clone())?;
        let door = Door::open(&state)?;
        life::began(&sockets, &predecessor).await;
        (self.ready)(format!("ready: csi unix://{}", self.csi_endpoint.display()));
        let (kept, ports) = (Sockets::default(), Ports { csi, door, state });
        let own = || Hello::new(Role::Node, self.options.node_id.clone(), life::used_pools(&parts));
        // Taken only when it is awaited. A socket by which kubelet has not registered the driver is
        // not handed over: the next process makes a new one, and kubelet registers again.
        let rest = || {
            async { registration.lock().take().filter(|_| kubelet.is_registered()).map(listening) }
                .boxed()
        };
        let estate = Estate { parts: &parts, agent: &agent, health: &self.health, kept: &kept };
        let handed = life.serve_until_ended(&self.stop, ports, own, &estate, rest).await?;
        match handed {
            Some(Handed::Back(state)) => {
                life.dismiss_services();
                Ok(Ended::Again(Turn::again(state, kept)))
            }
            Some(Handed::Over(standing)) => {
                drop((parts, agent));
                Ok(life.stand_by(&standing, kept, &self.stop).await)
            }
            Some(Handed::Not) | None => {
                life.stop().await;
                parts.volumes.views().close().await;
                life::flush_staged(&parts).await.map(|()| Ended::Stopped)
            }
        }
    }

    /// Kubelet finds the driver by this. Answers the socket, for the next process.
    fn register(
        &self,
        parts: &Parts,
        life: &Life,
        sockets: &Sockets,
        state: RegistrationState,
    ) -> anyhow::Result<Mutex<Option<RegistrationSocket>>> {
        let Some((registry_dir, endpoint)) = self.options.registration.clone() else {
            return Ok(Mutex::default());
        };
        let registrar =
            Registrar { driver: parts.config.driver_name.clone(), registry_dir, endpoint, state };
        let inherited = sockets.take_path(Service::Registration, &registrar.path());
        let registering = registrar.listen(inherited).context("kubelet's registration folder")?;
        let socket = registering.socket()?;
        let (serve, stop) =
            (registrar.serve(registering, life.services.clone()), self.stop.clone());
        life.service_tasks.spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(
                    %error,
                    "kubelet cannot register the driver: check the registration folder; stopping"
                );
                stop.cancel();
            }
        });
        Ok(Mutex::new(Some(socket)))
    }
}

/// The socket that kubelet finds, as it is handed over.
fn listening(socket: RegistrationSocket) -> Listening {
    let path = socket.path().to_owned();
    Listening::on_path(Service::Registration, path, socket.give())
}
