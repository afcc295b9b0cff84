//! Settings with which a process opens volumes, and the locations of their parts.

use crate::catalog::{Catalog, Dataset, Snapdir};
use crate::chunk::{ChunkCache, ChunkStore};
use crate::fs::db::{DbCache, DbPlace};
use crate::fs::{FsMemory, FsOptions, FsProperties, RootAttr, SyncMode};
use crate::types::{FamilyId, Incarnation, SessionId, WallClock};
use std::path::PathBuf;
use std::time::Duration;

/// Settings with which this process opens volumes.
#[derive(Clone)]
pub struct VolumeSettings {
    /// The node's name: a restart under the same name takes its own volumes back.
    pub node: String,
    /// This run of the process.
    pub session: SessionId,
    /// The folder of the journals; none: every change waits for the store.
    pub journal_dir: Option<PathBuf>,
    /// Shared by every database of the process.
    pub cache: DbCache,
    /// Shared by every family's chunks.
    pub chunk_cache: ChunkCache,
    pub flush_interval: Duration,
    /// Shared by every open volume.
    pub memory: FsMemory,
    /// Most volumes open at once.
    pub volumes_max: usize,
}

impl VolumeSettings {
    /// Returns the location of a dataset's database.
    pub fn place(&self, pool: &Catalog, family: FamilyId, incarnation: Incarnation) -> DbPlace {
        place(pool, family, incarnation, &self.cache)
    }

    /// A family's chunks.
    pub fn chunks(&self, pool: &Catalog, family: FamilyId) -> ChunkStore {
        ChunkStore::new(pool.bucket().clone(), family, pool.keyring(), self.chunk_cache.clone())
    }

    pub(super) fn options(&self, dataset: &Dataset, journal: Option<PathBuf>) -> FsOptions {
        let properties = &dataset.properties;
        FsOptions {
            properties: fs_properties(dataset),
            flush_interval: self.flush_interval,
            memory: self.memory.clone(),
            journal,
            root: RootAttr {
                uid: properties.root_uid,
                gid: properties.root_gid,
                mode: properties.root_mode,
            },
            clock: WallClock::default(),
        }
    }
}

/// The properties of a dataset that may change while it is open.
pub(super) fn fs_properties(dataset: &Dataset) -> FsProperties {
    let properties = &dataset.properties;
    FsProperties {
        sync: sync_mode(dataset),
        quota_bytes: dataset.size,
        quota_inodes: properties.quota_inodes,
        record_bytes: properties.record_bytes,
        codec: properties.codec,
        shows_snapshots: properties.snapdir == Snapdir::Visible,
        limits: properties.limits,
    }
}

/// The property, or the default of the access modes: `always` as soon as one of them is multi-node.
fn sync_mode(dataset: &Dataset) -> SyncMode {
    match dataset.properties.sync {
        Some(sync) => sync,
        None if dataset.access_modes.iter().any(|mode| mode.starts_with("MULTI_NODE")) => {
            SyncMode::Always
        }
        None => SyncMode::Standard,
    }
}

/// As [`VolumeSettings::place`], with another cache.
pub fn place(
    pool: &Catalog,
    family: FamilyId,
    incarnation: Incarnation,
    cache: &DbCache,
) -> DbPlace {
    let sealer = pool.keyring().database_sealer(family);
    DbPlace::new(pool.bucket().clone(), incarnation, sealer, cache.clone())
}
