//! The exports of a server, and the NFS socket on which they are served.

use super::endpoints::NfsEndpoints;
use super::handover::{Listening, Service, Sockets};
use super::lifecycle::{Lifecycle, QUIESCE_LIMIT};
use super::parts::Parts;
use crate::control::Carriers;
use crate::control::node::NodeAgent;
use crate::exports::{Exports, ServeTable};
use crate::mount::Mounter;
use crate::nfs::{Budget, Options, Server};
use anyhow::Context;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

pub(super) async fn bind(at: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(at).await.with_context(|| {
        format!("NFS listener {at}: free the address, or give another --nfs-listen")
    })
}

/// The exports of a server.
pub(super) struct Served {
    pub exports: Arc<Exports>,
    pub nfs: Option<Server<ServeTable>>,
}

pub(super) async fn quiesce_exports(nfs: &Server<ServeTable>) -> Option<Listening> {
    let connections = nfs.quiesce(QUIESCE_LIMIT).await;
    match nfs.listener() {
        Ok(listener) => {
            Some(Listening::on_tcp(Service::Exports, nfs.local_addr(), listener, connections))
        }
        Err(error) => {
            tracing::warn!(%error, "the NFS socket cannot be handed over; clients reconnect");
            None
        }
    }
}

/// Exports every dataset of the default pool.
pub(super) async fn start_exports<M: Mounter>(
    agent: &Arc<NodeAgent<M, NfsEndpoints>>,
    parts: &Parts,
    carriers: Carriers,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Arc<Exports>> {
    // The agent reopens staged volumes.
    let staged = agent.clone();
    let is_staged = Box::new(move |id| staged.is_staged(id));
    let (pools, volumes) = (parts.pools.clone(), parts.volumes.clone());
    let (idle, work) = (parts.config.export_idle, lifecycle.work.clone());
    Ok(Exports::start(pools, volumes, carriers, is_staged, idle, work).await?)
}

/// Serves the exports on a socket that was bound early, handed over, or is bound now.
pub(super) async fn serve_nfs(
    at: SocketAddr,
    early: Option<TcpListener>,
    table: ServeTable,
    options: Options,
    budget: &Budget,
    sockets: &Sockets,
) -> anyhow::Result<Server<ServeTable>> {
    let inherited = sockets.take(Service::Exports, at);
    let listener = match (early, &inherited) {
        (Some(listener), _) => listener,
        (None, Some(inherited)) => inherited.listener()?,
        (None, None) => bind(at).await?,
    };
    let server = Server::start_within(listener, table, options, budget)?;
    for connection in inherited.into_iter().flat_map(|inherited| inherited.connections) {
        if let Err(error) = server.adopt(connection) {
            tracing::debug!(%error, "a connection was closed meanwhile");
        }
    }
    Ok(server)
}
