//! A listener and the connections it accepted.

use super::budget::{Budget, Bytes, Count, Limits};
use super::connection::Connection;
use super::duplicate::Duplicates;
use super::export::ExportTable;
use super::mount::Mounts;
use super::peer;
use crate::fs::FsError;
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// From a reserved port; on this machine also root, and the user that this process runs as,
    /// from any port.
    Privileged,
    /// As `Privileged`, and everybody else without root's rights.
    Everybody,
}

impl Peers {
    /// `local` is our end of the connection. What listens on loopback serves this machine alone,
    /// whatever the kernel routes there (`route_localnet`). `None`: it is refused.
    async fn admit(self, peer: SocketAddr, local: SocketAddr) -> Option<Trust> {
        let is_loopback = |at: SocketAddr| at.ip().to_canonical().is_loopback();
        let outside = is_loopback(local) && !is_loopback(peer);
        let whole = match self {
            Self::LoopbackReserved => is_loopback(peer) && peer.port() < peer::RESERVED_BELOW,
            Self::Loopback => is_loopback(peer),
            Self::Privileged | Self::Everybody => {
                !outside && peer::is_privileged(peer, local).await
            }
        };
        match (whole, self) {
            (true, _) => Some(Trust::Whole),
            (false, Self::Everybody) if !outside => Some(Trust::Squashed),
            (false, _) => None,
        }
    }
}

/// As whom a connection that was let in is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    Whole,
    /// Its root is nobody.
    Squashed,
}

/// A connection at rest: nothing has begun to arrive, and every call that did is answered. Whoever
/// holds it may go on with it, in this process or another.
#[derive(Debug)]
pub struct Kept {
    pub stream: OwnedFd,
    pub trust: Trust,
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
    /// How long a call waits for its export to open, or for the object store, before the client is
    /// told to come again. Below the client's time-out (`timeo=600` is a minute), or it would send
    /// everything again meanwhile.
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
    /// Connections end at once, and answer nothing any more.
    pub(super) cut: CancellationToken,
    /// Connections that come to rest after a stop are kept here instead of being closed.
    kept: Mutex<Vec<Kept>>,
    keeps: AtomicBool,
    started: Instant,
    complained: AtomicU64,
}

/// Defects are logged at most this often: each is also an answer to a client.
const COMPLAIN_SECS: u64 = 10;

impl<T> Shared<T> {
    /// Whether a connection that comes to rest is to be given to [`Self::keep`].
    pub(super) fn keeps(&self) -> bool {
        self.keeps.load(Ordering::Acquire)
    }

    pub(super) fn keep(&self, kept: Kept) {
        self.kept.lock().push(kept);
    }

    /// Logs an error that no client can do anything about.
    pub(super) fn complain(&self, error: &FsError) {
        let now = self.started.elapsed().as_secs() + COMPLAIN_SECS;
        let last = self.complained.load(Ordering::Relaxed);
        let due = now >= last + COMPLAIN_SECS;
        if due
            && self
                .complained
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            tracing::error!(%error, "a call failed: run `zerofs-csi check` on the dataset");
        }
    }
}

/// A running server. Dropping it stops it without draining; see [`Server::stop`].
pub struct Server<T> {
    shared: Arc<Shared<T>>,
    tasks: TaskTracker,
    address: SocketAddr,
    /// Kept when the server rests, so that who connects meanwhile waits instead of being refused;
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

    /// As [`Self::start`], within bytes that other servers of the process share.
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
        let shared = Arc::new(Shared {
            table,
            read_bytes: budget.read.clone(),
            write_bytes: budget.write.clone(),
            options,
            duplicates: Arc::default(),
            mounts: Mounts::default(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            kept: Mutex::default(),
            keeps: AtomicBool::new(false),
            started: Instant::now(),
            complained: AtomicU64::new(0),
        });
        let tasks = TaskTracker::new();
        let (listener, open) = (Arc::new(listener), Count::default());
        tasks.spawn(accept(listener.clone(), shared.clone(), tasks.clone(), open.clone()));
        Ok(Self { shared, tasks, address, listener: Mutex::new(Some(listener)), open })
    }

    /// Goes on with a connection that another server had let in. Must be called within a runtime.
    ///
    /// # Errors
    /// It is no connection, or has ended.
    pub fn adopt(&self, kept: Kept) -> io::Result<()> {
        let stream = std::net::TcpStream::from(kept.stream);
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream)?;
        let peer = stream.peer_addr()?;
        let (counted, shared) = (self.open.enter(), self.shared.clone());
        self.tasks.spawn(async move {
            Connection::new(stream, peer, shared, kept.trust).run().await;
            drop(counted);
        });
        Ok(())
    }

    /// The listening socket, for another server to go on with after [`Self::rest`].
    ///
    /// # Errors
    /// It is stopped, or out of file descriptors.
    pub fn listener(&self) -> io::Result<OwnedFd> {
        let listener = self.listener.lock().clone();
        listener.ok_or(io::ErrorKind::NotConnected)?.as_fd().try_clone_to_owned()
    }

    /// Accepts nobody any more, brings every connection to rest, and answers them. What has not
    /// come to rest within `limit` is cut: its client connects again and repeats what was not
    /// answered. No reply leaves after this returns.
    pub async fn rest(&self, limit: Duration) -> Vec<Kept> {
        self.shared.keeps.store(true, Ordering::Release);
        if !self.end(limit).await {
            self.shared.cut.cancel();
            self.tasks.wait().await;
        }
        std::mem::take(&mut self.shared.kept.lock())
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn table(&self) -> &T {
        &self.shared.table
    }

    /// Stops reading, finishes the calls under way, sends their replies and closes. False: `grace`
    /// was not enough.
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
                    "cannot accept an NFS connection: raise the limit of open files if this stays"
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
            "too many NFS connections: one was refused"
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
        tracing::debug!(%peer, %error, "a connection ended at once");
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
                "an NFS connection was refused: it needs a source port below 1024"
            );
            return;
        };
        Connection::new(stream, peer, shared, trust).run().await;
        drop(counted);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpSocket;

    /// A connection whose socket is `uid`'s: its two ends.
    async fn connected(
        listener: &TcpListener,
        uid: Option<u32>,
    ) -> (TcpStream, SocketAddr, SocketAddr) {
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
        assert_eq!(Peers::Privileged.admit(peer, local).await, Some(Trust::Whole));
        assert_eq!(Peers::Everybody.admit(peer, local).await, Some(Trust::Whole));
        assert_eq!(Peers::LoopbackReserved.admit(peer, local).await, None);
        let reserved = SocketAddr::new(peer.ip(), 1023);
        assert_eq!(Peers::Privileged.admit(reserved, local).await, Some(Trust::Whole));
        assert_eq!(Peers::LoopbackReserved.admit(reserved, local).await, Some(Trust::Whole));
        // Only root may give a socket away.
        if rustix::process::geteuid().is_root() {
            let (_theirs, peer, local) = connected(&listener, Some(65534)).await;
            assert_eq!(Peers::Privileged.admit(peer, local).await, None);
            assert_eq!(Peers::Everybody.admit(peer, local).await, Some(Trust::Squashed));
        }
        let far: SocketAddr = "192.0.2.1:700".parse().unwrap();
        for peers in [Peers::Privileged, Peers::Everybody] {
            assert_eq!(peers.admit(far, local).await, None, "loopback is this machine's alone");
            assert_eq!(
                peers.admit(far, "192.0.2.9:12049".parse().unwrap()).await,
                Some(Trust::Whole)
            );
        }
    }
}
