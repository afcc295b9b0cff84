//! A listener and the connections it accepted.

use super::budget::{Budget, Count};
use super::connection::{Connection, Peer};
use super::export::ExportTable;
use super::shared::{IdleConnection, Options, Shared};
use super::stream::Stream;
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// A running server. Dropping it stops it without draining; see [`Server::stop`].
pub struct Server<T> {
    shared: Arc<Shared<T>>,
    tasks: TaskTracker,
    address: SocketAddr,
    /// Stays open while the server quiesces, so that new clients wait instead of being refused;
    /// none once it is stopped.
    listener: Mutex<Option<Arc<TcpListener>>>,
    open: Count,
}

impl<T> Drop for Server<T> {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// A pause after accept(2) fails: it is out of file descriptors or memory, and does not block.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl<T: ExportTable> Server<T> {
    /// Serves `table` on a socket that is already listening. Must be called within a runtime.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn start(listener: TcpListener, table: T, options: Options) -> io::Result<Self> {
        Self::start_within(listener, table, options, &Budget::new(&options.limits))
    }

    /// Like [`Self::start`], within bytes that other servers of the process share.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn start_within(
        listener: TcpListener,
        table: T,
        options: Options,
        budget: &Budget,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(table, options, budget));
        let tasks = TaskTracker::new();
        let (listener, open) = (Arc::new(listener), Count::default());
        tasks.spawn(accept(listener.clone(), shared.clone(), tasks.clone(), open.clone()));
        Ok(Self { shared, tasks, address, listener: Mutex::new(Some(listener)), open })
    }

    /// Serves a connection that another server had admitted. Must be called within a runtime.
    ///
    /// # Errors
    /// The descriptor is not a connection, or is closed.
    pub fn adopt(&self, idle: IdleConnection) -> io::Result<()> {
        let stream = std::net::TcpStream::from(idle.stream);
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream)?;
        let peer = stream.peer_addr()?;
        let (counted, shared) = (self.open.enter(), self.shared.clone());
        self.tasks.spawn(async move {
            let (stream, peer) = (Stream::Tcp(stream), Peer::at(peer));
            Connection::new(stream, peer, shared, idle.trust).run().await;
            drop(counted);
        });
        Ok(())
    }

    /// The listening socket, for another server to use after [`Self::quiesce`].
    ///
    /// # Errors
    /// The server is stopped, or the process has no file descriptor left.
    pub fn listener(&self) -> io::Result<OwnedFd> {
        let listener = self.listener.lock().clone();
        listener.ok_or(io::ErrorKind::NotConnected)?.as_fd().try_clone_to_owned()
    }

    /// Stops accepting, answers the calls in progress, and returns the connections, which are idle
    /// then. One that is still busy after `limit` is closed: its client reconnects and retransmits.
    /// No reply leaves after this returns.
    pub async fn quiesce(&self, limit: Duration) -> Vec<IdleConnection> {
        self.shared.quiesce();
        if !self.end(limit).await {
            self.shared.cut.cancel();
            self.tasks.wait().await;
        }
        self.shared.take_idle()
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn table(&self) -> &T {
        &self.shared.table
    }

    /// Stops reading, finishes the calls in progress, sends their replies and closes. Returns false
    /// if `grace` was not enough.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.listener.lock().take();
        self.end(grace).await
    }

    async fn end(&self, grace: Duration) -> bool {
        self.shared.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait()).await.is_ok()
    }
}

async fn accept<T: ExportTable>(
    listener: Arc<TcpListener>,
    shared: Arc<Shared<T>>,
    tasks: TaskTracker,
    open: Count,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) if has_room(&shared, &open, peer) => {
                start(stream, peer, &shared, &tasks, &open);
            }
            Ok(_) => {}
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

fn has_room<T>(shared: &Shared<T>, open: &Count, peer: SocketAddr) -> bool {
    if open.now() >= shared.options.limits.connections {
        tracing::warn!(
            %peer,
            limit = shared.options.limits.connections,
            "too many NFS connections; refused one"
        );
        return false;
    }
    true
}

fn start<T: ExportTable>(
    stream: TcpStream,
    peer: SocketAddr,
    shared: &Arc<Shared<T>>,
    tasks: &TaskTracker,
    open: &Count,
) {
    // Replies are whole messages: waiting for more to send with them only adds latency.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "a new connection was closed at once");
        return;
    }
    let (counted, shared) = (open.enter(), shared.clone());
    tasks.spawn(async move {
        let peers = shared.options.peers;
        let trust = match stream.local_addr() {
            Ok(local) => peers.admit(peer, local).await,
            Err(_) => None,
        };
        let Some(trust) = trust else {
            tracing::info!(
                %peer,
                ?peers,
                "refused an NFS connection: its source port is not below 1024"
            );
            return;
        };
        let (stream, peer) = (Stream::Tcp(stream), Peer::at(peer));
        Connection::new(stream, peer, shared, trust).run().await;
        drop(counted);
    });
}
