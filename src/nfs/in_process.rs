//! A server without a listener: its connections are socket pairs, whose other ends the caller has.
//!
//! A relay uses it: it receives the records of a client itself, and has them answered here, or by
//! such a server in another process. Whoever attaches a connection vouches for its client.

use super::budget::{Budget, Count};
use super::connection::{Connection, Peer};
use super::export::ExportTable;
use super::peer::Trust;
use super::rpc::ClientHost;
use super::shared::{Options, Shared};
use super::stream::Stream;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

/// A running server. Dropping it stops it without draining; see [`InProcessServer::stop`].
pub struct InProcessServer<T> {
    shared: Arc<Shared<T>>,
    tasks: TaskTracker,
    open: Count,
}

impl<T> Drop for InProcessServer<T> {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl<T: ExportTable> InProcessServer<T> {
    /// Serves `table`, within bytes that other servers of the process share.
    pub fn new(table: T, options: Options, budget: &Budget) -> Self {
        let shared = Arc::new(Shared::new(table, options, budget));
        Self { shared, tasks: TaskTracker::new(), open: Count::default() }
    }

    /// Opens a connection for a client of that host, and returns its other end. Must be called
    /// within a runtime.
    ///
    /// # Errors
    /// The process has no file descriptor left, the server has its most connections, or it stops.
    pub fn connect(&self, host: ClientHost) -> io::Result<UnixStream> {
        if self.shared.stop.is_cancelled() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if self.open.now() >= self.shared.options.limits.connections {
            return Err(io::Error::other("too many connections"));
        }
        let (ours, theirs) = UnixStream::pair()?;
        let (counted, shared) = (self.open.enter(), self.shared.clone());
        self.tasks.spawn(async move {
            let (stream, peer) = (Stream::Local(ours), Peer::relayed(host));
            Connection::new(stream, peer, shared, Trust::Whole).run().await;
            drop(counted);
        });
        Ok(theirs)
    }

    /// Stops reading, finishes the calls in progress, sends their replies and closes. Returns false
    /// if `grace` was not enough.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.shared.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait()).await.is_ok()
    }

    /// Closes the connections. Calls in progress end by themselves, unanswered.
    pub fn close(&self) {
        self.shared.stop.cancel();
        self.shared.cut.cancel();
    }
}
