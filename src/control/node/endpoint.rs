//! Where one volume is served: what the node needs of an NFS server.

use crate::types::{Class, Classify, DatasetId};
use crate::volume::Volume;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Whether MNT is answered now (R23): the handles that a mount obtained are its capability afterwards.
#[derive(Clone, Debug, Default)]
pub struct MountGate {
    open: Arc<AtomicUsize>,
}

impl MountGate {
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Open until the guard goes.
    #[must_use]
    pub fn open(&self) -> GateGuard {
        self.open.fetch_add(1, Ordering::AcqRel);
        GateGuard { gate: self.clone() }
    }
}

/// Keeps a gate open.
#[derive(Debug)]
pub struct GateGuard {
    gate: MountGate,
}

impl Drop for GateGuard {
    fn drop(&mut self) {
        self.gate.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is to be served.
#[derive(Clone)]
pub struct Serve {
    pub volume: Arc<Volume>,
    /// The one path that MNT knows, with its leading slash.
    pub export: String,
    /// On this address and no other.
    pub at: SocketAddr,
    /// MNT is refused while it is closed.
    pub gate: MountGate,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum EndpointError {
    /// Someone listens there already.
    #[error("address {0} is in use")]
    Taken(SocketAddr),
    /// This machine has no such address.
    #[error("address {0} does not exist on this machine")]
    Absent(SocketAddr),
    #[error("serving on {at}: {why}")]
    Failed { at: SocketAddr, why: String },
}

impl Classify for EndpointError {
    fn class(&self) -> Class {
        match self {
            Self::Taken(_) | Self::Absent(_) => Class::Unavailable,
            Self::Failed { .. } => Class::Internal,
        }
    }
}

/// Serves volumes on endpoints of their own; `app` provides it.
pub trait Endpoints: Send + Sync + 'static {
    /// Serves a volume; when it answers `Ok`, the address accepts connections.
    fn start(&self, what: Serve) -> impl Future<Output = Result<(), EndpointError>> + Send;

    /// From now on every call at `at` is answered with `NFS3ERR_STALE`, whether the volume was served there before or not
    /// (R25): a silent server would hold processes for ever.
    fn stale(&self, dataset: DatasetId, at: SocketAddr) -> impl Future<Output = Result<(), EndpointError>> + Send;

    /// Answers what was read, closes the connections, frees the address. Absent counts as stopped.
    fn stop(&self, dataset: DatasetId) -> impl Future<Output = ()> + Send;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_open_as_long_as_anyone_holds_it() {
        let gate = MountGate::default();
        assert!(!gate.is_open());
        let first = gate.open();
        let second = gate.clone().open();
        drop(first);
        assert!(gate.is_open());
        drop(second);
        assert!(!gate.is_open());
    }
}
