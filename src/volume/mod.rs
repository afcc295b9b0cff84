//! One open file system and its lifecycle: claiming a dataset, opening, watching and closing it.
//!
//! ```text
//!   heartbeat, claim (CAS)          Fs::open fences
//!  released ─────────────▶ claimed ─────────────▶ open ──┬── close: Fs::close, then the owner goes: released
//!     ▲        ▲              │ open failed              ├── revoked: reported, then closed and released
//!     └────────┼──────────────┘                          ├── left: another process of this node goes on; the owner stays
//!   another's ─┘ with an expired lease                   ├── fenced, or taken: dropped and reported; the record is the new owner's
//!                ([`lease`])                             └── failed: reported; its journal is recovered, then closed and released
//! ```
//! The record knows these states. [`life`] decides what the process may do next with a volume;
//! [`closing`] does it, for as long as it takes.
//!
//! Nouns: an **owner** is a node's session, written into the dataset's record; **released** means
//! no owner, and only that means cleanly closed (R16); a **maintenance claim** is a controller's
//! claim of a released dataset for one piece of work: a checkpoint, a clone's detaching, a
//! collection of its database; a **view** is a snapshot that is being read, which needs no owner.
//!
//! Invariants: a process opens a database only while the record names it; a dataset is opened at
//! most once in a process, and keeps its place there until its record no longer names the session
//! (R33); a dataset that a session owns and does not have open is released (R36); a dataset that
//! another node owns is opened here only once that owner must have stopped answering (R26): changes
//! that only its journal holds are lost then, as with the machine itself.
//!
//! A crash leaves the owner in the record: a process on the same folder of journals opens it again
//! at once, others once its lease has expired; a maintenance claim yields to anyone (it has no
//! journal).

mod attached;
mod caretaker;
mod claim;
mod closing;
mod home;
mod journals;
mod lease;
mod leave;
mod life;
mod ownership;
mod place;
mod reading;
mod restoring;
mod served;
mod settings;
mod snapdir;
mod views;
mod volumes;

pub use attached::Attached;
pub use caretaker::{
    checkpoint_released, collect_released, detach_released, finish_release, release_lost,
    repair_released, seal_released, with_released,
};
pub use claim::ActiveClaim;
pub use lease::{BootClock, Clock, ExpiredLease, LeaseSettings, Verdict, Watch};
pub use ownership::{is_caretaker, unvoided};
pub use place::VolumeGuard;
pub use reading::ReadSnapshot;
pub use restoring::forget_restore;
pub use served::{Live, OneSnapshot, Served};
pub use settings::{VolumeSettings, place};
pub use views::{Keeper, View, Views};
pub use volumes::{Closing, Lost, Volume, Volumes};

use crate::catalog::{CatalogError, Owner};
use crate::fs::FsError;
use crate::types::{Class, Classify};

#[derive(Debug, Clone, thiserror::Error)]
pub enum VolumeError {
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error(
        "dataset {dataset} is open on node {node}: unmount it there first, or wait for its lease \
         to end; `zerofs-csi dataset release {dataset} --force` takes it"
    )]
    Owned { dataset: String, node: String, owner: Box<Owner> },
    #[error("dataset {dataset} is being deleted")]
    Deleting { dataset: String },
    #[error("dataset {dataset} is still being created: repeat its creation, or wait")]
    Creating { dataset: String },
    #[error(
        "dataset {dataset}: {max} volumes are open already, which is this process's limit: close \
         one, or raise volumesMax"
    )]
    Full { dataset: String, max: usize },
    #[error("dataset {dataset}: another process of this node goes on with it: repeat")]
    Left { dataset: String },
    #[error(
        "dataset {dataset} is a snapshot, read only: it has no owner and is never opened for \
         writing"
    )]
    ReadOnly { dataset: String },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("dataset {dataset}: {source}")]
    Fs {
        dataset: String,
        #[source]
        source: FsError,
    },
    #[error("{0}")]
    Io(String),
}

impl Classify for VolumeError {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
            Self::Owned { .. } | Self::Deleting { .. } | Self::ReadOnly { .. } => {
                Class::Precondition
            }
            Self::Creating { .. } => Class::InProgress,
            Self::Full { .. } => Class::Exhausted,
            Self::Left { .. } => Class::Unavailable,
            Self::Catalog(error) => error.class(),
            Self::Fs { source, .. } => source.class(),
            Self::Io(_) => Class::Internal,
        }
    }
}
