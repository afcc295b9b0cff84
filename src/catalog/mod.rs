//! What a pool holds: its own record, datasets and snapshots, each a chain of versions made by
//! put-if-absent (R1).
//!
//! ```text
//! pool/<version>                                                 the pool: id, features, wrapped key
//! datasets/<name key>/<version>                                  a dataset
//! snapshots/<dataset incarnation>/<snapshot name key>/<version>  a snapshot
//! names/snapshot/<name key>/<version>                            which snapshot has a CSI name
//! readers/<snapshot incarnation>/<reader>                        somebody reads the snapshot: no record, see [`readers`]
//! nodes/<session>/heartbeat/<number>                             a node session's signs of life, of which the newest counts
//! nodes/<session>/revocation/<claim>                             a claim of the session that it is to give up
//! collector/<version>                                            which process collects in the pool
//! ```
//! Nouns: a **record** is what is known of one thing, a **version** one object with its fields at a
//! time, a **chain** all versions of a record, the **floor** the version below which a chain may
//! have been cleaned, the **end** of a chain a version that says that the record was removed.
//!
//! Invariants:
//! - A change is the next version, put if absent; whoever loses reads again (R1, [`chain`]).
//! - A name finds a record, an incarnation tells its lives apart (R2): no call by id touches
//!   another life.
//! - A record is removed only when it is `Dead` (R3).
//! - Bytes are believed only with their checksum, which holds the object's key too.
//!
//! A crash leaves a version written or not, possibly versions below a floor (removed by the next
//! change), and possibly a probe object of an interrupted pool creation below `probe/`.
//!
//! It does not know what databases and chunks are, and never touches them.

mod chain;
mod change;
mod collector;
mod datasets;
mod error;
mod frame;
mod nodes;
mod pool;
mod readers;
mod record;
mod snapshots;

pub use crate::crypto::Secret;
pub use chain::{END_AGE_MIN, Versioned};
pub use error::CatalogError;
pub use frame::{Header, RECORD_BYTES_MAX, RECORD_FORMAT, decode_record, encode_record};
pub use nodes::Signs;
pub use pool::Catalog;
pub use readers::{READING_KEPT, READING_RENEWED, Readers, Reading};
pub use record::*;
