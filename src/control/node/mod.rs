//! The node's use cases: a volume is staged (opened, served and mounted once), published (bound to
//! a pod's target), unpublished and unstaged.
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
//! Nouns: an **endpoint** is the loopback address on which one volume is served; a **record** is
//! the file in the state folder that says what is staged; a volume is **lost** when this process
//! may no longer serve it: its endpoint answers ESTALE to everything until it is unstaged (R25).
//!
//! Invariants: the record is written before anything else and removed after everything else; MNT is
//! answered only during our own mount(2) (R23); nothing here looks below a mount of ours: mounts
//! are read from mountinfo, and usage from the open volume's memory; a restart reopens a volume
//! only where R24 allows it.
//!
//! A process that is replaced **leaves** (see [`NodeAgent::hold`]): no call is in progress then,
//! none begins, and the next process handles the records as after a crash.
//!
//! A crash leaves records. The next start reopens what is still mounted, and closes what is not.

mod address;
mod agent;
mod endpoint;
mod let_go;
mod ports;
mod publish;
mod record;
mod recover;
mod stage;
#[cfg(test)]
mod tests;
mod usage;

pub use agent::{Leaving, NodeAgent, NodeSettings};
pub use endpoint::{EndpointError, Endpoints};
pub use publish::{Publish, Sharing};
pub use stage::{Access, Stage};
pub use usage::{Mounts, NoMounts};
