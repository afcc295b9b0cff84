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
mod freeze;
mod frozen_snapshot;
mod gate;
mod inode;
pub mod journal;
pub mod key;
mod lease;
mod moment;
mod mount_group;
mod names;
mod options;
mod permission;
pub mod recent_calls;
mod replies;
mod restore;
pub mod row;
mod snapshot_fs;
mod throttle;
mod walk;

pub use crate::types::SyncMode;
pub use committer::{Batch, Committer, Ticket, Totals, void_journals};
pub use compare::{Aspect, Comparison, Difference, PathDifference, compare};
pub use dataset::Fs;
pub use error::FsError;
pub use freeze::{FREEZE_MAX, Thawed};
pub use lease::{AlwaysHeld, Lease};
pub use names::Page;
pub use options::{FsMemory, FsOptions, FsProperties, RootAttr};
pub use restore::{Overwrite, Progress, RestoreError, Restored, Route};
pub use snapshot_fs::{SnapshotFs, SnapshotInode, SnapshotMemory};
pub use throttle::{Admission, Delay, Io, Throttle};
pub use walk::Walk;
