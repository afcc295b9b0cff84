//! One open file system: [`FileSystem`] over a committer and a chunk store.

use super::FsError;
use super::api::*;
use super::db::{CheckpointId, DbPlace};
use crate::chunk::{ChunkStore, Codec};
use crate::types::{EntryName, Timestamp};
use bytes::Bytes;
use std::path::PathBuf;

/// What an acknowledgement means, in ZFS's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    #[default]
    Standard,
    Always,
    Disabled,
}

/// How a dataset is opened.
#[derive(Clone, Debug)]
pub struct FsOptions {
    pub sync: SyncMode,
    /// Byte quota; `None`: unlimited.
    pub quota_bytes: Option<u64>,
    pub quota_inodes: Option<u64>,
    /// For new files: a power of two, 4 KiB to 1 MiB (R6).
    pub record_bytes: u32,
    pub codec: Codec,
    /// Unflushed data and changes reach the store after this long.
    pub flush_interval: std::time::Duration,
    /// Most bytes of written data held in memory.
    pub dirty_bytes_max: u64,
    /// Bytes for inode, directory and extent caches.
    pub cache_bytes: u64,
    /// The node's journal file of this dataset; none: every change waits for the store.
    pub journal: Option<PathBuf>,
    /// Owner, group and mode of the root directory when the dataset is new.
    pub root: RootAttr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RootAttr {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// A dataset open for reading and writing.
pub struct Fs {}

impl Fs {
    /// Opens the dataset, creating its database if it is new: fences earlier owners, replays the journal, starts background work.
    pub async fn open(_place: &DbPlace, _chunks: ChunkStore, _options: FsOptions) -> Result<Self, FsError> {
        todo!()
    }

    /// Writes out everything acknowledged and buffered, then takes a checkpoint. Exact: holds every call answered before this one began.
    pub async fn snapshot(&self, _name: &str) -> Result<CheckpointId, FsError> {
        todo!()
    }

    /// Everything written so far is in the object store.
    pub async fn sync(&self) -> Result<(), FsError> {
        todo!()
    }

    pub fn set_quota(&self, _bytes: Option<u64>, _inodes: Option<u64>) {
        todo!()
    }

    /// Resolves when the file system can serve no more: fenced or failed.
    pub async fn stopped(&self) -> FsError {
        todo!()
    }

    /// Flushes and closes. Calls in flight finish or fail with [`FsError::Stale`].
    pub async fn close(&self) -> Result<(), FsError> {
        todo!()
    }
}

impl FileSystem for Fs {
    fn root(&self) -> FileRef {
        todo!()
    }
    fn write_verifier(&self) -> [u8; 8] {
        todo!()
    }
    async fn getattr(&self, _file: FileRef) -> Result<Attr, FsError> {
        todo!()
    }
    async fn setattr(&self, _caller: &Caller, _file: FileRef, _set: SetAttr, _guard: Option<Timestamp>) -> Result<Change, FsError> {
        todo!()
    }
    async fn lookup(&self, _caller: &Caller, _dir: FileRef, _name: &[u8]) -> Result<(Attr, Attr), FsError> {
        todo!()
    }
    async fn access(&self, _caller: &Caller, _file: FileRef, _want: u32) -> Result<(u32, Attr), FsError> {
        todo!()
    }
    async fn readlink(&self, _caller: &Caller, _file: FileRef) -> Result<(Bytes, Attr), FsError> {
        todo!()
    }
    async fn read(&self, _caller: &Caller, _file: FileRef, _offset: u64, _count: u32) -> Result<ReadOut, FsError> {
        todo!()
    }
    async fn write(
        &self,
        _caller: &Caller,
        _file: FileRef,
        _offset: u64,
        _data: Bytes,
        _stability: Stability,
    ) -> Result<Written, FsError> {
        todo!()
    }
    async fn commit(&self, _caller: &Caller, _file: FileRef, _offset: u64, _count: u32) -> Result<Change, FsError> {
        todo!()
    }
    async fn create(&self, _caller: &Caller, _dir: FileRef, _name: &EntryName, _how: CreateHow) -> Result<Created, FsError> {
        todo!()
    }
    async fn mkdir(&self, _caller: &Caller, _dir: FileRef, _name: &EntryName, _set: SetAttr) -> Result<Created, FsError> {
        todo!()
    }
    async fn make(
        &self,
        _caller: &Caller,
        _dir: FileRef,
        _name: &EntryName,
        _what: Special,
        _set: SetAttr,
    ) -> Result<Created, FsError> {
        todo!()
    }
    async fn remove(&self, _caller: &Caller, _dir: FileRef, _name: &EntryName) -> Result<Change, FsError> {
        todo!()
    }
    async fn rmdir(&self, _caller: &Caller, _dir: FileRef, _name: &EntryName) -> Result<Change, FsError> {
        todo!()
    }
    async fn rename(
        &self,
        _caller: &Caller,
        _from: (FileRef, &EntryName),
        _to: (FileRef, &EntryName),
    ) -> Result<(Change, Change), FsError> {
        todo!()
    }
    async fn link(&self, _caller: &Caller, _file: FileRef, _dir: FileRef, _name: &EntryName) -> Result<(Attr, Change), FsError> {
        todo!()
    }
    async fn readdir(&self, _caller: &Caller, _dir: FileRef, _after: DirCookie, _limit: ListLimit) -> Result<Listing, FsError> {
        todo!()
    }
    async fn statfs(&self) -> Result<StatFs, FsError> {
        todo!()
    }
}
