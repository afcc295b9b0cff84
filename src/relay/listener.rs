//! The channel's port: accepts the connections of nodes that relay to this one, and of processes
//! that ask it for something.

use super::Answers;
use super::dial::prepare;
use super::hello::{Answer, Hello, Purpose, VERSION, receive, send};
use super::identity::{Identity, IdentityError, presented};
use super::served::host_of;
use crate::catalog::NodeChannel;
use crate::control::channel::{KeySha256, key_of};
use crate::control::{Pools, RequestServer};
use crate::types::{DatasetId, PoolId, SessionId};
use bytes::BytesMut;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections of all peers, after their handshake.
const CONNECTIONS_MAX: usize = 4096;
/// Connections of one peer.
const CONNECTIONS_OF_PEER_MAX: usize = 1024;
/// Handshakes at a time. A peer is unknown until its handshake is done.
const HANDSHAKES_MAX: usize = 64;
/// Those of one address: a stranger must not keep the nodes from each other.
const HANDSHAKES_OF_ADDRESS_MAX: usize = 16;
/// Time limit of a handshake, with the look into the bucket.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// The bucket is asked again about a session after this.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// Sessions remembered.
const KNOWN_MAX: usize = 4096;
/// Bytes on their way in each direction, beside those in sockets.
const BUFFER_BYTES: usize = 64 << 10;
/// Time for which a peer may take nothing. The server may: it takes no more calls than it has room
/// for.
const STALL: Duration = Duration::from_secs(60);
const NO_LIMIT: Duration = Duration::MAX;
/// A pause after accept(2) fails: it is out of file descriptors or memory, and does not block.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A dataset as the owner of volumes knows it.
pub enum Found {
    Serving(Arc<dyn Answers>),
    NotOwner,
    /// The volume is served here, to this node alone.
    NotShared,
}

/// The volumes of this node.
pub trait OwnedDatasets: Send + Sync + 'static {
    fn find(&self, pool: PoolId, dataset: DatasetId) -> Found;
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Listener(Arc<State>);

struct State {
    acceptor: TlsAcceptor,
    pools: Pools,
    datasets: Arc<dyn OwnedDatasets>,
    requests: Arc<RequestServer>,
    known: Mutex<HashMap<(PoolId, SessionId), (Instant, NodeChannel)>>,
    /// Connections by the key of their peer.
    peers: Counts<KeySha256>,
    /// Handshakes by the address of their peer.
    greeting: Counts<IpAddr>,
}

/// The number of connections of each peer.
struct Counts<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// A connection that is counted as its peer's.
struct Counted<K: Eq + Hash> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
    peer: K,
}

impl<K: Eq + Hash + Copy> Counts<K> {
    /// `None`: the peer has `max` connections.
    fn enter(&self, peer: K, max: usize) -> Option<Counted<K>> {
        let mut counts = self.0.lock();
        let count = counts.entry(peer).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counted { counts: self.0.clone(), peer })
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

/// A peer that is served.
struct Greeted {
    peer: TlsStream<TcpStream>,
    purpose: Accepted,
    _counted: Counted<KeySha256>,
}

enum Accepted {
    Relay(Arc<dyn Answers>, UnixStream),
    Requests(PoolId),
}

/// Why a peer was not served.
enum Refusal {
    NotOwner,
    Refused(&'static str),
}

impl Listener {
    /// # Errors
    /// The crypto provider does not support TLS 1.3.
    pub fn new(
        identity: &Identity,
        pools: Pools,
        datasets: Arc<dyn OwnedDatasets>,
        requests: Arc<RequestServer>,
    ) -> Result<Self, IdentityError> {
        let acceptor = TlsAcceptor::from(identity.server()?);
        let state = State {
            acceptor,
            pools,
            datasets,
            requests,
            known: Default::default(),
            peers: Default::default(),
            greeting: Default::default(),
        };
        Ok(Self(Arc::new(state)))
    }

