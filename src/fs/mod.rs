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
mod frozen;
mod gate;
pub mod journal;
pub mod key;
mod moment;
mod names;
mod node;
mod permission;
mod restore;
pub mod row;
mod tenure;
mod view;
mod walk;

pub use crate::types::SyncMode;
pub use committer::{Batch, Committer, Ticket, Totals, void_journals};
pub use compare::{Aspect, Difference, Found, compare};
pub use dataset::{Fs, FsMemory, FsOptions, RootAttr};
pub use error::FsError;
pub use frozen::{Frozen, FrozenMemory};
pub use names::{Overwrite, Page};
pub use restore::{Progress, RestoreError, Restored, Route};
pub use tenure::{Tenure, Unrivalled};
pub use view::{SnapshotView, Viewed};
pub use walk::Walk;
