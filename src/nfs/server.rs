//! A listener and the connections it accepted.

use super::budget::{Budget, Bytes, Count, Limits};
use super::connection::Connection;
use super::duplicate::Duplicates;
use super::export::ExportTable;
use super::mount::Mounts;
use super::peer;
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
    /// From a reserved port; on this machine also root, and the user that this process runs as, from any port.
    Privileged,
    /// As `Privileged`, and everybody else without root's rights.
    Everybody,
}

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Whole,
    /// Its root is nobody.
    Squashed,
    Refused,
}

impl Peers {
    /// `local` is our end of the connection. What listens on loopback serves this machine alone, whatever the kernel routes there
    /// (`route_localnet`).
    async fn admit(self, peer: SocketAddr, local: SocketAddr) -> Admission {
        let is_loopback = |at: SocketAddr| at.ip().to_canonical().is_loopback();
        let outside = is_loopback(local) && !is_loopback(peer);
        let whole = match self {
            Self::LoopbackReserved => is_loopback(peer) && peer.port() < peer::RESERVED_BELOW,
            Self::Loopback => is_loopback(peer),
            Self::Privileged | Self::Everybody => !outside && peer::is_privileged(peer, local).await,
        };
        match (whole, self) {
            (true, _) => Admission::Whole,
            (false, Self::Everybody) if !outside => Admission::Squashed,
            (false, _) => Admission::Refused,
        }
    }
}

/// Whose calls are carried out as somebody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Squash {
    #[default]
    Nobody,
    /// The superuser becomes this user and group, and root's group this group.
    Root { uid: u32, gid: u32 },
}

impl Squash {
    /// The superuser becomes the user and group that own nothing.
    pub const NOBODY: Self = Self::Root { uid: 65534, gid: 65534 };
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
        Self::start_within(listener, table, options, &Budget::new(&options.limits))
    }

    /// As [`Self::start`], within bytes that other servers of the process share.
    ///
    /// # Errors
    /// The socket has no address.
    pub fn start_within(listener: TcpListener, table: T, options: Options, budget: &Budget) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            table,
            read_bytes: budget.read.clone(),
            write_bytes: budget.write.clone(),
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
            Ok((stream, peer)) if has_room(&shared, &open, peer) => {
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

fn has_room<T>(shared: &Shared<T>, open: &Count, peer: SocketAddr) -> bool {
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
    let (counted, shared) = (open.enter(), shared.clone());
    tasks.spawn(async move {
        let peers = shared.options.peers;
        let admission = match stream.local_addr() {
            Ok(local) => peers.admit(peer, local).await,
            Err(_) => Admission::Refused,
        };
        let squash = match admission {
            Admission::Whole => shared.options.squash,
            Admission::Squashed => Squash::NOBODY,
            Admission::Refused => {
                tracing::info!(%peer, ?peers, "an NFS connection was refused: it needs a source port below 1024");
                return;
            }
        };
        Connection::new(stream, peer, shared, squash).run().await;
        drop(counted);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpSocket;

    /// A connection whose socket is `uid`'s: its two ends.
    async fn connected(listener: &TcpListener, uid: Option<u32>) -> (TcpStream, SocketAddr, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        std::os::unix::fs::fchown(&socket, uid, None).unwrap();
        let stream = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        (stream, ends.0, ends.1)
    }

    #[tokio::test]
    async fn only_who_may_be_root_is_served_in_full() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_ours, peer, local) = connected(&listener, None).await;
        assert_eq!(Peers::Privileged.admit(peer, local).await, Admission::Whole);
        assert_eq!(Peers::Everybody.admit(peer, local).await, Admission::Whole);
        assert_eq!(Peers::LoopbackReserved.admit(peer, local).await, Admission::Refused);
        let reserved = SocketAddr::new(peer.ip(), 1023);
        assert_eq!(Peers::Privileged.admit(reserved, local).await, Admission::Whole);
        assert_eq!(Peers::LoopbackReserved.admit(reserved, local).await, Admission::Whole);
        // Only root may give a socket away.
        if rustix::process::geteuid().is_root() {
            let (_theirs, peer, local) = connected(&listener, Some(65534)).await;
            assert_eq!(Peers::Privileged.admit(peer, local).await, Admission::Refused);
            assert_eq!(Peers::Everybody.admit(peer, local).await, Admission::Squashed);
        }
        let far: SocketAddr = "192.0.2.1:700".parse().unwrap();
        for peers in [Peers::Privileged, Peers::Everybody] {
            assert_eq!(peers.admit(far, local).await, Admission::Refused, "loopback is this machine's alone");
            assert_eq!(peers.admit(far, "192.0.2.9:12049".parse().unwrap()).await, Admission::Whole);
        }
    }
}
