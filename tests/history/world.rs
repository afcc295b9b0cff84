//! The pool, and the processes that work on it one after the other. Time passes when everybody
//! waits for it.

use crate::model::Found;
use crate::ops::{RECORD, Where};
use crate::support::fault::{Chances, FaultStore, quick};
use crate::support::files;
use crate::support::run::paused_runtime;
use crate::support::world::{self as support, WorldBuilder};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::{Catalog, Properties};
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::control::{
    Collected, ControlError, Controller, NewVolume, RewriteThreshold, Source, VolumeInfo,
};
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::fs::{FsError, FsMemory};
use zerofs_csi::types::{SnapshotHandle, VolumeHandle};
use zerofs_csi::volume::{Clock, ExportedFs, RetainedBy, VolumeGuard, Volumes};

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
    folder: tempfile::TempDir,
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
        let (store, folder) = (FaultStore::memory(), tempfile::tempdir().unwrap());
        let mut world = Self { store, folder, elapsed: Duration::ZERO, poll: every, life: None };
        let bucket = world.store.quick_bucket();
        paused_runtime().block_on(async { drop(Catalog::create(bucket, None).await.unwrap()) });
        world.start();
        world
    }

    pub fn start(&mut self) {
        let (runtime, bucket) = (paused_runtime(), self.store.quick_bucket());
        let (base, journals) = (self.elapsed, self.folder.path().join("journals"));
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

/// A process with small caches.
fn small(node: &str, clock: Arc<Ticks>) -> WorldBuilder {
    support::World::builder(node).clock(clock).settings(|settings| {
        settings.cache = DbCache::new(1 << 20);
        settings.chunk_cache = ChunkCache::memory(CHUNK_CACHE);
        settings.memory = FsMemory::new(8 << 20, 4 << 20);
    })
}

fn with_threshold(world: &support::World) -> Arc<Controller> {
    Arc::new(world.another_controller().with_rewrite_threshold(THRESHOLD))
}

impl Process {
    async fn start(bucket: Bucket, base: Duration, journals: PathBuf, poll: Duration) -> Self {
        let catalog = Catalog::open(bucket, None).await.unwrap();
        let clock = Arc::new(Ticks { base, started: tokio::time::Instant::now() });
        let here = small("node", clock.clone()).journals(journals).on(catalog.clone());
        let elsewhere = small("controller", clock.clone()).on(catalog);
        // Served for as long as the process lives.
        here.serve_mailbox(poll);
        let (elsewhere, controller) = (with_threshold(&elsewhere), with_threshold(&here));
        Self { catalog: here.catalog, volumes: here.volumes, controller, elsewhere, clock }
    }

    /// Another node's process on the same store, with a count of requests of its own.
    pub async fn another(&self, node: &str) -> Self {
        self.on_its_own(node, self.catalog.bucket().clone().with_limits(quick())).await
    }

    /// Another node's process on a bucket of its own: with a bucket of its own its durable
    /// steps are its own, too.
    pub async fn on_its_own(&self, node: &str, bucket: Bucket) -> Self {
        let clock = self.clock.clone();
        let world = small(node, clock.clone()).open(bucket).await;
        let controller = with_threshold(&world);
        let support::World { catalog, volumes, .. } = world;
        Self { catalog, volumes, elsewhere: controller.clone(), controller, clock }
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
        let new = NewVolume { properties, ..support::new_volume(name, source) };
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
    let found = files::tree(fs, fs.root()).await?.into_iter();
    Ok(found.map(|(path, object)| (path[1..].to_owned(), object.content)).collect())
}
