//! The pool, and the processes that work on it one after the other. Time passes when everybody
//! waits for it.

use crate::fault::{Chances, FaultStore, quick};
use crate::model::Found;
use crate::ops::{RECORD, Where};
use crate::setup;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::control::node::NoMounts;
use zerofs_csi::control::{
    Collected, ControlError, Controller, NewVolume, RequestServer, RewriteThreshold, Source,
    VolumeInfo,
};
use zerofs_csi::fs::api::{Caller, DirCookie, FileSystem, ListLimit};
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::fs::{FsError, FsMemory};
use zerofs_csi::types::{SessionId, SnapshotHandle, VolumeHandle};
use zerofs_csi::volume::{
    Clock, ExportedFs, LeaseSettings, RetainedBy, VolumeGuard, VolumeSettings, Volumes,
};

/// Small enough that most reads miss the cache.
const CHUNK_CACHE: u64 = 64 << 10;
/// Small packs are worth it, too.
const THRESHOLD: RewriteThreshold =
    RewriteThreshold { pack_bytes_min: 3 * RECORD as u64, freed_bytes_min: 2 * RECORD as u64 };
const MAILBOX_POLL: Duration = Duration::from_millis(200);

/// The time of the runtime, which is driven: it goes on from where the last process of the machine
/// was.
struct Ticks {
    base: Duration,
    started: tokio::time::Instant,
}

impl Clock for Ticks {
    fn now(&self) -> Duration {
        self.base + self.started.elapsed()
    }
}

/// A process, and a controller elsewhere, which dies with it.
#[derive(Clone)]
pub struct Process {
    pub catalog: Catalog,
    pub volumes: Volumes,
    pub controller: Arc<Controller>,
    elsewhere: Arc<Controller>,
    clock: Arc<Ticks>,
}

/// The state that outlives processes.
pub struct World {
    pub store: Arc<FaultStore>,
    home: tempfile::TempDir,
    elapsed: Duration,
    /// The interval at which the owner polls its mailbox.
    poll: Duration,
    life: Option<(Runtime, Process)>,
}

impl World {
    pub fn new() -> Self {
        Self::polling_mailbox(MAILBOX_POLL)
    }

    /// Hours of driven time are many looks.
    pub fn polling_mailbox(every: Duration) -> Self {
        let (store, home) = (FaultStore::memory(), tempfile::tempdir().unwrap());
        let mut world = Self { store, home, elapsed: Duration::ZERO, poll: every, life: None };
        let runtime = world.runtime();
        let bucket = world.bucket();
        runtime.block_on(async { drop(Catalog::create(bucket, None).await.unwrap()) });
        world.start();
        world
    }

    fn runtime(&self) -> Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    }

    pub fn bucket(&self) -> Bucket {
        Bucket::on(self.store.clone(), Default::default()).with_limits(quick())
    }

    pub fn start(&mut self) {
        let (runtime, bucket) = (self.runtime(), self.bucket());
        let (base, journals) = (self.elapsed, self.home.path().join("journals"));
        std::fs::create_dir_all(&journals).unwrap();
        let process = runtime.block_on(Process::start(bucket, base, journals, self.poll));
        self.life = Some((runtime, process));
    }

    pub fn process(&self) -> &Process {
        &self.life.as_ref().expect("a process").1
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.life.as_ref().expect("a process").0.block_on(work)
    }

    /// Nothing of the process is left, and none of its requests is under way, but for puts that
    /// arrive late.
    pub fn die(&mut self) {
        self.store.die();
        let (runtime, process) = self.life.take().expect("a process");
        self.elapsed = process.clock.now();
        drop(process);
        drop(runtime);
        self.store.heal();
    }

    /// Requests overtake each other.
    pub fn disorder(&self, seed: u64) {
        self.store.random(
            seed,
            Chances { delay: 150, delay_max: Duration::from_millis(60), ..Chances::default() },
        );
    }
}

impl Process {
    async fn start(bucket: Bucket, base: Duration, journals: PathBuf, poll: Duration) -> Self {
        let catalog = Catalog::open(bucket, None).await.unwrap();
        let clock = Arc::new(Ticks { base, started: tokio::time::Instant::now() });
        let lease = LeaseSettings { clock: clock.clone(), ..LeaseSettings::default() };
        let settings = |node: &str, journal_dir| VolumeSettings {
            journal_dir,
            cache: DbCache::new(1 << 20),
            chunk_cache: ChunkCache::memory(CHUNK_CACHE),
            memory: FsMemory::new(8 << 20, 4 << 20),
            ..setup::settings(node)
        };
        let volumes = Volumes::with_lease(settings("node", Some(journals)), lease.clone());
        let others = Volumes::with_lease(settings("controller", None), lease);
        let controller = |volumes: &Volumes| {
            Arc::new(setup::controller(&catalog, volumes).with_rewrite_threshold(THRESHOLD))
        };
        let (here, elsewhere) = (controller(&volumes), controller(&others));
        let server = RequestServer::new(here.pools().clone(), volumes.clone(), Arc::new(NoMounts));
        tokio::spawn(Arc::new(server).serve_mailbox(poll, CancellationToken::new()));
        Self { catalog, volumes, controller: here, elsewhere, clock }
    }

