//! Credentials that expire, and the roll-out of others.

use super::process::Room;
use crate::support::files;
use crate::support::program::{LIMIT, Server};
use crate::support::s3::S3Server;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};

const BLOCK: usize = 48 << 10;
const BLOCKS: u64 = 8;

fn data(round: u64) -> Bytes {
    files::data(round, BLOCK).into()
}

/// Writes and commits, round after round. As a kernel does: a connection that breaks is made again,
/// and what has no answer, or was not kept, is sent again.
struct Writer {
    at: SocketAddr,
    file: FileHandle,
    committed: AtomicU64,
    enough: AtomicBool,
}

impl Writer {
    async fn work(&self) {
        let mut client = Client::connect(self.at, &Credentials::root()).await.unwrap();
        while !self.enough.load(Ordering::SeqCst) {
            let round = self.committed.load(Ordering::SeqCst) + 1;
            match self.round(&client, round).await {
                Ok(true) => self.committed.store(round, Ordering::SeqCst),
                Ok(false) => {}
                Err(()) => client = self.again().await,
            }
        }
    }

    /// `false`: it was not kept.
    async fn round(&self, client: &Client, round: u64) -> Result<bool, ()> {
        let offset = round % BLOCKS * BLOCK as u64;
        let written = client
            .write(&self.file, offset, data(round), Stability::Unstable)
            .await
            .map_err(drop)?;
        let committed = client.commit(&self.file, 0, 0).await.map_err(drop)?;
        Ok(written.verifier == committed.verifier)
    }

    async fn again(&self) -> Client {
        let since = Instant::now();
        loop {
            match Client::connect(self.at, &Credentials::root()).await {
                Ok(client) => return client,
                Err(error) => assert!(since.elapsed() < LIMIT, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for rounds that begin from now on.
    async fn more(&self, rounds: u64) {
        let (until, since) = (self.committed.load(Ordering::SeqCst) + rounds, Instant::now());
        while self.committed.load(Ordering::SeqCst) < until {
            assert!(since.elapsed() < LIMIT, "the writer is stuck");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn verify(&self) {
        let (client, last) = (self.again().await, self.committed.load(Ordering::SeqCst));
        for round in (1..=last).rev().take(BLOCKS as usize) {
            let read =
                client.read(&self.file, round % BLOCKS * BLOCK as u64, BLOCK as u32).await.unwrap();
            assert!(
                read.data == data(round),
                "what was committed in round {round} of {last} is not there"
            );
        }
    }
}

/// Options of the store but for its key.
fn options(server: &S3Server) -> String {
    let options = server.options().into_iter().filter(|(name, _)| *name != "access_key_id");
    options.map(|(name, value)| format!("{name}: \"{value}\"")).collect::<Vec<_>>().join(", ")
}

/// Writes the configuration of a pool with these lines, and returns its path.
fn configured(room: &Room, name: &str, lines: &str) -> String {
    let path = room.path(&format!("{name}.yaml"));
    let text = format!("pools: {{ a: {{ url: \"s3://test/pool\", {lines} }} }}\n");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A server on a new pool, and a writer in its dataset.
struct Scene {
    first: Server,
    client: Client,
    root: FileHandle,
    writer: Arc<Writer>,
    working: tokio::task::JoinHandle<()>,
}

impl Scene {
    async fn start(room: &Room, config: &str) -> Self {
        Room::ok_with(config, &["pool", "create"]);
        Room::ok_with(config, &["dataset", "create", "web", "--size", "1Gi"]);
        let first = room.start_on(&["--config", config]);
        let at = first.ready();
        let client = Client::connect(at, &Credentials::root()).await.unwrap();
        let root = client.mount("/web").await.unwrap();
        let file = client.create(&root, b"file", &how()).await.unwrap().handle;
        let (committed, enough) = (AtomicU64::new(0), AtomicBool::new(false));
        let writer = Arc::new(Writer { at, file, committed, enough });
        let working = tokio::spawn({
            let writer = writer.clone();
            async move { writer.work().await }
        });
        writer.more(20).await;
        Self { first, client, root, writer, working }
    }
}

fn how() -> CreateHow {
    CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() })
}

/// The store refuses the old process, which therefore can flush nothing; it hands over all the
/// same, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn expired_credentials_are_replaced_without_loss() {
    let server = S3Server::start();
    let room = Room::empty();
    let config = |key: &str| {
        let options = options(&server);
        configured(&room, key, &format!("credentials: {{ {options}, access_key_id: {key} }}"))
    };
    let (old, new) = (config("old"), config("new"));
    let Scene { first, client, root, writer, working } = Scene::start(&room, &old).await;
    server.quirks(|quirks| quirks.expired_key = Some("old"));
    // Changes that were answered from the journal survive, too.
    client.create(&root, b"made without the store", &how()).await.unwrap();
    let next = room.start_on(&["--config", &new]);
    assert_eq!(next.ready(), writer.at, "it serves on the same socket");
    // The first may have been answered before the key expired.
    writer.more(20).await;
    writer.enough.store(true, Ordering::SeqCst);
    working.await.unwrap();
    writer.verify().await;
    writer.again().await.lookup(&root, b"made without the store").await.unwrap();
    assert!(first.ends().success(), "who has handed over ends");
    next.stop();
    let checked: serde_json::Value =
        serde_json::from_str(&Room::ok_with(&new, &["check", "--json"])).unwrap();
    assert!(
        checked.as_array().unwrap().iter().all(|dataset| dataset["clean"] == true),
        "{checked}"
    );
}

/// A process in use follows the file of its credentials: wrong ones are not taken, right ones are,
/// before and after the old ones have expired.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_pool_in_use_follow_their_file() {
    let server = S3Server::start();
    let room = Room::empty();
    let file = room.path("credentials.yaml");
    let replace = |key: &str| {
        let new = room.path("credentials.new");
        std::fs::write(&new, format!("{{ {}, access_key_id: {key} }}", options(&server))).unwrap();
        std::fs::rename(new, &file).unwrap();
    };
    replace("first");
    let config = configured(&room, "pool", &format!("credentialsFile: \"{}\"", file.display()));
    let Scene { first, writer, working, .. } = Scene::start(&room, &config).await;

    server.quirks(|quirks| quirks.expired_key = Some("mistyped"));
    replace("mistyped");
    let since = Instant::now();
    while server.keys_refused() == 0 {
        assert!(since.elapsed() < LIMIT, "the file is not read again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writer.more(20).await;

    server.quirks(|quirks| quirks.expired_key = Some("first"));
    replace("second");
    writer.more(20).await;
    writer.enough.store(true, Ordering::SeqCst);
    working.await.unwrap();
    writer.verify().await;
    first.stop();
}
