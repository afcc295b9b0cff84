//! NFS endpoints for the node's use cases: one listener for each staged volume.

use super::handover::{Listening, Service, Sockets};
use crate::control::channel::OwnerRoute;
use crate::control::node::{EndpointError, Endpoints, Reach};
use crate::fs::api::StatFs;
use crate::nfs::client::{Client, Credentials};
use crate::nfs::{Budget, Endpoint, ExportId, Limits, Options, Server};
use crate::relay::{Answers, Found, OwnedDatasets, RelayEndpoint, RelayOptions, Route, Served};
use crate::types::{DatasetId, PoolId};
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
/// Connections to a shared volume: those of all nodes.
const SHARED_CONNECTIONS_MAX: usize = 1024;
/// Time limit for calls in progress when an endpoint stops: it does so after the unmount, when none
/// are left.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Time limit for the usage of a volume that another node serves.
const STATS_LIMIT: Duration = Duration::from_secs(10);

type OneServer = Server<Arc<Endpoint<ExportedFs>>>;
type AllRunning = Arc<Mutex<HashMap<DatasetId, Running>>>;

/// Every endpoint of a node plugin.
pub struct NfsEndpoints {
    options: Options,
    /// Payload of the calls of all of them.
    budget: Budget,
    running: AllRunning,
    /// Listening sockets of the previous process.
    inherited: Arc<Sockets>,
    /// The parts that relay shared volumes; `None`: the node has no channel.
    relay: Option<RelayOptions>,
}

enum Running {
    One { endpoint: Arc<Endpoint<ExportedFs>>, server: OneServer },
    Shared(Shared),
}

/// The endpoint of a shared volume.
struct Shared {
    endpoint: RelayEndpoint,
    export: String,
    /// The volume, while this node owns it, or a server that answers ESTALE.
    served: Option<(Option<PoolId>, Arc<Served<ExportedFs>>)>,
}

impl Running {
    fn local_addr(&self) -> SocketAddr {
        match self {
            Self::One { server, .. } => server.local_addr(),
            Self::Shared(shared) => shared.endpoint.local_addr(),
        }
    }

    async fn quiesce(self, limit: Duration) -> std::io::Result<Listening> {
        match self {
            Self::One { endpoint, server } => {
                let connections = server.quiesce(limit).await;
                endpoint.remove();
                let (at, listener) = (server.local_addr(), server.listener()?);
                Ok(Listening::on_tcp(Service::Volume, at, listener, connections))
            }
            Self::Shared(shared) => {
                let (at, listener) = (shared.endpoint.local_addr(), shared.endpoint.listener());
                // Clients reconnect, and send again what has no reply.
                shared.endpoint.close();
                if let Some((_, served)) = &shared.served {
                    served.stop(limit).await;
                }
                Ok(Listening::on_tcp(Service::Volume, at, listener?, Vec::new()))
            }
        }
    }
}

impl Shared {
    fn end_service(&mut self) {
        if let Some((_, served)) = self.served.take() {
            served.end();
        }
    }

    fn replace(&mut self, pool: Option<PoolId>, served: Arc<Served<ExportedFs>>) {
        self.end_service();
        self.endpoint.set_route(Route::Here(served.clone()));
        self.served = Some((pool, served));
    }
}

impl NfsEndpoints {
    /// The limits of `options` are those of each endpoint; its connections are those of one client,
    /// its bytes come from `budget`.
    pub fn new(options: Options, budget: Budget, inherited: Arc<Sockets>) -> Self {
        let limits = Limits { connections: CONNECTIONS_MAX, ..options.limits };
        Self {
            options: Options { limits, ..options },
            budget,
            running: Arc::default(),
            inherited,
            relay: None,
        }
    }

    /// Serves and relays shared volumes, too.
    #[must_use]
    pub fn with_relay(mut self, relay: Option<RelayOptions>) -> Self {
        self.relay = relay;
        self
    }

