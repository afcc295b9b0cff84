//! Everything for one machine: both CSI services on one socket, and every dataset under NFS.

use super::admin::AdminOptions;
use super::config::Config;
use super::health::Health;
use super::process::{Process, Ready, run_role};
use super::role::{Role, ServeRole};
use crate::mount::Mounter;
use crate::nfs::Peers;
use anyhow::bail;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

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
    /// The administration interface, if it is served.
    pub admin: Option<AdminOptions>,
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
            "pool {name}: requestSecrets is supported by `controller` and `node` only: configure \
             the credentials of the pool for `serve`"
        );
    }
    let ServeOptions {
        state_dir,
        csi_endpoint,
        nfs_listen,
        nfs_peers,
        peers,
        health_listen,
        admin,
    } = options;
    let admin = admin.map(|options| options.open(&config.admin)).transpose()?;
    run_role(Process {
        config,
        role: Role::Serve(ServeRole { state_dir, nfs_listen, nfs_peers, peers }),
        csi_endpoint,
        health_listen,
        mounter,
        ready,
        stop,
        health: Health::new(),
        admin,
    })
    .await
}
