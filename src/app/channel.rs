//! The channel between nodes: this process's key, its port, and what its endpoints relay with.

use super::config::ChannelConfig;
use crate::control::channel::Channel;
use crate::control::{Carriers, OwnerChannel, Pools, RequestServer};
use crate::nfs::Peers;
use crate::relay::{Dialer, Identity, Listener, OwnedDatasets, RelayBudget, RelayOptions, host_of};
use crate::volume::Volumes;
use anyhow::{Context, bail};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A kernel client has at most 16 connections to its volume; a few more may be closing.
const CONNECTIONS_MAX: usize = 64;
/// Bytes of calls that are relayed and not answered, of all volumes together. Beyond it each volume
/// may have some that the memory of an open volume counts: a relayed one is open elsewhere.
const UNANSWERED_BYTES_MAX: usize = 32 << 20;
/// The previous process of this node closes its port when it hands over.
const BIND_RETRY: Duration = Duration::from_millis(100);

/// The channel of an active period.
pub(super) struct ChannelParts {
    pub channel: Arc<Channel>,
    pub carriers: Carriers,
    pub relay: RelayOptions,
    identity: Identity,
    listen: SocketAddr,
    /// None while the previous process has the port.
    listener: Option<TcpListener>,
}

impl ChannelParts {
    /// `peers`: those that may connect to endpoints of shared volumes.
    pub async fn open(
        config: &ChannelConfig,
        volumes: &Volumes,
        peers: Peers,
    ) -> anyhow::Result<Self> {
        let identity = Identity::generate()?;
        let listener = match TcpListener::bind(config.listen).await {
            Ok(listener) => Some(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse && config.listen.port() != 0 => None,
            Err(error) => {
                let at = config.listen;
                let next = "free the port, or change channel.listen";
                return Err(error).context(format!("channel.listen {at}: {next}"));
            }
        };
        let bound = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let listen = bound.unwrap_or(config.listen);
        let ip = config.address.unwrap_or(listen.ip());
        if ip.is_unspecified() {
            bail!(
                "channel.listen {listen} is on every address of this machine: set channel.address \
                 (or --channel-address of `node`) to the one at which other nodes reach it"
            );
        }
        let (node, session) = (volumes.settings().node.clone(), volumes.settings().session);
        let dialer = Dialer::new(identity.clone(), session);
        let relay = RelayOptions {
            peers,
            host: host_of(&node),
            connections_max: CONNECTIONS_MAX,
            dialer: Arc::new(dialer.clone()),
            budget: RelayBudget::new(UNANSWERED_BYTES_MAX),
        };
        let address = SocketAddr::new(ip, listen.port());
        let channel = Arc::new(Channel::new(node, session, Some(address), identity.sha256()));
        let carriers = Carriers::with_channel(OwnerChannel::new(channel.clone(), dialer));
        Ok(Self { channel, carriers, relay, identity, listen, listener })
    }

    /// Serves other nodes the volumes of this one, until it is stopped.
    pub fn serve(
        self,
        pools: Pools,
        owned: Arc<dyn OwnedDatasets>,
        requests: Arc<RequestServer>,
        (stop, tasks): (&CancellationToken, &TaskTracker),
    ) -> anyhow::Result<()> {
        let listener = Listener::new(&self.identity, pools, owned, requests)?;
        let stop = stop.clone();
        tasks.spawn(async move {
            let bound = tokio::select! {
                () = stop.cancelled() => return,
                bound = bind(self.listen, self.listener) => bound,
            };
            listener.serve(bound, stop).await;
        });
        Ok(())
    }
}

/// The channel of a controller, which has no port: it asks owners, and is asked for nothing.
pub(super) struct AskerParts {
    pub channel: Arc<Channel>,
    pub carriers: Carriers,
}

impl AskerParts {
    pub fn new(volumes: &Volumes) -> anyhow::Result<Self> {
        let identity = Identity::generate()?;
        let (node, session) = (volumes.settings().node.clone(), volumes.settings().session);
        let channel = Arc::new(Channel::new(node, session, None, identity.sha256()));
        let dialer = Dialer::new(identity, session);
        let carriers = Carriers::with_channel(OwnerChannel::new(channel.clone(), dialer));
        Ok(Self { channel, carriers })
    }
}

async fn bind(at: SocketAddr, bound: Option<TcpListener>) -> TcpListener {
    let mut bound = bound;
    let mut warned = false;
    loop {
        if let Some(bound) = bound {
            return bound;
        }
        tokio::time::sleep(BIND_RETRY).await;
        match TcpListener::bind(at).await {
            Ok(listener) => bound = Some(listener),
            Err(error) => {
                bound = None;
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(%at, %error, "cannot bind the channel's port; retrying");
                }
            }
        }
    }
}