    /// Serves peers until it is stopped.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let (handshakes, tasks) = (Arc::new(Semaphore::new(HANDSHAKES_MAX)), TaskTracker::new());
        loop {
            let Ok(turn) = handshakes.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(_) if tasks.len() >= CONNECTIONS_MAX => {
                    tracing::warn!(limit = CONNECTIONS_MAX, "too many connections of other nodes");
                }
                Ok((stream, peer)) => {
                    let (state, stop) = (self.0.clone(), stop.clone());
                    // A peer that is closed at once tries again.
                    let greeting = state.greeting.enter(peer.ip(), HANDSHAKES_OF_ADDRESS_MAX);
                    let Some(greeting) = greeting else { continue };
                    tasks.spawn(async move {
                        let served = tokio::select! {
                            served = state.accept(stream, (turn, greeting)) => served,
                            () = stop.cancelled() => return,
                        };
                        if let Err(error) = served {
                            tracing::debug!(%peer, %error, "a connection of the channel ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of another node");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }
}

impl State {
    async fn accept(
        self: Arc<Self>,
        stream: TcpStream,
        turn: (OwnedSemaphorePermit, Counted<IpAddr>),
    ) -> io::Result<()> {
        prepare(&stream)?;
        let greeted = tokio::time::timeout(HANDSHAKE_LIMIT, self.greet(stream)).await;
        let greeted = greeted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        drop(turn);
        match greeted {
            Some(Greeted { peer, purpose: Accepted::Relay(server, local), .. }) => {
                exchange(peer, local, &*server).await
            }
            Some(Greeted { mut peer, purpose: Accepted::Requests(pool), .. }) => {
                self.requests.serve_connection(pool, &mut peer).await
            }
            None => Ok(()),
        }
    }

    /// The handshake. `None`: the peer was told that it is not served.
    async fn greet(self: &Arc<Self>, stream: TcpStream) -> io::Result<Option<Greeted>> {
        let mut peer = self.acceptor.accept(stream).await?;
        let key = presented(peer.get_ref().1.peer_certificates());
        let key = key.ok_or_else(|| io::Error::other("a peer without a key"))?;
        let hello: Hello = receive(&mut peer).await?;
        let judged = self.judge(&hello, key).await.and_then(|(found, channel)| {
            let counted = self.peers.enter(key, CONNECTIONS_OF_PEER_MAX);
            let counted = counted.ok_or(Refusal::Refused("too many connections of one node"))?;
            Ok((found, channel, counted))
        });
        let (found, channel, counted) = match judged {
            Ok(found) => found,
            Err(Refusal::NotOwner) => {
                return send(&mut peer, &Answer::NotOwner).await.map(|()| None);
            }
            Err(Refusal::Refused(why)) => {
                tracing::warn!(
                    session = %hello.session,
                    dataset = %hello.dataset,
                    why,
                    "refused to serve another node"
                );
                return send(&mut peer, &Answer::Refused { why: why.into() }).await.map(|()| None);
            }
        };
        let purpose = match found {
            Some(server) => match server.connect(host_of(&channel.node)) {
                Ok(local) => Accepted::Relay(server, local),
                Err(_) => return send(&mut peer, &Answer::NotOwner).await.map(|()| None),
            },
            None => Accepted::Requests(hello.pool),
        };
        let answer = match purpose {
            Accepted::Relay(..) => Answer::Serving,
            Accepted::Requests(_) => Answer::TakingRequests,
        };
        send(&mut peer, &answer).await?;
        tracing::debug!(
            node = channel.node,
            dataset = %hello.dataset,
            connection = hello.connection,
            purpose = ?hello.purpose,
            "serving a connection of the channel"
        );
        Ok(Some(Greeted { peer, purpose, _counted: counted }))
    }

    /// Decides whether a peer is served, by which server of NFS calls if it relays some, and by
    /// whom it is known.
    async fn judge(
        &self,
        hello: &Hello,
        key: KeySha256,
    ) -> Result<(Option<Arc<dyn Answers>>, NodeChannel), Refusal> {
        if hello.version != VERSION {
            return Err(Refusal::Refused("incompatible version: run one version everywhere"));
        }
        let channel = self.channel(hello, key).await?;
        if hello.purpose == Purpose::Requests {
            return Ok((None, channel));
        }
        match self.datasets.find(hello.pool, hello.dataset) {
            Found::Serving(server) => Ok((Some(server), channel)),
            Found::NotOwner => Err(Refusal::NotOwner),
            Found::NotShared => Err(Refusal::Refused("the dataset is not for several nodes")),
        }
    }

    /// The channel of the peer's session, if the bucket knows it under this key.
    async fn channel(&self, hello: &Hello, key: KeySha256) -> Result<NodeChannel, Refusal> {
        let name = (hello.pool, hello.session);
        let known =
            self.known.lock().get(&name).filter(|(at, _)| at.elapsed() < KNOWN_FOR).cloned();
        if let Some((_, channel)) = known.filter(|(_, channel)| key_of(channel) == Some(key)) {
            return Ok(channel);
        }
        let Ok(Some(pool)) = self.pools.by_id(hello.pool) else {
            return Err(Refusal::Refused("the pool is not open here"));
        };
        let found = pool.catalog.channel(hello.session).await;
        let found = found.map_err(|error| {
            tracing::warn!(%error, "cannot look up the session of another node");
            Refusal::Refused("the bucket cannot be read; retry")
        })?;
        let channel = found.filter(|channel| key_of(channel) == Some(key));
        let channel =
            channel.ok_or(Refusal::Refused("the pool knows no such session with this key"))?;
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(name, (Instant::now(), channel.clone()));
        Ok(channel)
    }
}

/// Moves bytes between a peer and the server until one of them ends. The server reads records, and
/// bounds what it keeps of them.
async fn exchange(
    peer: TlsStream<TcpStream>,
    local: UnixStream,
    server: &dyn Answers,
) -> io::Result<()> {
    let (mut from_peer, mut to_peer) = tokio::io::split(peer);
    let (mut from_server, mut to_server) = local.into_split();
    tokio::select! {
        calls = copy(&mut from_peer, &mut to_server, NO_LIMIT, || true) => calls,
        // Replies of a server that has lost the volume are for nobody (R25).
        replies = copy(&mut from_server, &mut to_peer, STALL, || server.is_valid()) => {
            replies
        }
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    stall: Duration,
    counts: impl Fn() -> bool,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
    loop {
        buffer.clear();
        buffer.reserve(BUFFER_BYTES);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        if !counts() {
            return Err(io::Error::other("the volume is lost to this node"));
        }
        let written = async {
            to.write_all(&buffer).await?;
            to.flush().await
        };
        let written = tokio::time::timeout(stall, written).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_so_many_connections_and_no_more() {
        let counts = Counts::<u8>::default();
        let held: Vec<_> = (0..3).map(|_| counts.enter(1, 3).unwrap()).collect();
        assert!(counts.enter(1, 3).is_none());
        assert!(counts.enter(2, 3).is_some(), "another peer's are its own");
        drop(held);
        assert!(counts.enter(1, 3).is_some());
        assert!(counts.0.lock().is_empty(), "nothing is kept of peers without connections");
    }
}
