//! A pool as people use it, by name: find datasets and snapshots, look into them, compare them.
//! The command line, gRPC and REST stand on these use cases, so that all of them answer alike.
//!
//! Nouns: a **root** is a state whose files can be read, a snapshot or the head of a dataset; an
//! **open root** is a reader of one, kept for whoever reads next ([`OpenRoot`]); an **entry** is an
//! object of a root with its attributes and its path.
//!
//! Invariants: paths are bytes; `..` is refused, and a symbolic link is never followed, so that
//! nothing outside a root can be named. What a caller may do is for the edges to decide before
//! they call. Every list has a limit, and memory does not grow with the size of a file or folder.
//!
//! A snapshot that is being read is registered (R14), and so is retained until a root has not been
//! used for [`IDLE`]; after a crash, for an hour. Only a history reads hundreds without: it looks
//! afterwards which of them are still there, and remembers what its path led to in each. A head is
//! read as the store has it: without the unsynced changes of a node that has it open.

mod changes;
mod cursor;
mod diff;
mod entry;
mod facts;
mod files;
mod find;
mod history;
mod lookup;
mod names;
mod open;
mod path;
mod pattern;
mod plan;
mod read;
mod reserved;
mod walk;

pub use changes::{HoldChange, MadeDataset, NewSnapshot};
pub use cursor::Cursor;
pub use diff::apart;
pub use entry::Entry;
pub use facts::{DatasetFacts, SnapshotFacts, SnapshotKind};
pub use files::LIST_MAX;
pub use find::{Hit, Searched, VISITED_MAX};
pub use history::{PathState, PathVersion};
pub use lookup::{Root, dataset_name, snapshot_name, split_snapshot};
pub use names::Names;
pub use open::{IDLE, OpenRoot};
pub use path::{PathError, find as find_path, kind_name, shown as shown_path};
pub use pattern::Pattern;
pub use plan::RestorePlan;
pub use read::PIECE_BYTES_MAX;
pub use reserved::{is_reserved, random as random_reserved};
pub use walk::TreeWalk;

use super::{ControlError, Pool};
use crate::types::Class;
use crate::volume::Volumes;
use history::PathStates;
use open::OpenRoots;

/// The datasets, snapshots and files of one pool, by name. Cheap to clone.
#[derive(Clone)]
pub struct Browser {
    pool: Pool,
    open: OpenRoots,
    path_states: PathStates,
}

impl Browser {
    pub fn new(pool: &Pool, volumes: &Volumes) -> Self {
        Self {
            pool: pool.clone(),
            open: OpenRoots::new(pool, volumes),
            path_states: PathStates::new(),
        }
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Closes every open root that nobody reads, and waits for the registrations to end. The
    /// browser can be used again afterwards.
    pub async fn close(&self) {
        self.open.close().await;
    }
}

/// An answer with a text of its own.
fn refused(class: Class, why: impl Into<String>) -> ControlError {
    ControlError::Refused { class, why: why.into() }
}
