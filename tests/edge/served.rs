//! A dataset behind a server of ours, opened again and again.

use crate::support::volume::Dataset;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::fs::Fs;
use zerofs_csi::fs::check::check;
use zerofs_csi::fs::db::Reader;
use zerofs_csi::nfs::client::{Client, ClientError, Credentials, FileHandle};
use zerofs_csi::nfs::{Endpoint, ExportId, Options, Peers, Server};

pub const EXPORT: &str = "/volume";
/// The same for every opening, as the dataset's record has it (R7).
const KEY: [u8; 16] = [7; 16];

/// The state that outlives a process: the bucket and the nodes' disks.
pub struct Host {
    pub dataset: Dataset,
    bucket: Bucket,
    folder: tempfile::TempDir,
    node: u32,
}

/// The end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    Process,
    /// The journal is gone.
    Node,
}

impl Host {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::memory();
        let dataset = Dataset::new(bucket.clone(), folder.path().to_owned());
        Self { dataset, bucket, folder, node: 0 }
    }

    fn journals(&self) -> PathBuf {
        self.folder.path().join(self.node.to_string())
    }

    /// A process with nothing in memory, on this node.
    pub async fn serve(&mut self) -> Served {
        let journals = self.journals();
        std::fs::create_dir_all(&journals).unwrap();
        self.dataset.reborn(self.bucket.clone(), Some(journals.as_path()));
        Served::start(Arc::new(self.dataset.open().await)).await
    }

    /// A process on another node, whatever becomes of the last one.
    pub async fn serve_elsewhere(&mut self) -> Served {
        self.node += 1;
        self.serve().await
    }

    /// The process that served ends, and the next one serves.
    pub async fn again(&mut self, old: Served, death: Death) -> Served {
        drop(old);
        match death {
            Death::Process => self.serve().await,
            Death::Node => self.serve_elsewhere().await,
        }
    }

    /// The durable rows hold together.
    pub async fn check(&self) {
        let reader = Reader::newest(&self.dataset.place).await.unwrap();
        let report = check(&reader).await.unwrap();
        reader.close().await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.findings);
    }
}

pub struct Served {
    pub fs: Arc<Fs>,
    endpoint: Arc<Endpoint<Fs>>,
    pub server: Server<Arc<Endpoint<Fs>>>,
}

impl Served {
    async fn start(fs: Arc<Fs>) -> Self {
        let endpoint = Endpoint::new(ExportId([1; 16]), EXPORT.into());
        endpoint.publish(fs.clone(), KEY);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = Options { peers: Peers::Loopback, ..Options::default() };
        let server = Server::start(listener, endpoint.clone(), options).unwrap();
        Self { fs, endpoint, server }
    }

    pub async fn client(&self, credentials: &Credentials) -> Client {
        Client::connect(self.server.local_addr(), credentials).await.unwrap()
    }

    pub async fn root(&self, client: &Client) -> FileHandle {
        self.mount(client, EXPORT).await.unwrap()
    }

    pub async fn mount(&self, client: &Client, path: &str) -> Result<FileHandle, ClientError> {
        let _pass = self.endpoint.allow_mount();
        client.mount(path).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.endpoint.remove();
    }
}
