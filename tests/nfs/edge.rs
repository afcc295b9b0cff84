//! A server over a file system in memory, and clients of it.

use crate::support::memfs::MemFs;
use std::sync::Arc;
use tokio::net::TcpListener;
use zerofs_csi::fs::api::*;
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};
use zerofs_csi::nfs::{Budget, Endpoint, ExportId, Options, Peers, Server};

pub const EXPORT: &str = "/volume";
pub const KEY: [u8; 16] = [7; 16];

pub struct Edge {
    pub fs: Arc<MemFs>,
    pub endpoint: Arc<Endpoint<MemFs>>,
    pub server: Server<Arc<Endpoint<MemFs>>>,
}

pub fn options() -> Options {
    Options { peers: Peers::Loopback, ..Options::default() }
}

impl Edge {
    pub async fn start() -> Self {
        Self::with(options()).await
    }

    pub async fn with(options: Options) -> Self {
        Self::within(options, &Budget::new(&options.limits)).await
    }

    /// Within bytes that other servers share.
    pub async fn within(options: Options, budget: &Budget) -> Self {
        let fs = Arc::new(MemFs::default());
        let endpoint = Endpoint::new(ExportId([1; 16]), EXPORT.into());
        endpoint.publish(fs.clone(), KEY);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start_within(listener, endpoint.clone(), options, budget).unwrap();
        Self { fs, endpoint, server }
    }

    pub async fn client(&self) -> Client {
        self.client_as(&Credentials::root()).await
    }

    pub async fn client_as(&self, credentials: &Credentials) -> Client {
        Client::connect(self.server.local_addr(), credentials).await.unwrap()
    }

    pub async fn root(&self, client: &Client) -> FileHandle {
        let _pass = self.endpoint.allow_mount();
        client.mount(EXPORT).await.unwrap()
    }
}

pub fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

pub fn new_file() -> CreateHow {
    CreateHow::Unchecked(mode(0o644))
}
