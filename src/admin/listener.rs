//! Connections of the listener: their number and their time have limits, so that clients that send
//! or read slowly, or nothing at all, cost little and end.

use super::access::{Peer, Transport};
use super::auth::tls::{Tls, fingerprint};
use super::paced::{Paced, PacedBody};
use super::strangers::{Connection, PLACES_MAX, Strangers, UNKNOWN_LIMIT};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// Connections at once; further ones wait in the kernel's queue. Some are those of strangers that
/// make room for others, and end soon.
const CONNECTIONS_MAX: usize = 1024;
const _: () = assert!(PLACES_MAX < CONNECTIONS_MAX);
/// Time for the TLS handshake, and for the headers of a request.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the headers of a request, …
const HEADER_BYTES_MAX: usize = 32 << 10;
/// … and their number.
const HEADERS_MAX: usize = 64;
/// Requests at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 64;
/// An idle connection of HTTP/2 is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A pause after accept(2) fails: it is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Time for requests in progress when the process stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Time for the first request of a connection then.
const FIRST_GRACE: Duration = Duration::from_millis(500);

/// The service for connections, and its limits. Cheap to clone.
#[derive(Clone)]
pub struct Listener {
    router: Router,
    tls: Option<Arc<Tls>>,
    places: Arc<Semaphore>,
    strangers: Arc<Strangers>,
    stop: CancellationToken,
    connections: TaskTracker,
}

impl Listener {
    pub fn new(router: Router, tls: Option<Arc<Tls>>, stop: CancellationToken) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (strangers, connections) = (Arc::default(), TaskTracker::new());
        Self { router, tls, places, strangers, stop, connections }
    }

    /// Serves a TCP socket until stopped.
    pub async fn tcp(self, listener: TcpListener) {
        while let Some((permit, (stream, at))) = self.next(|| listener.accept()).await {
            let this = self.clone();
            self.connections.spawn(async move {
                let _permit = permit;
                this.over_tcp(stream, at).await;
            });
        }
        self.end().await;
    }

    /// Serves a unix socket until stopped. Callers are known by their user.
    pub async fn unix(self, listener: UnixListener) {
        while let Some((permit, (stream, _))) = self.next(|| listener.accept()).await {
            let this = self.clone();
            let uid = stream.peer_cred().map(|peer| peer.uid());
            self.connections.spawn(async move {
                let _permit = permit;
                match uid {
                    Ok(uid) => {
                        let peer = Peer { uid: Some(uid), ..Peer::default() };
                        this.serve(stream, peer, this.strangers.enter(None)).await;
                    }
                    Err(error) => tracing::debug!(%error, "a peer without a user was refused"),
                }
            });
        }
        self.end().await;
    }

    /// A place, and the next connection; `None` once stopped.
    async fn next<T, F: Future<Output = std::io::Result<T>>>(
        &self,
        accept: impl Fn() -> F,
    ) -> Option<(tokio::sync::OwnedSemaphorePermit, T)> {
        let permit = tokio::select! {
            () = self.stop.cancelled() => return None,
            permit = self.places.clone().acquire_owned() => permit.ok()?,
        };
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return None,
                accepted = accept() => accepted,
            };
            match accepted {
                Ok(accepted) => return Some((permit, accepted)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection; retrying");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn end(&self) {
        self.connections.close();
        // Connections that are left are cut off with the process.
        let _ended = tokio::time::timeout(STOP_GRACE, self.connections.wait()).await;
    }

    async fn over_tcp(&self, stream: TcpStream, at: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot turn off Nagle's algorithm");
        }
        let peer = Peer { at: Some(at), ..Peer::default() };
        let connection = self.strangers.enter(Some(at.ip()));
        let Some(tls) = &self.tls else { return self.serve(stream, peer, connection).await };
        let accepted = tokio::time::timeout(HEADER_LIMIT, tls.acceptor().accept(stream));
        let accepted = tokio::select! {
            () = connection.ousted() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok(Ok(stream)) => {
                let certificate = fingerprint(stream.get_ref().1);
                let peer = Peer { certificate, transport: Transport::Tls, ..peer };
                self.serve(stream, peer, connection).await;
            }
            Ok(Err(error)) => tracing::debug!(%at, %error, "no TLS connection"),
            Err(_) => tracing::debug!(%at, "no TLS connection in time"),
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Send + 'static>(
        &self,
        stream: S,
        peer: Peer,
        of: Arc<Connection>,
    ) {
        let has_asked = Arc::new(AtomicBool::new(false));
        let service = hyper::service::service_fn({
            let (router, has_asked, of) = (self.router.clone(), has_asked.clone(), of.clone());
            move |request: Request<Incoming>| {
                has_asked.store(true, Ordering::Relaxed);
                let (router, of) = (router.clone(), of.clone());
                async move {
                    let mut request = request.map(Body::new);
                    request.extensions_mut().insert(peer);
                    request.extensions_mut().insert(of);
                    let version = request.version();
                    let answer: Result<_, Infallible> = router.oneshot(request).await;
                    answer.map(|answer| answer.map(|body| paced(version, body)))
                }
            }
        });
        let builder = builder();
        let connection = builder.serve_connection(TokioIo::new(Paced::new(stream)), service);
        let mut connection = std::pin::pin!(connection);
        let stopping = async {
            self.stop.cancelled().await;
            // Whoever has just connected is answered.
            if !has_asked.load(Ordering::Relaxed) {
                tokio::time::sleep(FIRST_GRACE).await;
            }
        };
        let mut stopping = std::pin::pin!(stopping);
        let overdue = overdue(&of, &has_asked);
        let mut overdue = std::pin::pin!(overdue);
        let grace = tokio::time::sleep(UNKNOWN_LIMIT + STOP_GRACE);
        let mut grace = std::pin::pin!(grace);
        let mut stops = true;
        let mut waits = true;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "an admin connection ended");
                    }
                    return;
                }
                () = stopping.as_mut(), if stops => {
                    stops = false;
                    connection.as_mut().graceful_shutdown();
                }
                () = of.ousted() => return,
                () = overdue.as_mut(), if waits => {
                    if !has_asked.load(Ordering::Relaxed) {
                        return;
                    }
                    waits = false;
                    connection.as_mut().graceful_shutdown();
                }
                () = grace.as_mut(), if !waits => return,
            }
        }
    }
}

/// Waits until a connection has had its time without a request, or without one of a known caller.
async fn overdue(of: &Connection, has_asked: &AtomicBool) {
    // The version of HTTP is found out before any other limit holds.
    tokio::time::sleep(HEADER_LIMIT).await;
    if has_asked.load(Ordering::Relaxed) {
        tokio::time::sleep(UNKNOWN_LIMIT.saturating_sub(HEADER_LIMIT)).await;
        if of.is_known() {
            std::future::pending::<()>().await;
        }
    }
}

/// The streams of HTTP/2 share the limit of their connection, so each has one of its own.
fn paced(version: Version, body: Body) -> Body {
    match version {
        Version::HTTP_2 => Body::new(PacedBody::new(body)),
        _ => body,
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES_MAX as u32)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(HEADER_LIMIT);
    builder
}
