//! Processes on a pool, from defaults that a test may change:
//!
//! ```text
//! let world = World::new().await;            // a pool in memory, and a process of node-a
//! let other = world.beside("node-b");        // a process of another node on the same pool
//! let slow = World::builder("node-c").clock(clock).journals(folder).create(store.bucket()).await;
//! ```

use super::clock::Fast;
use super::files;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::{Catalog, Dataset, Properties, RevocationReason};
use zerofs_csi::chunk::ChunkCache;
use zerofs_csi::control::node::NoMounts;
use zerofs_csi::control::{
    Collected, Collector, ControlError, Controller, NewVolume, Pool, Pools, RequestServer, Source,
    VolumeInfo, takeover,
};
use zerofs_csi::fs::FsMemory;
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::fs::db::DbCache;
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{SessionId, SnapshotHandle, VolumeHandle};
use zerofs_csi::volume::{Attached, Clock, LeaseSettings, VolumeGuard, VolumeSettings, Volumes};

/// A process before it starts.
pub struct WorldBuilder {
    settings: VolumeSettings,
    lease: LeaseSettings,
}

impl WorldBuilder {
    /// Its journals are in a folder; by default it has none.
    pub fn journals(mut self, folder: impl Into<PathBuf>) -> Self {
        self.settings.journal_dir = Some(folder.into());
        self
    }

    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.lease.clock = clock;
        self
    }

    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease.lease = lease;
        self
    }

    pub fn settings(mut self, change: impl FnOnce(&mut VolumeSettings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Its volumes alone, of whatever pool.
    pub fn volumes(self) -> Volumes {
        Volumes::with_lease(self.settings, self.lease)
    }

    /// On a pool that there is.
    pub fn on(self, catalog: Catalog) -> World {
        let volumes = self.volumes();
        let controller = Arc::new(patient(Pools::one("p", catalog.clone()), &volumes));
        World { catalog, volumes, controller }
    }

    /// On the pool of a bucket, which keeps count of its own requests.
    pub async fn open(self, bucket: Bucket) -> World {
        self.on(Catalog::open(bucket, None).await.unwrap())
    }

    /// On a new pool.
    pub async fn create(self, bucket: Bucket) -> World {
        self.on(Catalog::create(bucket, None).await.unwrap())
    }
}

/// A controller, which waits for owners no longer than a test may take.
fn patient(pools: Pools, volumes: &Volumes) -> Controller {
    Controller::new(pools, volumes.clone()).with_owner_timeout(Duration::from_secs(20))
}

/// A process on a pool.
#[derive(Clone)]
pub struct World {
    pub catalog: Catalog,
    pub volumes: Volumes,
    pub controller: Arc<Controller>,
}

impl World {
    pub fn builder(node: &str) -> WorldBuilder {
        let settings = VolumeSettings {
            node: node.to_owned(),
            session: SessionId::random(),
            journal_dir: None,
            cache: DbCache::new(16 << 20),
            chunk_cache: ChunkCache::memory(16 << 20),
            flush_interval: Duration::from_millis(200),
            memory: FsMemory::new(16 << 20, 8 << 20),
            volumes_max: 64,
        };
        WorldBuilder { settings, lease: LeaseSettings::default() }
    }

    /// A process of `node-a` on a pool in memory.
    pub async fn new() -> Self {
        Self::builder("node-a").create(Bucket::memory()).await
    }

    /// With an open volume.
    pub async fn with_open() -> (Self, VolumeHandle, VolumeGuard) {
        let world = Self::new().await;
        let volume = world.volume("a").await;
        let open = world.open(volume).await;
        (world, volume, open)
    }

    /// A process of another node on the same pool.
    pub fn beside(&self, node: &str) -> Self {
        Self::builder(node).on(self.catalog.clone())
    }

    /// As [`Self::beside`], where time goes a hundred times faster: leases of others end soon.
    pub fn beside_in_fast_time(&self, node: &str) -> Self {
        Self::builder(node).clock(Arc::new(Fast(100))).on(self.catalog.clone())
    }

    /// Another controller of this process, to be changed.
    pub fn another_controller(&self) -> Controller {
        patient(self.controller.pools().clone(), &self.volumes)
    }

    pub fn pool(&self) -> &Pool {
        self.controller.pools().get(None).unwrap()
    }

    pub fn bucket(&self) -> &Bucket {
        self.catalog.bucket()
    }

    pub fn failpoints(&self) -> &Failpoints {
        self.bucket().failpoints()
    }

    pub fn session(&self) -> SessionId {
        self.volumes.settings().session
    }

    pub async fn create(
        &self,
        name: &str,
        source: Option<Source>,
    ) -> Result<VolumeInfo, ControlError> {
        self.controller.create_volume(None, new_volume(name, source)).await
    }

    /// A new, empty volume.
    pub async fn volume(&self, name: &str) -> VolumeHandle {
        self.create(name, None).await.unwrap().handle
    }

    pub async fn copy(&self, name: &str, source: Source) -> VolumeHandle {
        self.create(name, Some(source)).await.unwrap().handle
    }

    pub async fn open(&self, volume: VolumeHandle) -> VolumeGuard {
        self.volumes.open(&self.catalog, volume.dataset).await.unwrap()
    }

    pub async fn attach(&self, volume: VolumeHandle) -> Attached {
        self.volumes.attach(&self.catalog, volume.dataset).await.unwrap()
    }

    /// Opens a volume that another node may have, waiting for it.
    pub async fn take(
        &self,
        volume: VolumeHandle,
        patience: Duration,
    ) -> Result<Attached, ControlError> {
        let carriers = Default::default();
        takeover::open(self.pool(), &self.volumes, &carriers, volume.dataset, patience).await
    }

    /// Closes a volume that nobody else here uses.
    pub async fn close(&self, open: VolumeGuard) {
        let dataset = open.dataset.id();
        drop(open);
        self.volumes.close(dataset).await.unwrap();
    }

    /// Closes every volume of the process.
    pub async fn close_all(&self) {
        close_all(&self.volumes).await;
    }

    /// Like a controller that sees the owner's node tainted, or gone.
    pub async fn revoke(&self, volume: VolumeHandle, why: RevocationReason) {
        let owner = self.record(volume).await.owner.expect("somebody has it");
        assert!(self.controller.revoke_claim(volume, owner.claim, why).await.unwrap());
    }

    pub async fn snapshot(&self, volume: VolumeHandle, name: &str) -> SnapshotHandle {
        let made = self.controller.create_snapshot(volume, name.parse().unwrap()).await;
        made.unwrap().handle
    }

    pub async fn csi_snapshot(&self, volume: VolumeHandle, name: &str) -> SnapshotHandle {
        let made = self.controller.create_csi_snapshot(volume, name.parse().unwrap()).await;
        made.unwrap().handle
    }

    pub async fn record(&self, volume: VolumeHandle) -> Dataset {
        self.catalog.dataset_by_id(volume.dataset).await.unwrap().unwrap().record
    }

    pub fn serve_mailbox(&self, poll: Duration) -> Mailbox {
        let (pools, volumes) = (self.controller.pools().clone(), self.volumes.clone());
        let stop = CancellationToken::new();
        let server = Arc::new(RequestServer::new(pools, volumes, Arc::new(NoMounts)));
        Mailbox { serving: tokio::spawn(server.serve_mailbox(poll, stop.clone())), stop }
    }

    /// Writes a file durably and releases the volume.
    pub async fn write(&self, volume: VolumeHandle, name: &str, content: &[u8]) {
        let open = self.open(volume).await;
        files::top::write(&*open.fs, name, content).await;
        self.close(open).await;
    }

    /// Every file of the root, whole.
    pub async fn read(&self, volume: VolumeHandle) -> BTreeMap<String, Vec<u8>> {
        let open = self.open(volume).await;
        let found = files::tree(&*open.fs, open.fs.root()).await.unwrap();
        self.close(open).await;
        found.into_iter().map(|(path, object)| (path[1..].to_owned(), object.content)).collect()
    }

    pub async fn collect(&self) -> Collected {
        self.collector().collect().await.unwrap()
    }

    pub fn collector(&self) -> Collector {
        self.controller.collector(self.pool())
    }

    /// Bytes of all packs.
    pub async fn stored(&self) -> u64 {
        self.bucket().list("packs/").await.unwrap().iter().map(|object| object.bytes).sum()
    }

    /// Nothing of any volume is left.
    pub async fn assert_empty(&self, when: &str) {
        // Objects that a compactor writes after its database was closed are strays for a later
        // collection.
        for _ in 0..20 {
            if self.bucket().list("vol/").await.unwrap().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
            self.collect().await;
        }
        for prefix in ["rewrite-pending/", "packs/", "vol/"] {
            let left: Vec<String> =
                self.bucket().list(prefix).await.unwrap().into_iter().map(|o| o.key).collect();
            assert!(left.is_empty(), "{when}: {left:?}");
        }
        assert!(self.catalog.datasets().await.unwrap().is_empty(), "{when}");
        assert!(self.catalog.snapshots(None).await.unwrap().is_empty(), "{when}");
    }
}

pub async fn close_all(volumes: &Volumes) {
    let open = volumes.list().iter().map(|volume| volume.dataset.id()).collect();
    volumes.close_within(open, Duration::from_secs(60)).await.unwrap();
}

/// How often a step was passed.
pub fn passed(failpoints: &Failpoints, step: &str) -> u64 {
    failpoints.passed().get(step).copied().unwrap_or(0)
}

/// Waits until a step is passed more than `before` times.
pub async fn until_passed(failpoints: &Failpoints, step: &str, before: u64) {
    let reached = async {
        while passed(failpoints, step) <= before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(60), reached).await;
    reached.unwrap_or_else(|_| panic!("nothing comes by {step}"));
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
