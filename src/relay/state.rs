//! State shared by the connections of one endpoint.

use super::budget::VolumeShare;
use super::{Dialer, Route};
use crate::nfs::{ClientHost, Peers, Stream};
use crate::types::DatasetId;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub struct EndpointState {
    pub dataset: DatasetId,
    pub routes: watch::Sender<Route>,
    pub host: ClientHost,
    pub dialer: Arc<Dialer>,
    /// Bytes that its unanswered calls may take.
    pub share: VolumeShare,
    /// Closes the connections.
    pub cut: CancellationToken,
    pub peers: Peers,
    pub connections_max: usize,
    pub passes: AtomicUsize,
    /// Calls wait although there is a route.
    pub disturbed: watch::Sender<bool>,
    /// When the last reply arrived, on any connection.
    pub answered_at: Mutex<Instant>,
}

impl EndpointState {
    pub fn may_mount(&self) -> bool {
        self.passes.load(Ordering::Acquire) > 0
    }

    pub fn disturb(&self) {
        self.disturbed.send_if_modified(|now| !std::mem::replace(now, true));
    }

    /// A reply has arrived.
    pub fn answered(&self) {
        *self.answered_at.lock() = Instant::now();
        self.clear_disturbance();
    }

    /// The time for which a call has waited, and nothing else was answered either: calls that wait
    /// for a limit are answered one after the other.
    pub fn silence(&self, since: Instant) -> Duration {
        since.max(*self.answered_at.lock()).elapsed()
    }

    pub fn clear_disturbance(&self) {
        if *self.disturbed.borrow() {
            self.disturbed.send_if_modified(|now| std::mem::replace(now, false));
        }
    }

    /// Ends a client's connection from our side: whoever reads from it sees its end.
    pub fn cut_one(&self, stream: &Stream) {
        if let Err(error) = rustix::net::shutdown(stream, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "a client has gone");
        }
    }
}
