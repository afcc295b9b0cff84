//! Clients at work that accept no error, and know what must be there.

use crate::support::files;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use zerofs_csi::fs::api::{CreateHow, SetAttr, Stability};
use zerofs_csi::nfs::NfsStat;
use zerofs_csi::nfs::client::{Client, ClientError, Credentials, FileHandle};

const BLOCK: usize = 48 << 10;
/// Blocks of a worker's file.
const BLOCKS: u64 = 24;

/// The workers' observations.
#[derive(Default)]
pub struct Seen {
    pub calls: AtomicU64,
    longest_micros: AtomicU64,
    enough: AtomicBool,
}

impl Seen {
    /// The longest that a call took.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_micros.load(Ordering::Relaxed))
    }

    async fn timed<T>(&self, call: impl Future<Output = T>) -> T {
        let since = Instant::now();
        let answer = call.await;
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.longest_micros
            .fetch_max(u64::try_from(since.elapsed().as_micros()).unwrap(), Ordering::Relaxed);
        answer
    }
}

pub struct Load {
    pub seen: Arc<Seen>,
    workers: Vec<JoinHandle<Worker>>,
}

impl Load {
    /// Each worker has a connection of its own, which must last.
    pub async fn start(server: SocketAddr, workers: u64) -> Self {
        let seen = Arc::new(Seen::default());
        let mut all = Vec::new();
        for n in 0..workers {
            let mut worker = Worker::new(server, n, seen.clone()).await;
            all.push(tokio::spawn(async move {
                while !worker.seen.enough.load(Ordering::Relaxed) {
                    worker.round().await;
                }
                worker
            }));
        }
        Self { seen, workers: all }
    }

    /// Waits until the workers have made this many calls more.
    pub async fn more(&self, calls: u64) {
        let until = self.seen.calls.load(Ordering::Relaxed) + calls;
        let since = Instant::now();
        while self.seen.calls.load(Ordering::Relaxed) < until {
            assert!(since.elapsed() < crate::support::program::LIMIT, "the clients are stuck");
            assert!(!self.workers.iter().any(JoinHandle::is_finished), "a client has failed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the work, and compares everything.
    pub async fn finish(self) {
        self.seen.enough.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.unwrap().verify().await;
        }
    }
}

struct Worker {
    client: Client,
    seen: Arc<Seen>,
    dir: FileHandle,
    file: FileHandle,
    /// The last committed value of each block.
    committed: Vec<u64>,
    round: u64,
}

fn data(block: u64, round: u64) -> Bytes {
    files::data((block << 32) ^ round, BLOCK).into()
}

fn new_file() -> CreateHow {
    CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() })
}

impl Worker {
    async fn new(server: SocketAddr, n: u64, seen: Arc<Seen>) -> Self {
        let client = Client::connect(server, &Credentials::root()).await.unwrap();
        let root = client.mount("/web").await.unwrap();
        let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
        let dir = client.mkdir(&root, format!("worker-{n}").as_bytes(), &set).await.unwrap().handle;
        let file = client.create(&dir, b"file", &new_file()).await.unwrap().handle;
        Self { client, seen, dir, file, committed: vec![0; BLOCKS as usize], round: 0 }
    }

    async fn round(&mut self) {
        self.round += 1;
        let round = self.round;
        let blocks: Vec<u64> = (0..4).map(|i| (round * 7 + i * 5) % BLOCKS).collect();
        self.write(&blocks, round).await;
        for block in blocks {
            self.committed[block as usize] = round;
        }
        self.read(round % BLOCKS).await;
        self.names(round).await;
    }

    /// Like a kernel: data that a server did not keep, by its verifier, is sent again (RFC 1813,
    /// 3.3.7).
    async fn write(&self, blocks: &[u64], round: u64) {
        loop {
            let mut verifiers = Vec::new();
            for block in blocks {
                let bytes = data(*block, round);
                let write =
                    self.client.write(&self.file, block * BLOCK as u64, bytes, Stability::Unstable);
                let written = self.seen.timed(write).await.unwrap();
                assert_eq!(written.count as usize, BLOCK);
                verifiers.push(written.verifier);
            }
            let commit = self.seen.timed(self.client.commit(&self.file, 0, 0)).await.unwrap();
            if verifiers.iter().all(|verifier| *verifier == commit.verifier) {
                return;
            }
        }
    }

    async fn read(&self, block: u64) {
        let round = self.committed[block as usize];
        if round > 0 {
            let read = self
                .seen
                .timed(self.client.read(&self.file, block * BLOCK as u64, BLOCK as u32))
                .await
                .unwrap();
            assert!(
                read.data == data(block, round),
                "block {block} is not what was committed in round {round}"
            );
        }
    }

    /// A guarded CREATE, a RENAME and a REMOVE: done twice, each would fail.
    async fn names(&self, round: u64) {
        let (made, moved) = (format!("made-{round}"), format!("moved-{round}"));
        self.seen.timed(self.client.create(&self.dir, made.as_bytes(), &new_file())).await.unwrap();
        let rename =
            self.client.rename((&self.dir, made.as_bytes()), (&self.dir, moved.as_bytes()));
        self.seen.timed(rename).await.unwrap();
        if round > 3 {
            let old = format!("moved-{}", round - 3);
            self.seen.timed(self.client.remove(&self.dir, old.as_bytes())).await.unwrap();
        }
    }

    async fn verify(self) {
        for block in 0..BLOCKS {
            self.read(block).await;
        }
        for round in (1..=self.round).rev().take(6) {
            let found = self.client.lookup(&self.dir, format!("moved-{round}").as_bytes()).await;
            match found {
                Ok(_) => assert!(round + 3 > self.round, "moved-{round} was removed"),
                Err(ClientError::Status(NfsStat::NoEnt)) => {
                    assert!(round + 3 <= self.round, "moved-{round} is gone");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
