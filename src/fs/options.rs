//! Options for opening a dataset, and the memory that open datasets share.

use super::FsError;
use super::api::SetAttr;
use super::content::ContentMemory;
use super::inode::InodeMemory;
use super::permission;
use super::snapshot_fs::SnapshotMemory;
use crate::chunk::Codec;
use crate::types::{IoLimits, SyncMode, WallClock};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The part of a cache that is for decoded extents: 300 bytes describe 32 KiB, a kilobyte an inode.
const RECORDS_SHARE: u64 = 4;
/// The part that is for inodes of snapshots, which are read only now and then.
const SNAPSHOT_SHARE: u64 = 16;

/// Memory that the datasets opened with it share: written data that is not in the store yet, and
/// cached extents, inodes and directories.
#[derive(Clone)]
pub struct FsMemory {
    pub(super) content: ContentMemory,
    pub(super) inodes: Arc<InodeMemory>,
    snapshots: SnapshotMemory,
}

impl FsMemory {
    /// `dirty_bytes`: most bytes of written data. `cache_bytes`: for extents, inodes and
    /// directories.
    pub fn new(dirty_bytes: u64, cache_bytes: u64) -> Self {
        let records_bytes = cache_bytes / RECORDS_SHARE;
        let snapshots = SnapshotMemory::new(cache_bytes / SNAPSHOT_SHARE);
        let inodes = InodeMemory::new(cache_bytes - records_bytes - cache_bytes / SNAPSHOT_SHARE);
        Self { content: ContentMemory::new(dirty_bytes, records_bytes), inodes, snapshots }
    }

    /// Approximate bytes that inodes and directories take now.
    pub fn inodes_held(&self) -> u64 {
        self.inodes.held()
    }

    /// The memory for snapshots that are read.
    pub fn snapshots(&self) -> &SnapshotMemory {
        &self.snapshots
    }
}

impl std::fmt::Debug for FsMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FsMemory").field("inodes_held", &self.inodes_held()).finish_non_exhaustive()
    }
}

/// Properties that may change while a dataset is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsProperties {
    pub sync: SyncMode,
    /// Byte quota; `None`: unlimited.
    pub quota_bytes: Option<u64>,
    pub quota_inodes: Option<u64>,
    /// For new files: a power of two, 4 KiB to 1 MiB (R6).
    pub record_bytes: u32,
    /// For new data.
    pub codec: Codec,
    /// Whether the root directory lists `.snapshots`; the layer that serves it resolves that name.
    pub shows_snapshots: bool,
    /// Limits of reads and writes, for all callers together.
    pub limits: IoLimits,
}

/// Options for opening a dataset.
#[derive(Clone, Debug)]
pub struct FsOptions {
    pub properties: FsProperties,
    /// Unflushed data and changes reach the store after this long.
    pub flush_interval: Duration,
    pub memory: FsMemory,
    /// The node's journal file of this dataset; none: every change waits for the store.
    pub journal: Option<PathBuf>,
    /// Owner, group and mode of the root directory when the dataset is new.
    pub root: RootAttr,
    /// The clock of mtimes and ctimes.
    pub clock: WallClock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RootAttr {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

impl RootAttr {
    pub(super) fn check(self) -> Result<(), FsError> {
        permission::check(&SetAttr {
            uid: Some(self.uid),
            gid: Some(self.gid),
            ..SetAttr::default()
        })
    }
}
