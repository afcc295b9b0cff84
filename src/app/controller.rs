//! The controller: stateless, owns nothing.

use super::admin::AdminOptions;
use super::config::Config;
use super::health::Health;
use super::process::{Process, Ready, run_role};
use super::role::Role;
use crate::mount::KernelMounter;
use std::net::SocketAddr;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Runs until `stop`.
pub async fn controller(
    config: Config,
    csi_endpoint: &Path,
    health_listen: Option<SocketAddr>,
    admin: Option<AdminOptions>,
    ready: Ready<'_>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let admin = admin.map(|options| options.open(&config.admin)).transpose()?;
    run_role(Process {
        config,
        role: Role::Controller,
        csi_endpoint: Some(csi_endpoint.to_owned()),
        health_listen,
        // Nothing is mounted by a controller.
        mounter: KernelMounter,
        ready,
        stop,
        health: Health::new(),
        admin,
    })
    .await
}
