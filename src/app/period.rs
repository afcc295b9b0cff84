//! An active period of a process: the parts that run, and how they end.

use super::channel::ChannelParts;
use super::endpoints::NfsEndpoints;
use super::lifecycle::{self, FLUSH_LIMIT, Lifecycle, STOP_GRACE};
use super::parts::Parts;
use super::registration::Registration;
use super::served::Served;
use crate::control::channel::Channel;
use crate::control::node::{Mounts, NodeAgent};
use crate::control::{Carriers, RequestServer};
use crate::exports::VolumeUsers;
use crate::mount::Mounter;
use std::sync::Arc;

/// The running parts of an active period.
pub(super) struct Period<M> {
    pub lifecycle: Lifecycle,
    pub parts: Parts,
    /// None in a controller.
    pub agent: Option<Arc<NodeAgent<M, NfsEndpoints>>>,
    /// The exports of a server.
    pub served: Option<Served>,
    pub registration: Registration,
    /// Carries out what other processes ask for. None in a controller.
    pub requests: Option<Arc<RequestServer>>,
    /// How this process asks others.
    pub carriers: Carriers,
    /// The key by which owners know a controller.
    pub asker: Option<Arc<Channel>>,
}

impl<M: Mounter> Period<M> {
    /// Begins to take the requests of other processes, and what they relay. `port`: the channel's.
    pub fn take_requests(&mut self, port: Option<ChannelParts>) -> anyhow::Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        let mounts: Arc<dyn Mounts> = match &self.served {
            Some(Served { exports, .. }) => {
                Arc::new(VolumeUsers { mounts: agent.clone(), exports: exports.clone() })
            }
            None => agent.clone(),
        };
        let (pools, volumes) = (self.parts.pools.clone(), self.parts.volumes.clone());
        let channel = port.as_ref().map(|port| port.channel.clone());
        let requests =
            Arc::new(RequestServer::new(pools.clone(), volumes, mounts).with_channel(channel));
        self.requests = Some(requests.clone());
        if let Some(port) = port {
            let work = (&self.lifecycle.work, &self.lifecycle.work_tasks);
            port.serve(pools, agent.endpoints().owned(), requests, work)?;
        }
        Ok(())
    }

    /// Ends in order: every acknowledged change is in the store, and volumes that are not mounted
    /// are released.
    pub async fn stop(self) -> anyhow::Result<()> {
        let exports = match self.served {
            Some(Served { exports, nfs }) => {
                if let Some(server) = nfs
                    && !server.stop(STOP_GRACE).await
                {
                    tracing::warn!("NFS calls did not end in time; closed their connections");
                }
                Some(exports)
            }
            None => None,
        };
        if let Some(agent) = &self.agent {
            agent.end().await;
        }
        if let Some(asker) = &self.asker {
            asker.withdraw().await;
        }
        self.lifecycle.stop().await;
        if let Some(requests) = &self.requests {
            requests.finish(STOP_GRACE).await;
        }
        let closed = match exports {
            Some(exports) => exports.close(FLUSH_LIMIT).await,
            None => Ok(()),
        };
        self.parts.volumes.open_snapshots().close().await;
        lifecycle::flush_staged(&self.parts).await?;
        Ok(closed?)
    }
}
