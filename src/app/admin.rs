//! The administration interface of a process: one for all of its active periods, so that sessions
//! outlive a hand-over that fails.

use super::handover::{Listening, Service, Sockets};
use super::lifecycle::Lifecycle;
use super::parts::Parts;
use crate::admin::access::{Access, Transport};
use crate::admin::auth::TokenFile;
use crate::admin::auth::tls::Tls;
use crate::admin::listener::Listener;
use crate::admin::rest::{Rest, WebPage};
use crate::admin::{Admin, AdminConfig, grpc};
use crate::control::Controller;
use crate::control::Tasks;
use crate::rpc::{self, Living};
use anyhow::{Context, bail};
use parking_lot::Mutex;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// The previous process may still have the address: binding is retried after this.
const BIND_AGAIN: Duration = Duration::from_secs(1);

/// The administration interface, as the command line asks for it.
#[derive(Clone, Debug)]
pub struct AdminOptions {
    /// The address that REST, gRPC and the page are served at.
    pub listen: Option<SocketAddr>,
    /// A unix socket for the same. Root and the process's own user come in without a token.
    pub socket: Option<PathBuf>,
    pub page: WebPage,
    pub exposure: Exposure,
}

/// Where the interface may be served without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    Loopback,
    /// Everywhere: something else protects the connections.
    Anywhere,
}

/// The interface of a process.
pub(super) struct AdminEdge {
    options: AdminOptions,
    access: Arc<Access>,
    tls: Option<Arc<Tls>>,
    /// The address that it is served at.
    bound: Arc<Mutex<Option<SocketAddr>>>,
    /// A copy of the listening socket, for the next process.
    copy: Arc<Mutex<Option<(SocketAddr, OwnedFd)>>>,
    has_printed: AtomicBool,
}

impl AdminOptions {
    /// # Errors
    /// When a file of the configuration cannot be used, or tokens would cross a network
    /// unprotected.
    pub(super) fn open(self, config: &AdminConfig) -> anyhow::Result<AdminEdge> {
        let tls = config.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
        if let Some(at) = self.listen
            && !at.ip().is_loopback()
            && tls.is_none()
            && self.exposure == Exposure::Loopback
        {
            bail!(
                "--admin-listen {at}: tokens and files would cross the network unprotected: \
                 configure admin.tls, listen on 127.0.0.1, or say --insecure-admin if something \
                 else protects the connections"
            );
        }
        let tokens = TokenFile::open(config.tokens_file.as_deref())?;
        let access = Access::new(tokens, config.limits(), config.hosts.clone());
        Ok(AdminEdge {
            options: self,
            access: Arc::new(access),
            tls,
            bound: Arc::default(),
            copy: Arc::default(),
            has_printed: AtomicBool::new(false),
        })
    }
}

impl AdminEdge {
    /// Begins to serve, until the services of this active period end.
    ///
    /// # Errors
    /// When the address cannot be had, unless the previous process still has it.
    pub async fn start(
        &self,
        parts: &Parts,
        (controller, tasks): (&Arc<Controller>, Tasks),
        lifecycle: &Lifecycle,
        (living, sockets): (Living, &Sockets),
    ) -> anyhow::Result<()> {
        let access = self.access.clone();
        let (volumes, policies) = (parts.volumes.clone(), parts.policies.clone());
        let admin = Arc::new(Admin::new(controller.clone(), volumes, tasks, policies, access));
        let url = |(name, pool): (&String, &super::config::PoolConfig)| {
            (name.clone(), pool.url.as_str().to_owned())
        };
        let urls = parts.config.pools.iter().map(url).collect();
        let grpc = grpc::router(&admin).context("the description of the gRPC interface")?;
        let router = Rest::new(admin.clone(), urls).router(self.options.page, grpc);
        let stop = lifecycle.services.clone();
        if let Some(path) = &self.options.socket {
            // TLS would protect nothing there.
            let listener = Listener::new(router.clone(), None, stop.clone());
            let (socket, name) = rpc::bind(path, living)
                .with_context(|| format!("--admin-socket {}", path.display()))?;
            let admin = admin.clone();
            lifecycle.service_tasks.spawn(async move {
                listener.unix(socket).await;
                drop(name);
                admin.close().await;
            });
        }
        if let Some(at) = self.options.listen {
            let listener = Listener::new(router, self.tls.clone(), stop.clone());
            let (socket, copy) = (self.bind(at, living, sockets).await?, self.copy.clone());
            lifecycle.service_tasks.spawn(async move {
                let socket = match socket {
                    Some(socket) => Some(socket),
                    None => tokio::select! {
                        () = stop.cancelled() => None,
                        socket = bind_again(at) => Some(socket),
                    },
                };
                if let Some(socket) = socket {
                    *copy.lock() = copy_of(&socket);
                    listener.tcp(socket).await;
                }
                admin.close().await;
            });
        }
        Ok(())
    }

