//! `/healthz`, `/readyz` and `/metrics`.
//!
//! A process is healthy while it can answer at all: a restart helps against nothing else, and
//! pauses the mounts of a node plugin. It is ready once it serves, every pool is open, no store
//! refuses the volumes' writes, and kubelet has registered the driver if it has to: before that no
//! pod can use it.
//!
//! A process on standby after a hand-over is ready too: it resumes if the other one exits. A
//! DaemonSet's controller deletes an old pod that is not ready without waiting for the new one.
//!
//! On one machine the address is passed from process to process, and the one that serves answers
//! there. Whether *this* process is ready is answered on a socket of its own
//! ([`Health::serve_own`]), where no other process can answer for it.

use super::handover::{Listening, Service, Sockets};
use super::metrics;
use crate::control::Pools;
use crate::control::policy::PolicyStatus;
use crate::csi::RegistrationState;
use crate::volume::Volumes;
use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::{Mutex, RwLock};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The previous process may still have the address: binding is retried after this.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// Limits on a process's answer about its readiness, in time and bytes. The time stays below the
/// `timeoutSeconds` of the chart's probe.
const ASK_LIMIT: Duration = Duration::from_secs(12);
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The health of a process. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    phase: Arc<RwLock<Phase>>,
    /// The socket at the machine's address, once there is one.
    listener: Arc<Mutex<Option<(SocketAddr, OwnedFd)>>>,
}

enum Phase {
    /// The process does not serve, for this reason.
    Waiting(String),
    Serving(Serving),
    /// Another process serves, and this one resumes if that one exits.
    Standby,
}

/// The parts of a serving process that determine its health.
struct Serving {
    pools: Pools,
    volumes: Volumes,
    policies: PolicyStatus,
    /// The registration, of a plugin that kubelet is to register.
    registration: Option<RegistrationState>,
}

impl Health {
    pub fn new() -> Self {
        Self {
            phase: Arc::new(RwLock::new(Phase::Waiting("starting".to_owned()))),
            listener: Arc::default(),
        }
    }

    pub fn wait(&self, why: String) {
        *self.phase.write() = Phase::Waiting(why);
    }

    /// `registration`: that of a plugin that kubelet is to register.
    pub fn serving(
        &self,
        pools: Pools,
        volumes: Volumes,
        policies: PolicyStatus,
        registration: Option<RegistrationState>,
    ) {
        *self.phase.write() = Phase::Serving(Serving { pools, volumes, policies, registration });
    }

    pub fn stand_by(&self) {
        *self.phase.write() = Phase::Standby;
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(prometheus))
            .with_state(self.clone())
    }

    /// Serves at the machine's address until stopped: on the socket of the previous process, if it
    /// handed one over. A process works without it: an address in use is no reason to exit.
    pub async fn serve(self, at: SocketAddr, sockets: Arc<Sockets>, stop: CancellationToken) {
        loop {
            let listener = match sockets.take(Service::Health, at) {
                Some(inherited) => inherited.listener(),
                None => TcpListener::bind(at).await,
            };
            match listener.and_then(|listener| {
                Ok((listener.local_addr()?, listener.as_fd().try_clone_to_owned()?, listener))
            }) {
                Ok((bound, fd, listener)) => {
                    *self.listener.lock() = Some((bound, fd));
                    let served = axum::serve(listener, self.router())
                        .with_graceful_shutdown(stop.cancelled_owned())
                        .await;
                    if let Err(error) = served {
                        tracing::error!(%at, %error, "the health server exited");
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(
                        %at,
                        %error,
                        "cannot listen for health requests; retrying; free the address, or give \
                         another --health-listen"
                    );
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(BIND_AGAIN) => {}
            }
        }
    }

    /// The socket at the machine's address, for the next process.
    pub fn give(&self) -> Option<Listening> {
        let (at, listener) = self.listener.lock().take()?;
        Some(Listening::on_tcp(Service::Health, at, listener, Vec::new()))
    }

    /// Serves on a unix socket that only this process has, until the runtime ends.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve_own(&self, path: &Path) -> anyhow::Result<()> {
        let at = || format!("health socket {}", path.display());
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(at);
            }
            _ => {}
        }
        let listener = tokio::net::UnixListener::bind(path).with_context(at)?;
        let router = self.router();
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the server of the health socket exited");
            }
        });
        Ok(())
    }
}

