//! Parts shared by the three processes: server, controller, node plugin. Each runs until its token
//! is cancelled, then stops in order: no new calls, calls under way finish, data is flushed,
//! ownership is released where nothing is mounted.

use super::cluster;
use super::collecting;
use super::config::Config;
use super::endpoints::NfsEndpoints;
use super::health::Health;
use super::journals;
use super::life;
use super::parts::Parts;
use super::pools;
use super::unlock::Unlocker;
use crate::control::node::Mounts;
use crate::control::{Controller, serve_mailbox};
use crate::csi::{ControllerService, CsiServices, IdentityService, NodeInfo};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A process that runs. `Ready` is called with the line to print, whenever it begins to serve.
pub type Ready<'a> = &'a (dyn Fn(String) + Send + Sync);

/// The controller: stateless, owns nothing.
pub async fn controller(
    config: Config,
    csi_endpoint: &Path,
    health_listen: Option<SocketAddr>,
    ready: Ready<'_>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let node = format!("controller-{:08x}", rand::random::<u32>());
    let mut opening = pools::open_patiently(&config, &stop)?;
    opening.tried().await;
    let parts = Parts::over(config, opening.pools, node, None).await?;
    let unlock = Arc::new(Unlocker::start(&parts.config, parts.pools.clone(), None).await?);
    let tasks = TaskTracker::new();
    tasks.spawn(pools::watch_refusals(parts.pools.clone(), stop.child_token()));
    if let Some(at) = health_listen {
        let health = Health::new();
        health.serving(parts.pools.clone(), parts.volumes.clone(), None);
        tasks.spawn(health.serve(at, Arc::default(), stop.child_token()));
    }
    let controller = Arc::new(parts.controller());
    tasks.spawn(collecting::run(
        controller.clone(),
        parts.config.collect_interval,
        parts.config.collect_rate.0,
        stop.child_token(),
    ));
    watch_cluster(&controller, &tasks, &stop);
    let services: CsiServices<crate::mount::KernelMounter, NfsEndpoints> = CsiServices {
        identity: identity(&parts, true),
        controller: Some(ControllerService::new(controller, unlock)),
        node: None,
    };
    let serve =
        crate::csi::serve(csi_endpoint, crate::csi::Living::Refuse, services, stop.child_token())?;
    let mut csi = Some(tasks.spawn(serve));
    ready(format!("ready: csi unix://{}", csi_endpoint.display()));
    tokio::select! {
        () = stop.cancelled() => {}
        ended = life::ended_by_itself(&mut csi) => if !stop.is_cancelled() { ended? },
    }
    life::finish(&tasks).await;
    Ok(())
}

/// In a cluster, what happens to its nodes is watched. What keeps this from working keeps nothing
/// else from it.
fn watch_cluster(controller: &Arc<Controller>, tasks: &TaskTracker, stop: &CancellationToken) {
    let server = match cluster::in_cluster() {
        Ok(Some(server)) => server,
        Ok(None) => {
            tracing::info!(
                "not in a Kubernetes cluster: volumes of lost nodes wait for their leases, or for \
                 `dataset release --force`"
            );
            return;
        }
        Err(error) => return cannot_watch(&*error),
    };
    let (controller, stop) = (controller.clone(), stop.child_token());
    tasks.spawn(async move {
        if let Err(error) = cluster::watch(server, controller, stop).await {
            cannot_watch(&error);
        }
    });
}

fn cannot_watch(error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(
        error,
        "nodes cannot be watched: volumes of lost nodes wait for their leases; see the pod's \
         ServiceAccount"
    );
}

pub(super) fn node_info(parts: &Parts, id: String) -> NodeInfo {
    let limits = &parts.config.limits;
    let volumes_max = u32::try_from(limits.volumes_max).unwrap_or(u32::MAX);
    NodeInfo { id, volumes_max, connections_per_volume: limits.connections_per_volume }
}

pub(super) fn identity(parts: &Parts, with_controller: bool) -> IdentityService {
    let pools = parts.pools.clone();
    let ready: crate::csi::IsReady = Arc::new(move || pools.not_open().is_empty());
    IdentityService { driver: parts.config.driver_name.clone(), with_controller, ready }
}

impl Parts {
    pub(super) fn controller(&self) -> Controller {
        Controller::new(self.pools.clone(), self.volumes.clone())
            .with_owner_timeout(self.config.owner_timeout)
    }

    pub(super) fn mailbox(
        &self,
        mounts: Arc<dyn Mounts>,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        serve_mailbox(
            self.pools.clone(),
            self.volumes.clone(),
            mounts,
            self.config.mail_interval,
            stop.child_token(),
        )
    }

    pub(super) fn journals(
        &self,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        journals::run(self.pools.clone(), self.volumes.clone(), stop.child_token())
    }
}
