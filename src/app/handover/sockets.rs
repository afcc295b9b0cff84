//! The sockets that a process has from the previous one, or from its own previous active period.

use super::HandoverError;
use super::message::{FDS_MAX, Item, Message, SOCKETS_MAX, Service};
use crate::nfs::IdleConnection;
use parking_lot::Mutex;
use rustix::net::AddressFamily;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A listening socket, and the idle connections that it accepted.
#[derive(Debug)]
pub struct Listening {
    pub service: Service,
    pub at: SocketAddr,
    /// The path of a unix socket; `at` is meaningless then.
    pub path: Option<PathBuf>,
    pub listener: OwnedFd,
    pub connections: Vec<IdleConnection>,
}

/// Stands in for an address.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Listening {
    pub fn on_tcp(
        service: Service,
        at: SocketAddr,
        listener: OwnedFd,
        connections: Vec<IdleConnection>,
    ) -> Self {
        Self { service, at, path: None, listener, connections }
    }

    pub fn on_path(service: Service, path: PathBuf, listener: OwnedFd) -> Self {
        Self { service, at: NOWHERE, path: Some(path), listener, connections: Vec::new() }
    }

    /// # Errors
    /// The descriptor is not a listening socket.
    pub fn listener(&self) -> io::Result<tokio::net::TcpListener> {
        let listener = std::net::TcpListener::from(self.listener.try_clone()?);
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }
}

/// The sockets that no service has taken yet.
#[derive(Debug, Default)]
pub struct Sockets(Mutex<Vec<Listening>>);

impl Sockets {
    pub fn put(&self, listening: Listening) {
        self.0.lock().push(listening);
    }

    /// The listening socket of a service at an address. Port 0 is any.
    pub fn take(&self, service: Service, at: SocketAddr) -> Option<Listening> {
        let mut all = self.0.lock();
        let is_it = |found: &Listening| {
            found.service == service
                && found.at.ip() == at.ip()
                && (at.port() == 0 || found.at.port() == at.port())
        };
        let position = all.iter().position(is_it)?;
        Some(all.swap_remove(position))
    }

    /// The listening socket of a service at a path.
    pub fn take_path(&self, service: Service, path: &Path) -> Option<OwnedFd> {
        let mut all = self.0.lock();
        let position = all
            .iter()
            .position(|found| found.service == service && found.path.as_deref() == Some(path))?;
        Some(all.swap_remove(position).listener)
    }

    /// Closes the sockets that no service has taken.
    pub fn clear(&self) {
        let left = std::mem::take(&mut *self.0.lock());
        if !left.is_empty() {
            let at: Vec<String> = left
                .iter()
                .map(|listening| format!("{:?}:{}", listening.service, listening.at))
                .collect();
            tracing::info!(at = at.join(" "), "closed unused sockets of the previous process");
        }
    }

    /// Closes the connections, not the listening sockets.
    pub fn close_connections(&self) {
        self.0.lock().iter_mut().for_each(|listening| listening.connections.clear());
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Message `number`, counted from 0, with copies of the descriptors that go with it; `None`
    /// after the last. A process of an older version does not get what it does not know.
    pub(super) fn message(
        &self,
        number: usize,
        version: u16,
    ) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let all = self.0.lock();
        let known = || all.iter().filter(move |found| found.service.since() <= version);
        // Listening sockets first: the clients of connections beyond the limit reconnect.
        let listening = known().map(|found| {
            let item = Item {
                service: found.service,
                at: found.at,
                path: found.path.clone(),
                connection: None,
            };
            (item, found.listener.as_fd())
        });
        let connected = known().flat_map(|found| {
            let item = |connection: &IdleConnection| Item {
                service: found.service,
                at: found.at,
                path: None,
                connection: Some(connection.trust),
            };
            found
                .connections
                .iter()
                .map(move |connection| (item(connection), connection.stream.as_fd()))
        });
        let (mut items, mut fds) = (Vec::new(), Vec::new());
        for (item, fd) in
            listening.chain(connected).take(SOCKETS_MAX).skip(number * FDS_MAX).take(FDS_MAX)
        {
            items.push(item);
            fds.push(fd.try_clone_to_owned()?);
        }
        Ok((!items.is_empty()).then_some((Message::Sockets(items), fds)))
    }

    /// Adds the sockets of a message. Each descriptor must be what the message says.
    pub(super) fn add(&self, items: Vec<Item>, fds: Vec<OwnedFd>) -> Result<(), HandoverError> {
        let mut all = self.0.lock();
        let had: usize = all.iter().map(|listening| 1 + listening.connections.len()).sum();
        if items.len() != fds.len() || had + items.len() > SOCKETS_MAX {
            return Err(HandoverError::Unintelligible(format!(
                "{} sockets, but {} descriptors",
                items.len(),
                fds.len()
            )));
        }
        for (item, fd) in items.into_iter().zip(fds) {
            let Item { service, at, path, connection } = item;
            let odd = || {
                HandoverError::Unintelligible(format!(
                    "a descriptor for {at} that is not such a socket"
                ))
            };
            let is_listening = rustix::net::sockopt::socket_acceptconn(&fd).map_err(|_| odd())?;
            let is_unix =
                rustix::net::sockopt::socket_domain(&fd).map_err(|_| odd())? == AddressFamily::UNIX;
            let local =
                rustix::net::getsockname(&fd).ok().and_then(|any| SocketAddr::try_from(any).ok());
            match (connection, path) {
                // The socket was bound under another name, and renamed: the kernel does not know
                // its path.
                (None, Some(path)) if is_listening && is_unix => {
                    all.push(Listening::on_path(service, path, fd));
                }
                (None, None) if is_listening && local == Some(at) => {
                    all.push(Listening::on_tcp(service, at, fd, Vec::new()));
                }
                (Some(trust), None) if !is_listening => {
                    let listening = all
                        .iter_mut()
                        .find(|found| found.service == service && found.at == at)
                        .ok_or_else(odd)?;
                    listening.connections.push(IdleConnection { stream: fd, trust });
                }
                _ => return Err(odd()),
            }
        }
        Ok(())
    }
}
