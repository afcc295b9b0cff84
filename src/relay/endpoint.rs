//! The endpoint of one shared volume on a node: accepts the kernel's connections, and knows the
//! route of their calls.

use super::connection::Relayed;
use super::state::EndpointState;
use super::{Dialer, RelayBudget, Route};
use crate::nfs::{ClientHost, Peers, Stream};
use crate::types::DatasetId;
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A pause after accept(2) fails: it is out of file descriptors or memory, and does not block.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The settings and parts that all endpoints of a node share.
#[derive(Clone)]
pub struct RelayOptions {
    /// The peers that may connect (R23).
    pub peers: Peers,
    /// This node as a client of owners.
    pub host: ClientHost,
    pub connections_max: usize,
    pub dialer: Arc<Dialer>,
    pub budget: RelayBudget,
}

/// Dropping it closes its connections.
pub struct RelayEndpoint {
    state: Arc<EndpointState>,
    address: SocketAddr,
    listener: Mutex<Option<Arc<TcpListener>>>,
    tasks: TaskTracker,
}

/// MNT is passed on while this lives.
pub struct RelayPass(Arc<EndpointState>);

impl Drop for RelayPass {
    fn drop(&mut self) {
        self.0.passes.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for RelayEndpoint {
    fn drop(&mut self) {
        self.close();
    }
}

impl RelayEndpoint {
    /// Accepts connections on a socket that is already listening; their calls wait for a route.
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn start(
        listener: TcpListener,
        dataset: DatasetId,
        options: RelayOptions,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let RelayOptions { peers, host, connections_max, dialer, budget } = options;
        let state = Arc::new(EndpointState {
            dataset,
            routes: watch::Sender::default(),
            host,
            dialer,
            share: budget.share(),
            cut: CancellationToken::new(),
            peers,
            connections_max,
            passes: AtomicUsize::new(0),
            disturbed: watch::Sender::new(false),
            answered_at: Mutex::new(Instant::now()),
        });
        let (listener, tasks) = (Arc::new(listener), TaskTracker::new());
        tasks.spawn(accept(listener.clone(), state.clone(), tasks.clone()));
        Ok(Self { state, address, listener: Mutex::new(Some(listener)), tasks })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Sets the route of all calls. Those without a reply are sent along it, unless it is the same.
    /// That they waited on the route before says nothing about another one.
    pub fn set_route(&self, route: Route) {
        self.state.routes.send_if_modified(|now| {
            let is_other = !now.is_same(&route);
            if is_other {
                *now = route;
                self.state.clear_disturbance();
            }
            is_other
        });
    }

    /// Allows MNT for our own mount(2).
    pub fn allow_mount(&self) -> RelayPass {
        self.state.passes.fetch_add(1, Ordering::AcqRel);
        RelayPass(self.state.clone())
    }

    /// Opens a connection of this process.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.tasks.spawn(Relayed::new(Stream::Local(ours), self.state.clone(), true).run());
        Ok(theirs)
    }

    /// Whether calls wait although there is a route, and changes of that.
    pub fn disturbed(&self) -> watch::Receiver<bool> {
        self.state.disturbed.subscribe()
    }

    /// The listening socket, for another process to use.
    ///
    /// # Errors
    /// The endpoint is closed, or the process has no file descriptor left.
    pub fn listener(&self) -> io::Result<OwnedFd> {
        let listener = self.listener.lock().clone();
        listener.ok_or(io::ErrorKind::NotConnected)?.as_fd().try_clone_to_owned()
    }

    /// Closes the connections without a reply to what is unanswered: their clients send it again,
    /// to whoever listens there next.
    pub fn close(&self) {
        self.listener.lock().take();
        self.state.cut.cancel();
        self.tasks.close();
    }
}

async fn accept(listener: Arc<TcpListener>, state: Arc<EndpointState>, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = state.cut.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // One of the tasks accepts.
            Ok((_, peer)) if tasks.len() > state.connections_max => {
                tracing::warn!(
                    %peer,
                    limit = state.connections_max,
                    "too many NFS connections; refused one"
                );
            }
            Ok((stream, peer)) => {
                tasks.spawn(relay(stream, peer, state.clone()));
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "cannot accept an NFS connection; if this lasts, raise the limit of open files"
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn relay(stream: TcpStream, peer: SocketAddr, state: Arc<EndpointState>) {
    // Replies are whole messages: waiting for more to send with them only adds latency.
    let local = stream.set_nodelay(true).and_then(|()| stream.local_addr());
    let trust = match local {
        Ok(local) => state.peers.admit(peer, local).await,
        Err(_) => None,
    };
    if trust.is_none() {
        tracing::info!(
            %peer,
            "refused an NFS connection: its source port is not below 1024"
        );
        return;
    }
    Relayed::new(Stream::Tcp(stream), state, false).run().await;
}
