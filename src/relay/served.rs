//! A shared volume that this node owns: the server that answers calls, its own kernel's and those
//! that other nodes relay.

use crate::fs::api::FileSystem;
use crate::nfs::{Budget, ClientHost, Endpoint, ExportId, InProcessServer, MountPass, Options};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;

/// Answers calls of clients whose records somebody else receives.
pub trait Answers: Send + Sync + 'static {
    /// Opens a connection for a client.
    ///
    /// # Errors
    /// No connection is possible at the moment.
    fn connect(&self, host: ClientHost) -> io::Result<UnixStream>;

    /// Returns whether what was answered before this call counts: the volume was not lost.
    fn is_valid(&self) -> bool;
}

/// The identity of a node as a client, the same whichever node answers (R20).
pub fn host_of(node: &str) -> ClientHost {
    let mut host = [0; 16];
    host.copy_from_slice(&blake3::hash(node.as_bytes()).as_bytes()[..16]);
    ClientHost::Node(host)
}

/// One opening of a volume. The next opening has another one, so that no reply of this one can
/// arrive as the next one's.
pub struct Served<F: FileSystem> {
    server: InProcessServer<Arc<Endpoint<F>>>,
    endpoint: Arc<Endpoint<F>>,
    /// Endpoints let MNT through only during our own mount(2), and peers check it likewise.
    _pass: MountPass<F>,
    ended: AtomicBool,
    /// Answers ESTALE to everything, until the volume is unstaged.
    is_stale: bool,
}

impl<F: FileSystem> Served<F> {
    /// Serves an open file system as `export`, within bytes that other servers share.
    pub fn open(
        id: ExportId,
        export: String,
        (fs, handle_key): (Arc<F>, [u8; 16]),
        options: Options,
        budget: &Budget,
    ) -> Arc<Self> {
        let endpoint = Endpoint::new(id, export);
        endpoint.publish(fs, handle_key);
        Arc::new(Self::over(endpoint, options, budget, false))
    }

    /// Answers every call with `NFS3ERR_STALE` (R25).
    pub fn stale(id: ExportId, export: String, options: Options, budget: &Budget) -> Arc<Self> {
        let endpoint = Endpoint::new(id, export);
        endpoint.lose();
        Arc::new(Self::over(endpoint, options, budget, true))
    }

    fn over(endpoint: Arc<Endpoint<F>>, options: Options, budget: &Budget, is_stale: bool) -> Self {
        Self {
            server: InProcessServer::new(endpoint.clone(), options, budget),
            _pass: endpoint.allow_mount(),
            endpoint,
            ended: AtomicBool::new(false),
            is_stale,
        }
    }

    /// No reply that is sent from here on counts; the connections close.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.server.close();
        self.endpoint.remove();
    }

    /// Answers the calls that were received, and closes. Returns false if `grace` was not enough.
    pub async fn stop(&self, grace: Duration) -> bool {
        let answered = self.server.stop(grace).await;
        self.end();
        answered
    }
}

impl<F: FileSystem> Answers for Served<F> {
    fn connect(&self, host: ClientHost) -> io::Result<UnixStream> {
        if !self.is_valid() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.server.connect(host)
    }

    fn is_valid(&self) -> bool {
        let ended = self.ended.load(Ordering::SeqCst);
        !ended && (self.is_stale || self.endpoint.is_served())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_the_same_client_everywhere_and_no_other() {
        assert_eq!(host_of("node-a"), host_of("node-a"));
        assert_ne!(host_of("node-a"), host_of("node-b"));
    }
}
