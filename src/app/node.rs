//! The node plugin.

use super::config::Config;
use super::health::Health;
use super::process::{Process, Ready, run_role};
use super::role::{NodeRole, Role};
use crate::mount::Mounter;
use crate::nfs::Peers;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// The settings of a node plugin beside the configuration.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Name of the node in Kubernetes; without one, the name in the state folder.
    pub node_id: Option<String>,
    pub state_dir: PathBuf,
    /// In memory (a tmpfs): keeps the secrets of requests for the next start.
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

/// Runs until `stop`.
pub async fn node<M: Mounter>(
    config: Config,
    csi_endpoint: &Path,
    options: NodeOptions,
    mounter: M,
    ready: Ready<'_>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let health = Health::new();
    if let Some(path) = &options.health_socket {
        health.serve_own(path)?;
    }
    let NodeOptions { node_id, state_dir, run_dir, registration, peers, .. } = options;
    run_role(Process {
        config,
        role: Role::Node(NodeRole { node_id, state_dir, run_dir, registration, peers }),
        csi_endpoint: Some(csi_endpoint.to_owned()),
        health_listen: options.health_listen,
        mounter,
        ready,
        stop,
        health,
        admin: None,
    })
    .await
}
