//! The use cases that the edges share: operations of CSI, the command line and later APIs, in terms
//! of pools, datasets and snapshots.
//!
//! Nouns: an **intent** is a record in state `creating` or `deleting`, written before its effect
//! (R3); a **tombstone** is an acknowledged deletion whose effect waits until nothing depends on
//! the object (R14); the **collector** removes tombstones' data and packs without references.
//!
//! Invariants: every call is idempotent and repaired by its retry (R30); calls for one object are
//! serialised in the process and, across processes, by compare-and-swap on its record.
//!
//! A crash leaves intents, which a retry finishes, and tombstones, which any collector
//! finishes. It never leaves an effect without a record.

pub mod browse;
pub mod channel;
pub mod cluster;
mod collect;
mod controller;
mod damage_report;
mod error;
mod locks;
pub mod node;
mod owner;
mod pace;
pub mod policy;
mod pools;
pub mod problems;
mod roots;
mod scrub;
pub mod secrets;
mod space;
pub mod takeover;
mod tasks;
pub mod unlock;

pub use collect::{
    Candidate, Collected, Collector, DeadPack, ExclusiveCollection, Others, Plan, Retained,
    RewriteThreshold, StrayCheckpoint, StrayDatabase,
};
pub use controller::{
    Controller, EphemeralWatch, GroupInfo, NewVolume, PropertyChanges, ReleaseMode, SIZE_DEFAULT,
    SIZE_MAX, SIZE_MIN, SnapshotInfo, Source, VolumeInfo, writable_name,
};
pub use damage_report::report_damage;
pub use error::ControlError;
pub use owner::{
    Carriers, DialOwner, OwnerChannel, Replaced, Report, RequestServer, RequestStream,
    RestoreInPlace, TreePath,
};
pub use pools::{Pool, Pools};
pub use scrub::{Damaged, Scrub, Scrubbed};
pub use space::{Accuracy, Space, SpaceOf, space};
pub use tasks::{
    RunningTask, ScrubReport, TASKS_KEPT, TASKS_RUNNING_MAX, Task, TaskKind, TaskOutcome, Tasks,
};
