//! The node's use cases: staging a volume (it is opened, exported and mounted once), publishing it
//! (its mount is bound to a pod's target), and undoing both.
//!
//! ```text
//!            stage                    lost (fenced, failed)
//!   idle ────────────▶ staged ────────────────────────────▶ lost
//!    ▲                  │  ▲                                  │
//!    │     unstage      │  │ reopened                         │
//!    ├──────────────────┘  │                                  │
//!    │                  opening ◀── a record, after a restart │
//!    │                     │ no longer ours                   │
//!    │     unstage         └─────────────────────────────────▶│
//!    └────────────────────────────────────────────────────────┘
//! ```
//!
//! Nouns: an **endpoint** is the loopback address on which one volume is served; a **staged
//! record** is the file in the state directory that describes a staged volume; a volume is **lost**
//! when this process may no longer serve it: its endpoint answers ESTALE to everything until it is
//! unstaged (R25); a **shared** volume may be staged on many nodes, one of which owns it, and is
//! not lost when another takes it: its calls are then relayed ([`follow`]).
//!
//! Invariants: the record is written before anything else and removed after everything else; MNT is
//! answered only during our own mount(2) (R23); nothing here looks below a mount of ours: mounts
//! are read from mountinfo, and usage from the open volume's memory; a restart reopens a volume
//! only where R24 allows it.
//!
//! A process **hands over** to the next one (see [`NodeAgent::hold`]) when no call is under way and
//! none can begin; the next process treats the records as after a crash.
//!
//! An inline **ephemeral** volume is staged at its pod's target, and has no other mount
//! ([`ephemeral`]).
//!
//! A crash leaves records. The next start reopens volumes that are still mounted, and closes the
//! others.

mod address;
mod agent;
mod endpoint;
mod ephemeral;
mod ephemeral_id;
mod follow;
mod health;
mod ports;
mod publish;
mod record;
mod recover;
mod release;
mod shared;
mod stage;
#[cfg(test)]
mod tests;
mod usage;

pub use agent::{HandoverHold, NodeAgent, NodeSettings};
pub use endpoint::{EndpointError, Endpoints, Reach};
pub use ephemeral::PublishEphemeral;
pub use ephemeral_id::{EphemeralId, EphemeralSettings};
pub use health::{StorageCondition, VolumeCondition};
pub use publish::{Publish, Sharing};
pub use record::Access;
pub use stage::Stage;
pub use usage::{Mounts, NoMounts};
