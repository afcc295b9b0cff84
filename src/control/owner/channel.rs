//! Carrier: the channel between nodes, which reaches an owner at once. The mailbox remains for
//! owners that have no channel, and for networks that let none through.
//!
//! ```text
//! asker: makes its key known in the bucket, looks up the owner's address and key, connects
//! owner: knows the asker by its key, reads a request, acts, replies; then the next one
//! ```
//! A message is as in the mailbox, behind its length. A connection that breaks leaves it open
//! whether the request was carried out: it is sent again by mailbox, as every request may be
//! (restores by their start tokens).

use super::mailbox::{
    Addressee, BYTES_MAX, Message, RequestStatus, Unanswered, decode_outcome, decode_request,
    encode_request, silent,
};
use crate::control::channel::{self, Channel, OwnerRoute, RouteFor};
use crate::types::{PoolId, SessionId};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// A session's channel is looked up again after this: it may have got one, or another one.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// A session that could not be reached is not tried again for this long.
const UNREACHABLE_FOR: Duration = Duration::from_secs(60);
/// Sessions remembered.
const KNOWN_MAX: usize = 4096;
/// Pause before a connection that was closed at once is tried again.
const CLOSED_PAUSE: Duration = Duration::from_millis(200);
/// Pause before a node is asked again that does not have the volume open, not yet or no longer.
const NOT_OPEN_PAUSE: Duration = Duration::from_millis(250);
/// Time for which a connection may be idle between two requests, and take no reply.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// A connection to a node that takes requests.
pub trait RequestStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> RequestStream for T {}

/// Connects to nodes, as this process's session.
pub trait DialOwner: Send + Sync + 'static {
    /// # Errors
    /// The node cannot be reached in time, has another key, or refuses this session.
    fn dial<'a>(&'a self, to: &'a OwnerRoute) -> BoxFuture<'a, io::Result<Box<dyn RequestStream>>>;
}

/// This process on the channel, as an asker. Cheap to clone.
#[derive(Clone)]
pub struct OwnerChannel(Arc<Peers>);

impl fmt::Debug for OwnerChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerChannel").field("channel", &self.0.channel).finish_non_exhaustive()
    }
}

struct Peers {
    channel: Arc<Channel>,
    dial: Box<dyn DialOwner>,
    routes: Mutex<HashMap<(PoolId, SessionId), PeerRoute>>,
}

/// How to reach a session.
#[derive(Clone)]
enum PeerRoute {
    At(OwnerRoute, Instant),
    /// The session has no channel, or cannot be reached, until then.
    Silent(Instant),
}

impl OwnerChannel {
    /// `channel`: how others know this process.
    pub fn new(channel: Arc<Channel>, dial: impl DialOwner) -> Self {
        Self(Arc::new(Peers { channel, dial: Box::new(dial), routes: Mutex::default() }))
    }

    /// Connects to an owner. `None`: the mailbox is left.
    pub(super) async fn connect(&self, to: Addressee<'_>) -> Option<Conversation> {
        let route = self.0.route(to).await?;
        if let Err(error) = self.0.channel.publish(to.pool).await {
            tracing::info!(%error, "cannot make this process known to owners; asking by mailbox");
            return None;
        }
        let connected = match self.0.dial.dial(&route).await {
            // A busy listener closes a connection at once.
            Err(error) if was_closed(&error) => {
                tokio::time::sleep(CLOSED_PAUSE).await;
                self.0.dial.dial(&route).await
            }
            connected => connected,
        };
        match connected {
            Ok(stream) => Some(Conversation { stream }),
            Err(error) => {
                tracing::info!(
                    node = to.owner.node,
                    address = %route.address,
                    %error,
                    "cannot reach the node by its channel; asking by mailbox, which takes up to a \
                     third of a lease"
                );
                let until = Instant::now() + UNREACHABLE_FOR;
                self.0.remember((route.pool, route.session), PeerRoute::Silent(until));
                None
            }
        }
    }
}

fn was_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

