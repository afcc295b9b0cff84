//! A typed client of the administration interface over gRPC.
//!
//! ```no_run
//! use zerofs_csi::admin::{Client, RootName};
//!
//! # async fn example() -> Result<(), zerofs_csi::admin::ClientError> {
//! let client = Client::connect("unix:/run/zerofs/admin.sock", None).await?;
//! for snapshot in client.snapshots("", "web").await? {
//!     println!("{} of {}", snapshot.name, snapshot.dataset);
//! }
//! let monday = RootName::snapshot("web", "monday");
//! let content = client.read(&monday, "/etc/app.conf").await?;
//! println!("{}", String::from_utf8_lossy(&content));
//! # Ok(())
//! # }
//! ```
//!
//! Lists are read to their end, and contents are verified against the hash that the server sends.
//! Calls without a method here go through the generated clients ([`Client::files`] and others).
//! The command line stands on it where it goes through a server.

mod datasets;
mod files;
mod policies;
mod tasks;

pub use files::Reading;

use super::grpc::proto::Root;
use super::grpc::proto::datasets_client::DatasetsClient;
use super::grpc::proto::files_client::FilesClient;
use super::grpc::proto::policies_client::PoliciesClient;
use super::grpc::proto::snapshots_client::SnapshotsClient;
use super::grpc::proto::tasks_client::TasksClient;
use crate::rpc::class;
use crate::types::{Class, Classify};
use std::error::Error;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

/// The largest answer that is taken, in bytes: a page of long names may exceed gRPC's default.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Time for a connection to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Interval at which a connection is checked while a call is in progress, and the time that the
/// server has to answer: a machine that is gone closes nothing.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_LIMIT: Duration = Duration::from_secs(20);

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{endpoint}: {why}: write unix:PATH, http://HOST:PORT or https://HOST:PORT")]
    Endpoint { endpoint: String, why: String },
    #[error(
        "cannot connect to {endpoint}: is the server running, with --admin-listen or \
         --admin-socket?"
    )]
    Connect {
        endpoint: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("the token has characters that no token has: give it as `token create` printed it")]
    Token,
    #[error(
        "the connection to the server broke ({}): see whether it is running, and run it again",
        .0.message()
    )]
    Lost(Box<Status>),
    /// The answer of the server. Its message names the object, the reason and the next step.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// The content that arrived does not have the hash that the server sent.
    #[error("{0}: its content did not arrive whole: read it again")]
    Incomplete(String),
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        // One that was made on this side, since there was no answer, has a cause.
        match status.source() {
            Some(_) => Self::Lost(Box::new(status)),
            None => Self::Refused(Box::new(status)),
        }
    }
}

impl ClientError {
    /// The code of an answer; `None` where there was none.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(status) => Some(status.code()),
            Self::Endpoint { .. }
            | Self::Connect { .. }
            | Self::Token
            | Self::Lost(_)
            | Self::Incomplete(_) => None,
        }
    }
}

impl Classify for ClientError {
    fn class(&self) -> Class {
        match self {
            Self::Endpoint { .. } | Self::Token => Class::Invalid,
            Self::Connect { .. } | Self::Lost(_) | Self::Incomplete(_) => Class::Unavailable,
            Self::Refused(status) => class(status.code()),
        }
    }
}

/// Sends the token with every call.
#[derive(Clone)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The channel of the generated clients.
pub type Authorized = InterceptedService<Channel, Token>;

/// The name of a state whose files can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootName {
    /// Empty: the server's default pool.
    pub pool: String,
    /// Empty: the pool's default dataset.
    pub dataset: String,
    /// Empty: the dataset as the store has it.
    pub snapshot: String,
    /// The handle of the snapshot or dataset that is meant; empty: whichever has the name.
    pub handle: String,
}

impl RootName {
    /// A snapshot of a dataset of the default pool.
    pub fn snapshot(dataset: &str, snapshot: &str) -> Self {
        Self { snapshot: snapshot.to_owned(), ..Self::live(dataset) }
    }

    /// A dataset of the default pool, as the store has it.
    pub fn live(dataset: &str) -> Self {
        Self { dataset: dataset.to_owned(), ..Self::default() }
    }

    fn message(&self) -> Option<Root> {
        let Self { pool, dataset, snapshot, handle } = self.clone();
        Some(Root { pool, dataset, snapshot, handle })
    }
}

/// A client of one server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    channel: Authorized,
}

impl Client {
    /// Connects to `unix:PATH`, `http://HOST:PORT` or `https://HOST:PORT`. A unix socket needs no
    /// token: the server knows the user.
    ///
    /// # Errors
    /// When the endpoint is wrong, or nobody answers there.
    pub async fn connect(endpoint: &str, token: Option<&str>) -> Result<Self, ClientError> {
        Self::connect_trusting(endpoint, token, None).await
    }

    /// As [`Self::connect`], where the server's certificate is signed by these authorities, in PEM,
    /// instead of one that this machine trusts.
    ///
    /// # Errors
    /// As those of [`Self::connect`].
    pub async fn connect_trusting(
        endpoint: &str,
        token: Option<&str>,
        authorities: Option<&[u8]>,
    ) -> Result<Self, ClientError> {
        let wrong = |why: String| ClientError::Endpoint { endpoint: endpoint.to_owned(), why };
        if !["unix:", "http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(wrong("not an endpoint".to_owned()));
        }
        let mut at = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|error| wrong(error.to_string()))?
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT);
        if endpoint.starts_with("https:") {
            let tls = match authorities {
                Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                None => ClientTlsConfig::new().with_native_roots(),
            };
            at = at.tls_config(tls).map_err(|error| wrong(error.to_string()))?;
        }
        let token = token.map(|token| format!("Bearer {token}").parse()).transpose();
        let token = token.map_err(|_| ClientError::Token)?;
        let connected = at.connect().await;
        let channel = connected
            .map_err(|source| ClientError::Connect { endpoint: endpoint.to_owned(), source })?;
        Ok(Self { channel: InterceptedService::new(channel, Token(token)) })
    }

    /// The generated client of a service, for what this one does not wrap.
    pub fn datasets_service(&self) -> DatasetsClient<Authorized> {
        DatasetsClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// As [`Self::datasets_service`].
    pub fn snapshots_service(&self) -> SnapshotsClient<Authorized> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// As [`Self::datasets_service`].
    pub fn policies_service(&self) -> PoliciesClient<Authorized> {
        PoliciesClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// As [`Self::datasets_service`].
    pub fn files(&self) -> FilesClient<Authorized> {
        FilesClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// As [`Self::datasets_service`].
    pub fn tasks(&self) -> TasksClient<Authorized> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
}
