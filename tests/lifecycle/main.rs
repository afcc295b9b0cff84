//! Datasets, snapshots and clones through the use cases: any order of creation and deletion, a
//! failure at every durable step, and requests that do not depend on how much a volume holds.

// As the library: an open volume is a deep type.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod channel;
mod claims;
mod closing;
mod cluster;
mod cold_reads;
mod collecting;
mod copied_state_dir;
mod deduplication;
mod detach;
mod diff;
#[path = "../support/fault.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod fault;
mod groups;
mod handover;
mod leases;
mod leftovers;
mod mailbox;
mod many;
mod memory;
mod mount_group;
mod node_release;
mod orders;
mod policies;
mod read_only;
mod requests;
mod restore;
mod rewriting;
mod scrubbing;
#[path = "../support/setup.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod setup;
mod snapdir;
mod space;
mod steps;
mod takeover;
mod two_owners;
mod unfinished;

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::Catalog;
use zerofs_csi::control::{ControlError, Controller, Source, VolumeInfo};
use zerofs_csi::fs::api::{Caller, CreateHow, FileSystem, SetAttr, Stability};
use zerofs_csi::types::{EntryName, SnapshotHandle, VolumeHandle};
use zerofs_csi::volume::{BootClock, Clock, LeaseSettings, VolumeGuard, VolumeSettings, Volumes};

pub use setup::run;

/// A process on a pool in memory.
pub struct World {
    pub catalog: Catalog,
    pub volumes: Volumes,
    pub controller: Arc<Controller>,
}

impl World {
    pub async fn new() -> Self {
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        Self::on(catalog, "node-a")
    }

    /// With an open volume.
    pub async fn with_open() -> (Self, VolumeHandle, VolumeGuard) {
        let world = Self::new().await;
        let volume = world.create("a", None).await.unwrap().handle;
        let open = world.open(volume).await;
        (world, volume, open)
    }

    /// Another process on the same pool.
    pub fn on(catalog: Catalog, node: &str) -> Self {
        Self::under(catalog, node, None, LeaseSettings::default())
    }

    /// With its journals in a folder, and with its own idea of time.
    pub fn under(
        catalog: Catalog,
        node: &str,
        journal_dir: Option<PathBuf>,
        lease: LeaseSettings,
    ) -> Self {
        let settings = VolumeSettings { journal_dir, ..setup::settings(node) };
        let volumes = Volumes::with_lease(settings, lease);
        let controller = Arc::new(setup::controller(&catalog, &volumes));
        Self { catalog, volumes, controller }
    }

    pub async fn create(
        &self,
        name: &str,
        source: Option<Source>,
    ) -> Result<VolumeInfo, ControlError> {
        self.controller.create_volume(None, setup::new_volume(name, source)).await
    }

    pub async fn open(&self, volume: VolumeHandle) -> VolumeGuard {
        self.volumes.open(&self.catalog, volume.dataset).await.unwrap()
    }

    pub async fn snapshot(&self, volume: VolumeHandle, name: &str) -> SnapshotHandle {
        let made = self.controller.create_snapshot(volume, name.parse().unwrap()).await;
        made.unwrap().handle
    }

    pub fn serve_mailbox(&self, poll: Duration) -> setup::Mailbox {
        setup::mailbox(&self.controller, &self.volumes, poll)
    }

    /// Writes a file durably and releases the volume.
    pub async fn write(&self, volume: VolumeHandle, name: &str, data: &[u8]) {
        let open = self.open(volume).await;
        let (caller, name) = (Caller::root(), EntryName::try_from(name.as_bytes()).unwrap());
        let how = CreateHow::Unchecked(SetAttr {
            mode: Some(0o644),
            size: Some(0),
            ..SetAttr::default()
        });
        let file = open.fs.create(&caller, open.fs.root(), &name, how).await.unwrap().attr.file;
        for (i, part) in data.chunks(1 << 20).enumerate() {
            open.fs
                .write(
                    &caller,
                    file,
                    (i as u64) << 20,
                    Bytes::copy_from_slice(part),
                    Stability::Unstable,
                )
                .await
                .unwrap();
        }
        open.fs.commit(&caller, file, 0, 0).await.unwrap();
        drop(open);
        self.volumes.close(volume.dataset).await.unwrap();
    }

    /// Every file of the root, whole.
    pub async fn read(&self, volume: VolumeHandle) -> BTreeMap<String, Vec<u8>> {
        let open = self.open(volume).await;
        let (caller, root) = (Caller::root(), open.fs.root());
        let limit = zerofs_csi::fs::api::ListLimit {
            entries: 1000,
            bytes: 1 << 20,
            entry_bytes: 32,
            with_attr: false,
        };
        let listing = open.fs.readdir(&caller, root, Default::default(), limit).await.unwrap();
        assert!(listing.eof);
        let mut found = BTreeMap::new();
        for entry in listing.entries.iter().filter(|e| e.name != "." && e.name != "..") {
            let (attr, _) = open.fs.lookup(&caller, root, &entry.name).await.unwrap();
            let mut data = Vec::new();
            while (data.len() as u64) < attr.size {
                let read =
                    open.fs.read(&caller, attr.file, data.len() as u64, 1 << 20).await.unwrap();
                read.data.iter().for_each(|part| data.extend_from_slice(part));
            }
            found.insert(String::from_utf8(entry.name.to_vec()).unwrap(), data);
        }
        drop(open);
        self.volumes.close(volume.dataset).await.unwrap();
        found
    }

    pub async fn collect(&self) -> zerofs_csi::control::Collected {
        let pool = self.controller.pools().get(None).unwrap();
        self.controller.collector(pool).collect().await.unwrap()
    }

    /// Nothing of any volume is left.
    pub async fn assert_empty(&self, when: &str) {
        let bucket = self.catalog.bucket();
        // Objects that a compactor writes after its database was closed are strays for a later
        // collection.
        for _ in 0..20 {
            if bucket.list("vol/").await.unwrap().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
            self.collect().await;
        }
        for prefix in ["rewrite-pending/", "packs/", "vol/"] {
            let left: Vec<String> =
                bucket.list(prefix).await.unwrap().into_iter().map(|o| o.key).collect();
            assert!(left.is_empty(), "{when}: {left:?}");
        }
        assert!(self.catalog.datasets().await.unwrap().is_empty(), "{when}");
        assert!(self.catalog.snapshots(None).await.unwrap().is_empty(), "{when}");
    }
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

/// Bytes that are a function of a seed.
pub fn data(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// A clock that goes on when it is told to.
#[derive(Default)]
pub struct Driven(AtomicU64);

impl Driven {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for Driven {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

/// A clock that runs this many times faster.
pub struct Fast(pub u32);

impl Clock for Fast {
    fn now(&self) -> Duration {
        BootClock.now() * self.0
    }
}