/// Asks the process that has this health socket whether it is ready, and returns its answer.
///
/// # Errors
/// The process is not ready, or does not answer.
pub fn ask_ready(path: &Path) -> anyhow::Result<String> {
    let at = || format!("health socket {}: is the process running?", path.display());
    let mut stream = std::os::unix::net::UnixStream::connect(path).with_context(at)?;
    stream
        .set_read_timeout(Some(ASK_LIMIT))
        .and_then(|()| stream.set_write_timeout(Some(ASK_LIMIT)))
        .with_context(at)?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").with_context(at)?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).with_context(at)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let body = body.trim_end().to_owned();
    match head.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(body),
        _ => Err(anyhow::anyhow!("not ready: {body}")),
    }
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let missing = match &*health.phase.read() {
        Phase::Waiting(why) => format!("{why}\n"),
        Phase::Standby => {
            return (
                StatusCode::OK,
                "another process is serving; this one is on standby\n".to_owned(),
            );
        }
        Phase::Serving(serving) => serving.missing(),
    };
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing)
    }
}

async fn prometheus(State(health): State<Health>) -> impl IntoResponse {
    let text = match &*health.phase.read() {
        Phase::Waiting(_) | Phase::Standby => String::new(),
        Phase::Serving(serving) => serving.metrics(),
    };
    ([("content-type", "text/plain; version=0.0.4")], text)
}

impl Serving {
    fn metrics(&self) -> String {
        let Self { pools, volumes, policies, registration } = self;
        metrics::text(pools, volumes, policies, registration.as_ref())
    }

    /// The reasons why it is not ready, one per line.
    fn missing(&self) -> String {
        let pools = self
            .pools
            .not_open()
            .into_iter()
            .map(|(pool, why)| format!("pool {pool} is not open yet: {why}\n"));
        let registration = self
            .registration
            .iter()
            .filter_map(RegistrationState::missing)
            .map(|why| format!("{why}\n"));
        let refusing = self
            .pools
            .iter()
            .filter_map(|pool| Some((&pool.name, pool.catalog.bucket().refusal()?)));
        let refusing = refusing.map(|(pool, why)| format!("pool {pool} is not writable: {why}\n"));
        pools.chain(refusing).chain(registration).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Bucket;
    use crate::catalog::Catalog;
    use crate::control::Pool;

    #[tokio::test]
    async fn a_process_is_ready_once_its_pools_are_open() {
        let config = crate::app::Config::default();
        let pools = Pools::waiting(["a\"b".to_owned()], None).unwrap();
        let parts =
            crate::app::Parts::over(config, pools.clone(), "n".to_owned(), None).await.unwrap();
        let health = Health::new();
        assert_eq!(
            ready(State(health.clone())).await.into_response().status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        let room = tempfile::tempdir().unwrap();
        let own = room.path().join("health.sock");
        health.serve_own(&own).unwrap();
        health.wait("another process serves".to_owned());
        let asked = || {
            let own = own.clone();
            tokio::task::spawn_blocking(move || ask_ready(&own))
        };
        assert!(asked().await.unwrap().unwrap_err().to_string().contains("another process serves"));
        let registration = RegistrationState::default();
        let policies = || parts.policies.clone();
        health.serving(
            pools.clone(),
            parts.volumes.clone(),
            policies(),
            Some(registration.clone()),
        );
        let serving = |registration| Serving {
            pools: pools.clone(),
            volumes: parts.volumes.clone(),
            policies: policies(),
            registration,
        };
        let text = || serving(Some(registration.clone())).metrics();
        pools.not_yet("a\"b", "no answer".to_owned());
        let answer = ready(State(health.clone())).await.into_response();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = axum::body::to_bytes(answer.into_body(), 1000).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(
            body.starts_with(
                "pool a\"b is not open yet: no answer\nkubelet has not registered the driver yet"
            ),
            "{body}"
        );
        assert!(text().contains("zerofs_plugin_registered 0\n"));
        assert!(text().contains("zerofs_pool_open{pool=\"a\\\"b\"} 0\n"));

        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        pools.opened(Pool { name: "a\"b".to_owned(), catalog, folder: None }).unwrap();
        assert_eq!(
            ready(State(health.clone())).await.into_response().status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        // Like a server, which kubelet does not register.
        health.serving(pools.clone(), parts.volumes.clone(), policies(), None);
        assert_eq!(ready(State(health.clone())).await.into_response().status(), StatusCode::OK);
        let text = serving(None).metrics();
        assert_eq!(asked().await.unwrap().unwrap(), "ok");
        health.stand_by();
        assert!(asked().await.unwrap().unwrap().contains("on standby"));
        assert!(!text.contains("zerofs_plugin_registered"));
        assert!(
            text.contains("zerofs_pool_open{pool=\"a\\\"b\"} 1\n")
                && text.contains("kind=\"put\"} "),
            "{text}"
        );
    }
}
