//! The services on their socket.

use super::proto::v1::controller_server::ControllerServer;
use super::proto::v1::group_controller_server::GroupControllerServer;
use super::proto::v1::identity_server::IdentityServer;
use super::proto::v1::node_server::NodeServer;
use super::{ControllerService, IdentityService, NodeService};
use crate::control::node::Endpoints;
use crate::mount::Mounter;
use crate::rpc::{self, Living};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

/// Calls of one connection at once: kubelet and each sidecar have one.
const CALLS_PER_CONNECTION_MAX: usize = 128;

/// The services of one process: the identity, and those of its role.
pub struct CsiServices<M, E> {
    pub identity: IdentityService,
    pub controller: Option<ControllerService>,
    pub node: Option<NodeService<M, E>>,
}

/// A CSI endpoint as the specification writes it, `unix:///run/csi.sock`, `unix:/run/csi.sock` or
/// the bare path.
///
/// # Errors
/// Another scheme, or no absolute path.
pub fn endpoint(text: &str) -> std::result::Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
    if text.contains("://") && !text.starts_with("unix://") || !Path::new(path).is_absolute() {
        return Err(format!("CSI endpoint {text:?} is not a URL like unix:///path/to/csi.sock"));
    }
    Ok(PathBuf::from(path))
}

/// `living`: what to do about a process that serves there. Binds the socket at once, so that a
/// caller knows when it can be called; the answer serves it until `shutdown`, and then finishes the
/// calls that run.
///
/// # Errors
/// When another process serves there, or the socket cannot be made.
pub fn serve<M: Mounter, E: Endpoints>(
    path: &Path,
    living: Living,
    services: CsiServices<M, E>,
    shutdown: CancellationToken,
) -> Result<impl Future<Output = Result<()>> + Send + use<M, E>> {
    let (listener, name) = rpc::bind(path, living).map_err(|error| {
        Error::new(error.kind(), format!("CSI socket {}: {error}", path.display()))
    })?;
    let CsiServices { identity, controller, node } = services;
    if controller.is_none() && node.is_none() {
        return Err(Error::new(ErrorKind::InvalidInput, "neither a controller nor a node service"));
    }
    let groups = controller.as_ref().map(ControllerService::groups);
    let router = tonic::transport::Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .add_service(IdentityServer::new(identity))
        .add_optional_service(groups.map(GroupControllerServer::new))
        .add_optional_service(controller.map(ControllerServer::new))
        .add_optional_service(node.map(NodeServer::new));
    Ok(async move {
        let served = router
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                shutdown.cancelled_owned(),
            )
            .await;
        drop(name);
        served.map_err(Error::other)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        for good in ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"] {
            assert_eq!(endpoint(good), Ok(PathBuf::from("/run/csi.sock")), "{good}");
        }
        for bad in ["", "tcp://1.2.3.4:5", "unix://", "unix://relative", "csi.sock", "http:///x"] {
            assert!(endpoint(bad).unwrap_err().contains("unix:///"), "{bad}");
        }
    }
}
