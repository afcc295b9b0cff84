//! Volumes: which process owns a dataset, opening its file system, watching it, closing it.
//!
//! ```text
//!               claim (CAS)  Fs::open fences
//!  released ───────▶ claimed ───────▶ open ──┬── close: Fs::close, then the owner goes: released
//!     ▲      ▲          │ open failed        ├── revoked: reported, then closed and released
//!     └──────┼──────────┘                    ├── handed over: another process of this node goes
//!            │                               │   on; the owner stays
//!  another's ┘ with an expired lease         ├── fenced, or taken: dropped and reported; the
//!              ([`lease`])                   │   record is the new owner's
//!                                            ├── failed: reported; its journal is recovered, then
//!                                            │   closed and released
//!                                            └── discarded: stopped; the owner goes, and the
//!                                                dataset is deleted ([`discard`])
//! ```
//! These are the states of the record. [`lifecycle`] decides what the process may do next with a
//! volume; [`closing`] carries it out, for as long as it takes.
//!
//! Nouns: an **owner** is a node session, written into the dataset's record; **released** means no
//! owner, and only that means cleanly closed (R16); a **maintenance claim** is a controller's claim
//! of a released dataset for one piece of work: a checkpoint, the detaching of a clone, a
//! collection of its database; an **open snapshot** is a reader on a snapshot, which needs no
//! owner; an **entry** is a process's state of one volume.
//!
//! Invariants: a process opens a database only while the record names it; a dataset is opened at
//! most once in a process, and keeps its entry there until its record no longer names the
//! session; a dataset that a session owns and does not have open is released (R33); a dataset that
//! another node owns is opened here only once that owner must have stopped answering (R26): changes
//! that only its journal holds are lost then, as with the machine itself.
//!
//! A crash leaves the owner in the record: a process on the same journal directory opens the
//! dataset again at once, others once the lease has expired; a maintenance claim yields to anyone
//! (it has no journal).

mod attached;
mod claim;
mod closing;
mod discard;
mod entry;
mod exported;
mod handover;
mod journal_dir;
mod journals;
mod lease;
mod lifecycle;
mod maintenance;
mod open_snapshots;
mod opening;
mod ownership;
mod registration;
mod restoring;
mod root_reader;
mod settings;
mod snapdir;
mod volumes;

pub use attached::Attached;
pub use claim::ActiveClaim;
pub use entry::VolumeGuard;
pub use exported::ExportedFs;
pub use lease::{BootClock, Clock, ExpiredLease, LeaseSettings, Verdict, Watch};
pub use lifecycle::CloseReason;
pub use maintenance::{
    checkpoint_released, checkpoint_unchanged, closed_database, collect_released, detach_released,
    finish_release, release_lost, repair_released, seal_released, with_released,
};
pub use open_snapshots::{OpenSnapshots, RetainedBy};
pub use ownership::{is_maintenance, unvoided_journal_dir};
pub use restoring::forget_restore;
pub use root_reader::{RootReader, RootView};
pub use settings::{VolumeSettings, place};
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
         to expire; `zerofs-csi dataset release {dataset} --force` takes it"
    )]
    Owned { dataset: String, node: String, owner: Box<Owner> },
    #[error("dataset {dataset} is being deleted")]
    Deleting { dataset: String },
    #[error("dataset {dataset} is still being created: retry its creation, or wait")]
    Creating { dataset: String },
    #[error(
        "dataset {dataset}: {max} volumes are open already, which is this process's limit: close \
         one, or raise limits.volumesMax"
    )]
    Full { dataset: String, max: usize },
    #[error("dataset {dataset} was handed over to another process of this node; retry")]
    HandedOver { dataset: String },
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
            Self::HandedOver { .. } => Class::Unavailable,
            Self::Catalog(error) => error.class(),
            Self::Fs { source, .. } => source.class(),
            Self::Io(_) => Class::Internal,
        }
    }
}
