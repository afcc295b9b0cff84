//! NFS endpoints for the node's use cases: one listener for each staged volume.

use super::handover::{Listening, Service, Sockets};
use crate::control::node::{EndpointError, Endpoints};
use crate::nfs::{Budget, Endpoint, ExportId, Limits, MountPass, Options, Server};
use crate::types::DatasetId;
use crate::volume::{Attached, ExportedFs};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// A kernel client has at most 16 connections to its volume; a few more may be closing.
const CONNECTIONS_MAX: usize = 64;
/// Time limit for calls in progress when an endpoint stops: it does so after the unmount, when none
/// are left.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Every endpoint of a node plugin.
pub struct NfsEndpoints {
    options: Options,
    /// Payload of the calls of all of them.
    budget: Budget,
    running: Mutex<HashMap<DatasetId, Running>>,
    /// Listening sockets of the previous process.
    inherited: Arc<Sockets>,
}

struct Running {
    endpoint: Arc<Endpoint<ExportedFs>>,
    server: Server<Arc<Endpoint<ExportedFs>>>,
}

impl NfsEndpoints {
    /// The limits of `options` are those of each endpoint; its connections are those of one client,
    /// its bytes come from `budget`.
    pub fn new(options: Options, budget: Budget, inherited: Arc<Sockets>) -> Self {
        let limits = Limits { connections: CONNECTIONS_MAX, ..options.limits };
        Self {
            options: Options { limits, ..options },
            budget,
            running: Mutex::default(),
            inherited,
        }
    }

    /// Quiesces every endpoint, for the next process to go on with. No call is answered after this
    /// returns.
    pub async fn quiesce(&self, limit: Duration) -> Vec<Listening> {
        let running: Vec<(DatasetId, Running)> = self.running.lock().drain().collect();
        let rests = running.into_iter().map(|(dataset, Running { endpoint, server })| async move {
            let connections = server.quiesce(limit).await;
            endpoint.remove();
            match server.listener() {
                Ok(listener) => Some(Listening::on_tcp(
                    Service::Volume,
                    server.local_addr(),
                    listener,
                    connections,
                )),
                Err(error) => {
                    tracing::warn!(
                        %dataset,
                        %error,
                        "the volume's socket cannot be handed over; its client reconnects"
                    );
                    None
                }
            }
        });
        futures::future::join_all(rests).await.into_iter().flatten().collect()
    }

    fn endpoint(&self, dataset: DatasetId) -> Result<Arc<Endpoint<ExportedFs>>, EndpointError> {
        let running = self.running.lock();
        running
            .get(&dataset)
            .map(|found| found.endpoint.clone())
            .ok_or(EndpointError::Unknown(dataset))
    }
}

fn export_id(dataset: DatasetId) -> ExportId {
    ExportId(*dataset.incarnation.as_bytes())
}

impl Endpoints for NfsEndpoints {
    type Pass = MountPass<ExportedFs>;

    async fn listen(
        &self,
        dataset: DatasetId,
        export: &str,
        at: SocketAddr,
    ) -> Result<(), EndpointError> {
        if self.running.lock().get(&dataset).is_some_and(|found| found.server.local_addr() == at) {
            return Ok(());
        }
        let inherited = self.inherited.take(Service::Volume, at);
        let bound = match &inherited {
            Some(inherited) => inherited.listener(),
            None => TcpListener::bind(at).await,
        };
        let listener = bound.map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => EndpointError::Taken(at),
            ErrorKind::AddrNotAvailable => EndpointError::Absent(at),
            _ => EndpointError::Failed { at, why: error.to_string() },
        })?;
        let endpoint = Endpoint::new(export_id(dataset), export.to_owned());
        let server = Server::start_within(listener, endpoint.clone(), self.options, &self.budget)
            .map_err(|error| EndpointError::Failed { at, why: error.to_string() })?;
        for connection in inherited.into_iter().flat_map(|inherited| inherited.connections) {
            if let Err(error) = server.adopt(connection) {
                tracing::debug!(%dataset, %error, "a connection was closed meanwhile");
            }
        }
        self.running.lock().insert(dataset, Running { endpoint, server });
        Ok(())
    }

    fn serve(&self, volume: &Attached) -> Result<(), EndpointError> {
        self.endpoint(volume.dataset)?.publish(volume.exported.clone(), volume.handle_key);
        Ok(())
    }

    fn allow_mount(&self, dataset: DatasetId) -> Result<Self::Pass, EndpointError> {
        Ok(self.endpoint(dataset)?.allow_mount())
    }

    fn stale(&self, dataset: DatasetId) {
        if let Ok(endpoint) = self.endpoint(dataset) {
            endpoint.lose();
        }
    }

    async fn stop(&self, dataset: DatasetId) {
        let Some(running) = self.running.lock().remove(&dataset) else { return };
        if !running.server.stop(STOP_GRACE).await {
            tracing::warn!(
                %dataset,
                "calls were still running when the endpoint stopped: their clients get no answer"
            );
        }
        running.endpoint.remove();
    }
}