    /// The listening socket for the next process, which accepts connections beside this one until
    /// this one has stopped: none is refused.
    pub fn give(&self) -> Option<Listening> {
        let (at, socket) = self.copy.lock().take()?;
        Some(Listening::on_tcp(Service::Admin, at, socket, Vec::new()))
    }

    /// The socket of the previous process if it has given one, or a new one. `None`: the previous
    /// process still has the address.
    async fn bind(
        &self,
        at: SocketAddr,
        living: Living,
        sockets: &Sockets,
    ) -> anyhow::Result<Option<TcpListener>> {
        let is_first = self.bound.lock().is_none();
        let socket = match sockets.take(Service::Admin, at) {
            Some(inherited) => inherited.listener(),
            None => TcpListener::bind(at).await,
        };
        let socket = match socket {
            Ok(socket) => Some(socket),
            Err(error)
                if error.kind() == ErrorKind::AddrInUse
                    && (living == Living::Replace || !is_first) =>
            {
                None
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("admin listener {at}: free the address, or give another --admin-listen")
                });
            }
        };
        *self.bound.lock() =
            Some(socket.as_ref().map_or(Ok(at), TcpListener::local_addr).unwrap_or(at));
        Ok(socket)
    }

    /// The addresses for people, each with a word before it.
    pub fn addresses(&self) -> String {
        let url = self.url().map(|url| format!(" admin {url}")).unwrap_or_default();
        let socket = self.options.socket.as_ref();
        url + &socket.map(|at| format!(" admin unix:{}", at.display())).unwrap_or_default()
    }

    fn url(&self) -> Option<String> {
        let at = self.bound.lock().or(self.options.listen)?;
        let scheme = match self.transport() {
            Transport::Tls => "https",
            Transport::Plain => "http",
        };
        Some(format!("{scheme}://{at}"))
    }

    fn transport(&self) -> Transport {
        if self.tls.is_some() { Transport::Tls } else { Transport::Plain }
    }

    /// Prints the address of the page with a token for one login, once in a process, to whoever has
    /// started it; never to the log, which others read.
    pub fn print_login(&self) {
        if self.options.page == WebPage::Absent || self.has_printed.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(url) = self.url() else { return };
        let token = self.access.sessions.print();
        let mut out = std::io::stdout();
        let line =
            format!("open {url}/#token={} (good for one login within an hour)", token.reveal());
        // Nobody may read our output.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn copy_of(socket: &TcpListener) -> Option<(SocketAddr, OwnedFd)> {
    let copied = socket.local_addr().and_then(|at| Ok((at, socket.as_fd().try_clone_to_owned()?)));
    let failed = |error: &std::io::Error| {
        tracing::warn!(%error, "the admin socket cannot be handed over; clients reconnect");
    };
    copied.inspect_err(failed).ok()
}

async fn bind_again(at: SocketAddr) -> TcpListener {
    loop {
        tokio::time::sleep(BIND_AGAIN).await;
        match TcpListener::bind(at).await {
            Ok(socket) => return socket,
            Err(error) => tracing::debug!(%at, %error, "cannot serve the admin interface yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_do_not_cross_a_network_unprotected() {
        let options = |listen: &str, exposure| AdminOptions {
            listen: Some(listen.parse().unwrap()),
            socket: None,
            page: WebPage::Absent,
            exposure,
        };
        let config = AdminConfig::default();
        assert!(options("127.0.0.1:0", Exposure::Loopback).open(&config).is_ok());
        assert!(options("[::1]:0", Exposure::Loopback).open(&config).is_ok());
        assert!(options("10.0.0.1:80", Exposure::Anywhere).open(&config).is_ok());
        for open in ["0.0.0.0:80", "10.0.0.1:80", "[::]:80"] {
            let refused = options(open, Exposure::Loopback).open(&config).err().unwrap();
            assert!(refused.to_string().contains("--insecure-admin"), "{refused}");
        }
    }
}