    /// The volumes that are served here, for other nodes.
    pub fn owned(&self) -> Arc<dyn OwnedDatasets> {
        Arc::new(Owned(self.running.clone()))
    }

    /// Quiesces every endpoint, for the next process to go on with. No call is answered after this
    /// returns.
    pub async fn quiesce(&self, limit: Duration) -> Vec<Listening> {
        let running: Vec<(DatasetId, Running)> = self.running.lock().drain().collect();
        let rests = running.into_iter().map(|(dataset, running)| async move {
            match running.quiesce(limit).await {
                Ok(listening) => Some(listening),
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

    /// Does something with the endpoint of a shared volume.
    fn shared<T>(
        &self,
        dataset: DatasetId,
        with: impl FnOnce(&mut Shared) -> T,
    ) -> Result<T, EndpointError> {
        match self.running.lock().get_mut(&dataset) {
            Some(Running::Shared(shared)) => Ok(with(shared)),
            Some(Running::One { .. }) | None => Err(EndpointError::Unknown(dataset)),
        }
    }

    fn start(
        &self,
        dataset: DatasetId,
        export: &str,
        listener: TcpListener,
        reach: Reach,
    ) -> std::io::Result<Running> {
        if reach == Reach::OneNode {
            let endpoint = Endpoint::new(export_id(dataset), export.to_owned());
            let server =
                Server::start_within(listener, endpoint.clone(), self.options, &self.budget)?;
            return Ok(Running::One { endpoint, server });
        }
        let relay = self.relay.clone();
        let relay = relay.ok_or_else(|| std::io::Error::other("this node has no channel"))?;
        let endpoint = RelayEndpoint::start(listener, dataset, relay)?;
        Ok(Running::Shared(Shared { endpoint, export: export.to_owned(), served: None }))
    }

    fn shared_options(&self) -> Options {
        let limits = Limits { connections: SHARED_CONNECTIONS_MAX, ..self.options.limits };
        Options { limits, ..self.options }
    }
}

/// The volumes that a node plugin serves to others.
struct Owned(AllRunning);

impl OwnedDatasets for Owned {
    fn find(&self, pool: PoolId, dataset: DatasetId) -> Found {
        match self.0.lock().get(&dataset) {
            Some(Running::Shared(Shared { served: Some((of, served)), .. }))
                if *of == Some(pool) && served.is_valid() =>
            {
                Found::Serving(served.clone())
            }
            Some(Running::Shared(_)) | None => Found::NotOwner,
            Some(Running::One { .. }) => Found::NotShared,
        }
    }
}

fn export_id(dataset: DatasetId) -> ExportId {
    ExportId(*dataset.incarnation.as_bytes())
}

impl Endpoints for NfsEndpoints {
    type Pass = Box<dyn Send>;

    async fn listen(
        &self,
        dataset: DatasetId,
        export: &str,
        at: SocketAddr,
        reach: Reach,
    ) -> Result<(), EndpointError> {
        if self.running.lock().get(&dataset).is_some_and(|found| found.local_addr() == at) {
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
        let running = self
            .start(dataset, export, listener, reach)
            .map_err(|error| EndpointError::Failed { at, why: error.to_string() })?;
        let connections = inherited.into_iter().flat_map(|inherited| inherited.connections);
        if let Running::One { server, .. } = &running {
            for connection in connections {
                if let Err(error) = server.adopt(connection) {
                    tracing::debug!(%dataset, %error, "a connection was closed meanwhile");
                }
            }
        }
        self.running.lock().insert(dataset, running);
        Ok(())
    }

    fn serve(&self, volume: &Attached) -> Result<(), EndpointError> {
        let options = self.shared_options();
        match self.running.lock().get_mut(&volume.dataset) {
            Some(Running::One { endpoint, .. }) => {
                endpoint.publish(volume.exported.clone(), volume.handle_key);
            }
            Some(Running::Shared(shared)) => {
                let (id, export) = (export_id(volume.dataset), shared.export.clone());
                let fs = (volume.exported.clone(), volume.handle_key);
                let served = Served::open(id, export, fs, options, &self.budget);
                shared.replace(Some(volume.pool), served);
            }
            None => return Err(EndpointError::Unknown(volume.dataset)),
        }
        Ok(())
    }

    fn relay(&self, dataset: DatasetId, to: OwnerRoute) -> Result<(), EndpointError> {
        self.shared(dataset, |shared| {
            shared.end_service();
            shared.endpoint.set_route(Route::Owner(Arc::new(to)));
        })
    }

    fn suspend(&self, dataset: DatasetId) {
        // Unstaged meanwhile: there is nothing to hold.
        let _absent = self.shared(dataset, |shared| {
            shared.end_service();
            shared.endpoint.set_route(Route::Held);
        });
    }

    async fn disturbed(&self, dataset: DatasetId) {
        let Ok(mut changes) = self.shared(dataset, |shared| shared.endpoint.disturbed()) else {
            return;
        };
        // The endpoint is gone if this fails.
        let _gone = changes.wait_for(|disturbed| *disturbed).await;
    }

    fn is_disturbed(&self, dataset: DatasetId) -> bool {
        self.shared(dataset, |shared| *shared.endpoint.disturbed().borrow()).unwrap_or(true)
    }

    async fn stats(&self, dataset: DatasetId) -> Result<StatFs, EndpointError> {
        let silent = || EndpointError::Unanswered(dataset);
        let (stream, export) = self
            .shared(dataset, |shared| (shared.endpoint.connect(), shared.export.clone()))
            .and_then(|(stream, export)| Ok((stream.map_err(|_| silent())?, export)))?;
        let asked = async {
            let client = Client::local(stream, &Credentials::root());
            client.fsstat(&client.mount(&export).await?).await
        };
        let stat = tokio::time::timeout(STATS_LIMIT, asked).await;
        let stat = stat.map_err(|_| silent())?.map_err(|error| {
            tracing::debug!(%dataset, %error, "the usage of a shared volume is not known");
            silent()
        })?;
        Ok(StatFs {
            total_bytes: stat.total_bytes,
            free_bytes: stat.free_bytes,
            total_inodes: stat.total_files,
            free_inodes: stat.free_files,
        })
    }

    fn allow_mount(&self, dataset: DatasetId) -> Result<Self::Pass, EndpointError> {
        match self.running.lock().get(&dataset) {
            Some(Running::One { endpoint, .. }) => Ok(Box::new(endpoint.allow_mount())),
            Some(Running::Shared(shared)) => Ok(Box::new(shared.endpoint.allow_mount())),
            None => Err(EndpointError::Unknown(dataset)),
        }
    }

    fn stale(&self, dataset: DatasetId) {
        let options = self.shared_options();
        match self.running.lock().get_mut(&dataset) {
            Some(Running::One { endpoint, .. }) => endpoint.lose(),
            Some(Running::Shared(shared)) => {
                let (id, export) = (export_id(dataset), shared.export.clone());
                shared.replace(None, Served::stale(id, export, options, &self.budget));
            }
            None => {}
        }
    }

    async fn stop(&self, dataset: DatasetId) {
        let Some(running) = self.running.lock().remove(&dataset) else { return };
        let answered = match &running {
            Running::One { endpoint, server } => {
                let answered = server.stop(STOP_GRACE).await;
                endpoint.remove();
                answered
            }
            Running::Shared(shared) => {
                let answered = match &shared.served {
                    Some((_, served)) => served.stop(STOP_GRACE).await,
                    None => true,
                };
                shared.endpoint.close();
                answered
            }
        };
        if !answered {
            tracing::warn!(
                %dataset,
                "calls were still running when the endpoint stopped: their clients get no answer"
            );
        }
    }
}
