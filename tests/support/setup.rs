//! A small process with volumes, from parts that a test may change:
//! `VolumeSettings { volumes_max: 1, ..settings("node-a") }`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::control::node::NoMounts;
use zerofs_csi::control::{Controller, NewVolume, Pools, RequestServer, Source};
use zerofs_csi::fs::FsMemory;
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::types::SessionId;
use zerofs_csi::volume::{VolumeSettings, Volumes};

/// The stack of the program's own threads: unoptimised futures of the database are large.
const STACK_BYTES: usize = 8 << 20;

/// Runs a test as the program runs.
pub fn run(test: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .unwrap();
    let done = runtime.spawn(test);
    runtime.block_on(done).unwrap();
}

/// As [`run`], on a clock that goes on by itself while everybody waits.
pub fn paused<T: Future<Output = ()>>(test: impl FnOnce() -> T + Send) {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(Box::pin(test()));
    };
    std::thread::scope(|threads| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        thread.spawn_scoped(threads, run).unwrap();
    });
}

/// Settings of a process on `node`, without journals.
pub fn settings(node: &str) -> VolumeSettings {
    VolumeSettings {
        node: node.to_owned(),
        session: SessionId::random(),
        journal_dir: None,
        cache: DbCache::new(16 << 20),
        chunk_cache: ChunkCache::memory(16 << 20),
        flush_interval: Duration::from_millis(200),
        memory: FsMemory::new(16 << 20, 8 << 20),
        volumes_max: 64,
    }
}

/// A controller of one pool, which waits for owners no longer than a test may take.
pub fn controller(catalog: &Catalog, volumes: &Volumes) -> Controller {
    let controller = Controller::new(Pools::one("p", catalog.clone()), volumes.clone());
    controller.with_owner_timeout(Duration::from_secs(20))
}

/// The mailbox of a process, which is served until it is stopped.
pub struct Mailbox {
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Mailbox {
    pub async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

/// Serves the mailbox of a process; it looks for requests once in `poll`.
pub fn mailbox(controller: &Controller, volumes: &Volumes, poll: Duration) -> Mailbox {
    let (pools, volumes) = (controller.pools().clone(), volumes.clone());
    let stop = CancellationToken::new();
    let server = Arc::new(RequestServer::new(pools, volumes, Arc::new(NoMounts)));
    Mailbox { serving: tokio::spawn(server.serve_mailbox(poll, stop.clone())), stop }
}

/// A volume to create, with defaults but for its name and source.
pub fn new_volume(name: &str, source: Option<Source>) -> NewVolume {
    NewVolume {
        name: name.parse().unwrap(),
        size: None,
        size_limit: None,
        source,
        properties: Properties::default(),
        access_modes: vec![],
        form: Default::default(),
        parameters: BTreeMap::new(),
    }
}
