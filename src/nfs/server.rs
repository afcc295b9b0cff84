//! A listener and the connections it accepted.

use super::budget::{Bytes, Count, Limits};
use super::connection::Connection;
use super::duplicate::Duplicates;
use super::export::ExportTable;
use super::mount::Mounts;
use crate::fs::FsError;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Who may connect (R23).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peers {
    /// From this machine, from a port that only root or the kernel may use.
    #[default]
    LoopbackReserved,
    /// From this machine.
    Loopback,
    Any,
}

impl Peers {
    fn admits(self, peer: SocketAddr) -> bool {
        let loopback = peer.ip().to_canonical().is_loopback();
        match self {
            Self::LoopbackReserved => loopback && peer.port() < 1024,
            Self::Loopback => loopback,
            Self::Any => true,
        }
    }
}

/// Whose calls are carried out as somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    #[default]
    Nobody,
    /// The superuser becomes this user and group.
    Root { uid: u32, gid: u32 },
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub peers: Peers,
    pub squash: Squash,
    pub limits: Limits,
    /// How long a call waits for its export to open, or for the object store, before the client is told to come again.
    /// Below the client's time-out (`timeo=600` is a minute), or it would send everything again meanwhile.
    pub hold: Duration,
    /// How long a connection may neither take a reply nor finish a record it began.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peers: Peers::default(),
            squash: Squash::default(),
            limits: Limits::default(),
            hold: Duration::from_secs(40),
            stall: Duration::from_secs(60),
        }
    }
}

/// What the connections of one server share.
pub struct Shared<T> {
    pub(super) table: T,
    pub(super) options: Options,
    pub(super) read_bytes: Bytes,
    pub(super) write_bytes: Bytes,
    pub(super) duplicates: Arc<Duplicates>,
    pub(super) mounts: Mounts,
    pub(super) stop: CancellationToken,
    started: Instant,
    complained: AtomicU64,
}

/// Defects are logged at most this often: each is also an answer to a client.
const COMPLAIN_SECS: u64 = 10;

impl<T> Shared<T> {
    /// Logs an error that no client can do anything about.
    pub(super) fn complain(&self, error: &FsError) {
        let now = self.started.elapsed().as_secs() + COMPLAIN_SECS;
        let last = self.complained.load(Ordering::Relaxed);
        let due = now >= last + COMPLAIN_SECS;
        if due && self.complained.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::error!(%error, "a call failed: run `zerofs-csi check` on the dataset");
        }
    }
}

/// A running server. Dropping it stops it without draining; see [`Server::stop`].
pub struct Server<T> {
    shared: Arc<Shared<T>>,
    tasks: TaskTracker,
    address: SocketAddr,
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
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            table,
            read_bytes: Bytes::new(options.limits.read_bytes),
            write_bytes: Bytes::new(options.limits.write_bytes),
            options,
            duplicates: Arc::default(),
            mounts: Mounts::default(),
            stop: CancellationToken::new(),
            started: Instant::now(),
            complained: AtomicU64::new(0),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, shared.clone(), tasks.clone()));
        Ok(Self { shared, tasks, address })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn table(&self) -> &T {
        &self.shared.table
    }

    /// Stops reading, finishes the calls under way, sends their replies and closes. False: `grace` was not enough.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.shared.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait()).await.is_ok()
    }
}

async fn accept<T: ExportTable>(listener: TcpListener, shared: Arc<Shared<T>>, tasks: TaskTracker) {
    let open = Count::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) if admit(&shared, &open, peer) => {
                start(stream, peer, &shared, &tasks, &open);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept an NFS connection: raise the limit of open files if this stays");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit<T>(shared: &Shared<T>, open: &Count, peer: SocketAddr) -> bool {
    if !shared.options.peers.admits(peer) {
        tracing::info!(%peer, peers = ?shared.options.peers, "an NFS connection was refused");
        return false;
    }
    if open.now() >= shared.options.limits.connections {
        tracing::warn!(%peer, limit = shared.options.limits.connections, "too many NFS connections: one was refused");
        return false;
    }
    true
}

fn start<T: ExportTable>(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared<T>>, tasks: &TaskTracker, open: &Count) {
    // Replies are whole messages: waiting for more to send with them only adds latency.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "a connection ended at once");
        return;
    }
    let counted = open.enter();
    let connection = Connection::new(stream, peer, shared.clone());
    tasks.spawn(async move {
        connection.run().await;
        drop(counted);
    });
}
