//! The records of a pool: its own, datasets and snapshots, each a chain of versions made by
//! put-if-absent (R1).
//!
//! ```text
//! pool/<version>                                                 the pool: id, features, key
//! datasets/<name key>/<version>                                  a dataset, or an alias
//! snapshots/<dataset incarnation>/<snapshot name key>/<version>  a snapshot
//! names/snapshot/<name key>/<version>                            which snapshot has a CSI name
//! names/group/<name key>/<version>                               a group snapshot
//! readers/<snapshot incarnation>/<reader>                        a reader, see [`readers`]
//! nodes/<session>/heartbeat/<number>                             heartbeats; the newest counts
//! nodes/<session>/revocation/<claim>                             a revoked claim of the session
//! nodes/<session>/damage/<dataset incarnation>                   the session's volume is damaged
//! nodes/<session>/channel/<number>                               its address and key for relays
//! collector/<version>                                            the collecting process
//! policies/<dataset incarnation>/<version>                       a dataset's snapshot policy
//! policy-run/<version>                                           the process that runs policies
//! ```
//! Nouns: a **record** describes one thing, a **version** is one object with the record's fields at
//! a time, a **chain** is all versions of a record, the **floor** is the version below which
//! versions may have been removed, the **end** of a chain is a version that marks the record as
//! removed.
//!
//! Invariants:
//! - A change is the next version, put if absent; a writer that loses reads again (R1, [`chain`]).
//! - A name finds a record, an incarnation identifies it (R2): no call by id touches a record that
//!   was created under the same name later.
//! - A record is removed only when it is `Dead` (R3); that of a group snapshot, which has no effect
//!   but its members, when these are tombstones.
//! - Bytes are used only with a valid checksum, which covers the object's key, too.
//!
//! A crash leaves a version written or not, possibly versions below a floor (removed by the next
//! change), and possibly a probe object of an interrupted pool creation below `probe/`.
//!
//! The catalog does not know databases and chunks, and never touches them.

mod chain;
mod change;
mod collector;
mod datasets;
mod error;
mod frame;
mod groups;
mod nodes;
mod policies;
mod pool;
mod readers;
mod record;
mod rename;
mod snapshots;

pub use crate::crypto::Secret;
pub use chain::{END_AGE_MIN, Versioned};
pub use datasets::DatasetSlot;
pub use error::CatalogError;
pub use frame::{Header, RECORD_BYTES_MAX, RECORD_FORMAT, decode_record, encode_record};
pub use nodes::{NodeStatus, is_damage_report, mailbox_reply, mailbox_requests};
pub use policies::PolicyVersion;
pub use pool::Catalog;
pub use readers::{READING_EXPIRY, READING_RENEWAL, Readers, Reading};
pub use record::*;
pub use rename::Rename;
pub use snapshots::SnapshotSlot;
