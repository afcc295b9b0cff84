//! The sockets that a process has from the one before it, or from its own earlier life.

use super::HandoverError;
use super::message::{FDS_MAX, Item, Message, SOCKETS_MAX};
use crate::nfs::Kept;
use parking_lot::Mutex;
use rustix::net::AddressFamily;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The service on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// NFS of one staged volume.
    Volume,
    /// NFS of every dataset.
    Exports,
    /// Probes and metrics.
    Health,
    /// Kubelet's plugin registration: a unix socket.
    Registration,
}

/// A socket that listens, and the connections that came by it, at rest.
#[derive(Debug)]
pub struct Listening {
    pub service: Service,
    pub at: SocketAddr,
    /// The path of a unix socket; `at` has no meaning then.
    pub path: Option<PathBuf>,
    pub listener: OwnedFd,
    pub connections: Vec<Kept>,
}

/// In place of an address.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Listening {
    pub fn on_tcp(
        service: Service,
        at: SocketAddr,
        listener: OwnedFd,
        connections: Vec<Kept>,
    ) -> Self {
        Self { service, at, path: None, listener, connections }
    }

    pub fn on_path(service: Service, path: PathBuf, listener: OwnedFd) -> Self {
        Self { service, at: NOWHERE, path: Some(path), listener, connections: Vec::new() }
    }

    /// # Errors
    /// When the socket does not listen.
    pub fn listener(&self) -> io::Result<tokio::net::TcpListener> {
        let listener = std::net::TcpListener::from(self.listener.try_clone()?);
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }
}

/// Inherited sockets that no service has taken yet.
#[derive(Debug, Default)]
pub struct Sockets(Mutex<Vec<Listening>>);

impl Sockets {
    pub fn put(&self, listening: Listening) {
        self.0.lock().push(listening);
    }

    /// Takes the socket that listens at this address for this service. Port 0 matches any.
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

    /// Takes the socket that listens for this service at this path.
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
            tracing::info!(
                at = at.join(" "),
                "sockets of the process before this one are not needed any more"
            );
        }
    }

    /// Closes the connections; listening sockets stay open.
    pub fn hang_up(&self) {
        self.0.lock().iter_mut().for_each(|listening| listening.connections.clear());
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Returns message `number`, counted from 0, with duplicates of the descriptors that belong to
    /// it. `None` after the last.
    pub(super) fn message(&self, number: usize) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let all = self.0.lock();
        // Those that listen first: the clients of connections beyond the limit connect again.
        let listening = all.iter().map(|found| {
            let item = Item {
                service: found.service,
                at: found.at,
                path: found.path.clone(),
                connection: None,
            };
            (item, found.listener.as_fd())
        });
        let connected = all.iter().flat_map(|found| {
            let item = |kept: &Kept| Item {
                service: found.service,
                at: found.at,
                path: None,
                connection: Some(kept.trust),
            };
            found.connections.iter().map(move |kept| (item(kept), kept.stream.as_fd()))
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

    /// Adds what a message brought. Each descriptor must be what the message says it is.
    pub(super) fn add(&self, items: Vec<Item>, fds: Vec<OwnedFd>) -> Result<(), HandoverError> {
        let mut all = self.0.lock();
        let had: usize = all.iter().map(|listening| 1 + listening.connections.len()).sum();
        if items.len() != fds.len() || had + items.len() > SOCKETS_MAX {
            return Err(HandoverError::Unintelligible(format!(
                "{} sockets and {} descriptors",
                items.len(),
                fds.len()
            )));
        }
        for (item, fd) in items.into_iter().zip(fds) {
            let Item { service, at, path, connection } = item;
            let odd = || HandoverError::Unintelligible(format!("a socket at {at} that is none"));
            let is_listening = rustix::net::sockopt::socket_acceptconn(&fd).map_err(|_| odd())?;
            let is_unix =
                rustix::net::sockopt::socket_domain(&fd).map_err(|_| odd())? == AddressFamily::UNIX;
            let local =
                rustix::net::getsockname(&fd).ok().and_then(|any| SocketAddr::try_from(any).ok());
            match (connection, path) {
                // The socket was bound under another name, and renamed: only its owner knows which
                // one it is.
                (None, Some(path)) if is_listening && is_unix => {
                    all.push(Listening::on_path(service, path, fd))
                }
                (None, None) if is_listening && local == Some(at) => {
                    all.push(Listening::on_tcp(service, at, fd, Vec::new()))
                }
                (Some(trust), None) if !is_listening => {
                    let listening = all
                        .iter_mut()
                        .find(|found| found.service == service && found.at == at)
                        .ok_or_else(odd)?;
                    listening.connections.push(Kept { stream: fd, trust });
                }
                _ => return Err(odd()),
            }
        }
        Ok(())
    }
}
