//! The endpoint of one volume: the NFS server as the node uses it.

use crate::control::channel::OwnerRoute;
use crate::fs::api::StatFs;
use crate::types::{Class, Classify, DatasetId};
use crate::volume::Attached;
use std::net::SocketAddr;

#[derive(Debug, Clone, thiserror::Error)]
pub enum EndpointError {
    /// Another socket listens there.
    #[error("address {0} is in use")]
    Taken(SocketAddr),
    /// This machine has no such address.
    #[error("address {0} does not exist on this machine")]
    Absent(SocketAddr),
    #[error("serving on {at}: {why}")]
    Failed { at: SocketAddr, why: String },
    #[error("dataset {0} has no endpoint")]
    Unknown(DatasetId),
    /// The owner of a shared volume does not answer.
    #[error("dataset {0}: its owner does not answer; retry")]
    Unanswered(DatasetId),
}

impl Classify for EndpointError {
    fn class(&self) -> Class {
        match self {
            Self::Taken(_) | Self::Absent(_) | Self::Unanswered(_) => Class::Unavailable,
            Self::Failed { .. } | Self::Unknown(_) => Class::Internal,
        }
    }
}

/// The nodes that may have a volume mounted at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    OneNode,
    /// One of them owns it, and the others relay their calls to it.
    ManyNodes,
}

/// Serves volumes, each on an endpoint of its own; `app` provides it.
///
/// An endpoint listens, then serves, and may go stale; it does so until it is stopped. That of a
/// shared volume ([`Reach::ManyNodes`]) may serve, relay and hold calls in turns.
pub trait Endpoints: Send + Sync + 'static {
    /// Allows MNT as long as one exists (R23). Afterwards the handles that the mount obtained are
    /// its capability.
    type Pass: Send;

    /// Accepts connections at `at`; calls wait until the volume is served. `export` is the one path
    /// that MNT knows. Listening there already counts as success.
    fn listen(
        &self,
        dataset: DatasetId,
        export: &str,
        at: SocketAddr,
        reach: Reach,
    ) -> impl Future<Output = Result<(), EndpointError>> + Send;

    /// Serves an open volume: calls that waited go on.
    fn serve(&self, volume: &Attached) -> Result<(), EndpointError>;

    /// Has the calls of a shared volume answered by its owner, another node.
    fn relay(&self, dataset: DatasetId, to: OwnerRoute) -> Result<(), EndpointError>;

    /// Holds the calls of a shared volume until they are served or relayed. What was served before
    /// is no longer answered.
    fn suspend(&self, dataset: DatasetId);

    /// Waits until calls of a shared volume wait although it is relayed: its owner cannot be
    /// reached, does not serve it, or is silent. Absent counts as such, too.
    fn disturbed(&self, dataset: DatasetId) -> impl Future<Output = ()> + Send;

    /// Returns whether that is so now.
    fn is_disturbed(&self, dataset: DatasetId) -> bool;

    /// The usage of a shared volume, as its owner answers it.
    fn stats(
        &self,
        dataset: DatasetId,
    ) -> impl Future<Output = Result<StatFs, EndpointError>> + Send;

    /// Allows MNT for our own mount(2).
    fn allow_mount(&self, dataset: DatasetId) -> Result<Self::Pass, EndpointError>;

    /// From now on every call is answered with `NFS3ERR_STALE`, whether the volume was served
    /// before or not (R25): a silent server would hold processes for ever.
    fn stale(&self, dataset: DatasetId);

    /// Answers calls that were read, closes the connections, frees the address. Absent counts as
    /// stopped.
    fn stop(&self, dataset: DatasetId) -> impl Future<Output = ()> + Send;
}