    /// Another node's process on the same store, with a count of requests of its own.
    pub async fn another(&self, node: &str) -> Self {
        self.on_its_own(node, self.catalog.bucket().clone().with_limits(quick())).await
    }

    /// Another node's process on a bucket of its own: with a bucket of its own its durable
    /// steps are its own, too.
    pub async fn on_its_own(&self, node: &str, bucket: Bucket) -> Self {
        let catalog = Catalog::open(bucket, None).await.unwrap();
        let settings = VolumeSettings {
            node: node.to_owned(),
            session: SessionId::random(),
            journal_dir: None,
            cache: DbCache::new(1 << 20),
            chunk_cache: ChunkCache::memory(CHUNK_CACHE),
            ..self.volumes.settings().clone()
        };
        let volumes = Volumes::with_lease(settings, self.volumes.lease().clone());
        let controller =
            Arc::new(setup::controller(&catalog, &volumes).with_rewrite_threshold(THRESHOLD));
        Self {
            catalog,
            volumes,
            elsewhere: controller.clone(),
            controller,
            clock: self.clock.clone(),
        }
    }

    pub fn controller(&self, at: Where) -> &Arc<Controller> {
        match at {
            Where::Here => &self.controller,
            Where::Elsewhere => &self.elsewhere,
        }
    }

    pub async fn collect(&self, at: Where) -> Result<Collected, ControlError> {
        let controller = self.controller(at);
        let pool = controller.pools().get(None)?;
        // Beside another at once: nothing here waits for a claim.
        Box::pin(controller.collector(pool).collect_or_wait(Duration::ZERO)).await
    }

    pub async fn create(
        &self,
        name: &str,
        source: Option<Source>,
    ) -> Result<VolumeInfo, ControlError> {
        let properties = Properties { record_bytes: RECORD as u32, ..Properties::default() };
        let new = NewVolume { properties, ..setup::new_volume(name, source) };
        Box::pin(self.controller.create_volume(None, new)).await
    }

    /// Opens it if necessary. A process that died a moment ago may still have the journal locked.
    pub async fn open(&self, volume: VolumeHandle) -> Result<VolumeGuard, String> {
        let mut last = String::new();
        for _ in 0..200 {
            match Box::pin(self.volumes.open(&self.catalog, volume.dataset)).await {
                Ok(volume) => return Ok(volume),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Err(format!("{volume} does not open: {last}"))
    }

    pub async fn read(&self, volume: VolumeHandle) -> Result<Found, String> {
        let open = self.open(volume).await?;
        read_all(&*open.fs).await.map_err(|error| format!("reading {volume}: {error}"))
    }

    pub async fn read_snapshot(&self, snapshot: SnapshotHandle) -> Result<Found, String> {
        let wrong = |error: FsError| format!("reading {snapshot}: {error}");
        let (open, catalog) = (self.volumes.open_snapshots(), &self.catalog);
        let exported =
            ExportedFs::snapshot(open, catalog, snapshot.snapshot, RetainedBy::Reader).await;
        read_all(&exported.map_err(wrong)?).await.map_err(wrong)
    }
}

/// Every file of the root, whole.
pub async fn read_all<F: FileSystem>(fs: &F) -> Result<Found, FsError> {
    let (caller, root) = (Caller::root(), fs.root());
    let limit = ListLimit { entries: 100, bytes: 1 << 16, entry_bytes: 32, with_attr: false };
    let listing = fs.readdir(&caller, root, DirCookie(0), limit).await?;
    assert!(listing.eof, "the histories make few files");
    let mut found = Found::new();
    for entry in listing.entries.iter().filter(|entry| entry.name != "." && entry.name != "..") {
        let (attr, _) = fs.lookup(&caller, root, &entry.name).await?;
        let mut data = Vec::new();
        while (data.len() as u64) < attr.size {
            let read = fs.read(&caller, attr.file, data.len() as u64, 1 << 20).await?;
            read.data.iter().for_each(|part| data.extend_from_slice(part));
        }
        found.insert(String::from_utf8(entry.name.to_vec()).unwrap(), data);
    }
    Ok(found)
}
