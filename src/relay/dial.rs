//! Connections to the owners of volumes.

use super::Identity;
use super::hello::{Answer, Hello, Purpose, VERSION, receive, send};
use crate::control::channel::OwnerRoute;
use crate::control::{DialOwner, RequestStream};
use crate::types::SessionId;
use futures::FutureExt;
use futures::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

/// Time limit from the connection to the owner's answer.
const LIMIT: Duration = Duration::from_secs(5);
/// A machine that is gone answers nothing: it is noticed after this.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(15);
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Connects as this process's session. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dialer {
    identity: Identity,
    session: SessionId,
}

impl Dialer {
    pub fn new(identity: Identity, session: SessionId) -> Self {
        Self { identity, session }
    }

    /// Connects to an owner, which serves the volume.
    ///
    /// # Errors
    /// The owner cannot be reached in time, has another key, or does not serve the volume.
    pub(super) async fn dial(&self, to: &OwnerRoute) -> io::Result<TlsStream<TcpStream>> {
        self.connect_for(Purpose::Relay, to).await
    }

    async fn connect_for(
        &self,
        purpose: Purpose,
        to: &OwnerRoute,
    ) -> io::Result<TlsStream<TcpStream>> {
        let connected = tokio::time::timeout(LIMIT, self.connect(purpose, to)).await;
        connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn connect(&self, purpose: Purpose, to: &OwnerRoute) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(to.address).await?;
        prepare(&stream)?;
        // Calls that are still in the socket when a route is left are discarded: they are sent
        // again by the next route, and must not arrive after that.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let config = self.identity.client(to.key).map_err(io::Error::other)?;
        // The key is the name.
        let name = ServerName::IpAddress(to.address.ip().into());
        let mut stream = TlsConnector::from(config).connect(name, stream).await?;
        let hello = Hello {
            version: VERSION,
            purpose,
            pool: to.pool,
            dataset: to.dataset,
            session: self.session,
            connection: rand::random(),
        };
        send(&mut stream, &hello).await?;
        match (receive(&mut stream).await?, purpose) {
            (Answer::Serving, Purpose::Relay) | (Answer::TakingRequests, Purpose::Requests) => {
                Ok(stream)
            }
            (Answer::Serving | Answer::TakingRequests, _) => {
                Err(io::Error::other("the node runs another version, which takes no requests"))
            }
            (Answer::NotOwner, _) => Err(io::Error::other("the node does not serve the volume")),
            (Answer::Refused { why }, _) => {
                tracing::warn!(
                    node = to.node,
                    dataset = %to.dataset,
                    why,
                    "the node refused a connection of its channel"
                );
                Err(io::Error::other(why))
            }
        }
    }
}

impl DialOwner for Dialer {
    fn dial<'a>(&'a self, to: &'a OwnerRoute) -> BoxFuture<'a, io::Result<Box<dyn RequestStream>>> {
        async move {
            let stream = self.connect_for(Purpose::Requests, to).await?;
            Ok(Box::new(stream) as Box<dyn RequestStream>)
        }
        .boxed()
    }
}

/// Sets the options of a channel's connections.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(2))?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}
