//! The file system of one dataset: inodes, directories, file data and counters in one SlateDB
//! database, chunk data in the family's packs.
//!
//! `api` is the interface of the edges: operations with POSIX meaning, free of any protocol. `key`
//! and `row` are the database's format. The committer is the only writer (R4).

mod answer;
pub mod api;
mod attributes;
mod calls;
pub mod check;
mod committer;
mod compare;
mod content;
mod data;
mod dataset;
pub mod db;
mod error;
mod gate;
mod inode;
pub mod journal;
pub mod key;
mod lease;
mod moment;
mod names;
mod permission;
mod replies;
mod restore;
pub mod row;
mod snapshot_fs;
mod walk;

pub use crate::types::SyncMode;
pub use committer::{Batch, Committer, Ticket, Totals, void_journals};
pub use compare::{Aspect, Difference, Found, compare};
pub use dataset::{Fs, FsMemory, FsOptions, RootAttr};
pub use error::FsError;
pub use lease::{AlwaysHeld, Lease};
pub use names::{Overwrite, Page};
pub use restore::{Progress, RestoreError, Restored, Route};
pub use snapshot_fs::{SnapshotFs, SnapshotInode, SnapshotMemory};
pub use walk::Walk;
