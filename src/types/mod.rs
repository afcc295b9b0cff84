//! The vocabulary that every floor shares: identifiers, names, time, backoff and error classes.
//!
//! Nothing here does I/O or knows of any other module. Every newtype has one parsing constructor
//! and private fields, so that a value of the type is proof that it was checked.

mod backoff;
mod class;
mod id;
mod io_limits;
mod name;
mod owner;
mod plural;
mod size;
mod sync;
mod time;

pub use backoff::Backoff;
pub use class::{Class, Classify, with_causes};
pub use id::{
    ChunkHash, ClaimId, DatasetId, Epoch, FamilyId, GroupHandle, GroupId, IdError, Incarnation,
    InodeNo, JournalDirId, NameKey, PackId, PoolId, SNAPSHOT_SERIAL_MAX, SessionId, SnapshotHandle,
    SnapshotId, VolumeHandle,
};
pub use io_limits::{IoLimits, IoLimitsError, parse_bandwidth};
pub use name::{DatasetName, EntryName, NameError, SnapshotName};
pub use owner::is_owner;
pub use plural::plural;
pub use size::{ByteSize, SizeError};
pub use sync::{SyncMode, SyncModeError};
pub use time::{Timestamp, WallClock};