impl Peers {
    async fn route(&self, to: Addressee<'_>) -> Option<OwnerRoute> {
        let key = (to.pool.id(), to.owner.session);
        let known = self.routes.lock().get(&key).cloned();
        match known {
            Some(PeerRoute::At(route, at)) if at.elapsed() < KNOWN_FOR => {
                return Some(OwnerRoute { dataset: to.dataset, ..route });
            }
            Some(PeerRoute::Silent(until)) if Instant::now() < until => return None,
            _ => {}
        }
        let found = channel::route(to.pool, to.dataset, to.owner.session, RouteFor::Requests).await;
        let found = found.unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot look up a node's channel");
            None
        });
        let now = Instant::now();
        self.remember(
            key,
            match &found {
                Some(route) => PeerRoute::At(route.clone(), now),
                None => PeerRoute::Silent(now + KNOWN_FOR),
            },
        );
        found
    }

    fn remember(&self, key: (PoolId, SessionId), known: PeerRoute) {
        let mut all = self.routes.lock();
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        all.insert(key, known);
    }
}

/// A connection to an owner.
pub(super) struct Conversation {
    stream: Box<dyn RequestStream>,
}

impl Conversation {
    /// Sends one message. `limit`: for its reply; a node that does not have the volume open is
    /// asked again until then. `None`: the connection broke before there was one.
    pub(super) async fn send(
        &mut self,
        to: Addressee<'_>,
        message: &Message,
        limit: Duration,
    ) -> Option<Result<RequestStatus, Unanswered>> {
        match tokio::time::timeout(limit, self.exchange(message)).await {
            Ok(Ok(status)) => Some(Ok(status)),
            Ok(Err(error)) => {
                tracing::info!(
                    node = to.owner.node,
                    %error,
                    "the channel to the node broke; asking by mailbox"
                );
                None
            }
            Err(_) => Some(Err(silent(to, message, limit))),
        }
    }

    async fn exchange(&mut self, message: &Message) -> io::Result<RequestStatus> {
        let bytes = encode_request(message).map_err(io::Error::other)?;
        loop {
            write(&mut self.stream, &bytes).await?;
            let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
            let reply = read(&mut self.stream).await?.ok_or_else(ended)?;
            match decode_outcome(&reply).map_err(io::Error::other)? {
                RequestStatus::NotOpen => tokio::time::sleep(NOT_OPEN_PAUSE).await,
                status => return Ok(status),
            }
        }
    }
}

/// Answers the requests of one connection, one after the other, until it ends. Who asks has been
/// recognised.
///
/// # Errors
/// The connection broke, or was idle for too long.
pub(super) async fn answer<F>(
    stream: &mut (impl AsyncRead + AsyncWrite + Send + Unpin),
    act: impl Fn(Message) -> F + Send,
) -> io::Result<()>
where
    F: Future<Output = io::Result<Option<RequestStatus>>> + Send,
{
    let timed_out = |_| io::Error::from(io::ErrorKind::TimedOut);
    loop {
        let request = tokio::time::timeout(IDLE_LIMIT, read(stream)).await.map_err(timed_out)?;
        let Some(bytes) = request? else { return Ok(()) };
        let outcome = match decode_request(&bytes) {
            Ok(message) => act(message).await?.unwrap_or(RequestStatus::NotOpen),
            Err(refused) => refused,
        };
        let reply = outcome.encode().map_err(io::Error::other)?;
        tokio::time::timeout(IDLE_LIMIT, write(stream, &reply)).await.map_err(timed_out)??;
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let len = u32::try_from(message.len()).ok().filter(|len| u64::from(*len) <= BYTES_MAX);
    let len = len.ok_or_else(|| io::Error::other("a message that is too long"))?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await?;
    stream.flush().await
}

/// `None`: the connection ended between two messages.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let len = match stream.read_u32().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        len => len?,
    };
    if u64::from(len) > BYTES_MAX {
        return Err(io::Error::other("a message that is too long"));
    }
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_have_a_length_that_is_bounded() {
        let mut sent = Vec::new();
        write(&mut sent, b"ping").await.unwrap();
        assert_eq!(sent, b"\0\0\0\x04ping");
        assert_eq!(read(&mut &sent[..]).await.unwrap().unwrap(), b"ping");
        assert_eq!(read(&mut &sent[..0]).await.unwrap(), None);
        assert!(read(&mut &sent[..7]).await.is_err(), "it is cut");
        assert!(read(&mut &[0xff; 8][..]).await.is_err());
        assert!(write(&mut sent, &vec![0; BYTES_MAX as usize + 1]).await.is_err());
    }
}
