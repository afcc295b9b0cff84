//! The thin module around SlateDB: nothing else in the tree names the crate. Measured facts are cited where a setting depends on them.

use super::FsError;
use crate::bucket::Bucket;
use crate::crypto::Sealer;
use crate::types::{Epoch, Incarnation};
use bytes::Bytes;

/// Where a database is and how its blocks are sealed.
#[derive(Clone)]
pub struct DbPlace {
    pub bucket: Bucket,
    /// `vol/<incarnation>` (R2).
    pub incarnation: Incarnation,
    /// The family's: a clone reads its ancestors' blocks.
    pub sealer: Option<Sealer>,
    /// Shared by all databases of the process.
    pub cache: DbCache,
}

/// The block cache that all databases of a process share.
#[derive(Clone)]
pub struct DbCache {}

impl DbCache {
    pub fn new(_bytes: u64) -> Self {
        todo!()
    }
}

/// A checkpoint, by SlateDB's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct CheckpointId(pub [u8; 16]);

/// A database open for writing. Only the committer holds one (R4).
pub struct Database {}

/// What is written together.
pub type Ops = Vec<(Bytes, Option<Bytes>)>;

impl Database {
    /// Opens, creating it if absent; fences every earlier opener. `expected`: fail unless the writer epoch is still this one (R16).
    pub async fn open(_place: &DbPlace, _expected: Option<Epoch>) -> Result<Self, FsError> {
        todo!()
    }

    pub fn epoch(&self) -> Epoch {
        todo!()
    }

    pub async fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, FsError> {
        todo!()
    }

    /// Rows of `from..to` in order, at most `limit`.
    pub async fn scan(&self, _from: Bytes, _to: Bytes, _limit: usize) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        todo!()
    }

    /// In memory when it returns; the order of calls is the order of effects.
    pub async fn write(&self, _ops: Ops) -> Result<(), FsError> {
        todo!()
    }

    /// Everything written before the call is in the object store when it returns: one PUT when there is something to write, else none.
    pub async fn flush(&self) -> Result<(), FsError> {
        todo!()
    }

    /// A named checkpoint of everything written so far; the existing one when there is one of that name (R14).
    pub async fn checkpoint(&self, _name: &str) -> Result<CheckpointId, FsError> {
        todo!()
    }

    /// Fenced or failed: nothing may be acknowledged any more. Resolves at once when that happens.
    pub async fn closed(&self) -> FsError {
        todo!()
    }

    pub async fn close(&self) -> Result<(), FsError> {
        todo!()
    }
}

/// A database read at a checkpoint (or, for the collector, at its newest durable state, WAL tail included: R11), without an owner and without writing.
pub struct Reader {}

impl Reader {
    pub async fn at_checkpoint(_place: &DbPlace, _checkpoint: CheckpointId) -> Result<Self, FsError> {
        todo!()
    }

    pub async fn newest(_place: &DbPlace) -> Result<Self, FsError> {
        todo!()
    }

    pub async fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, FsError> {
        todo!()
    }

    pub async fn scan(&self, _from: Bytes, _to: Bytes, _limit: usize) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        todo!()
    }

    pub async fn close(&self) -> Result<(), FsError> {
        todo!()
    }
}

/// Whether a database exists at the place.
pub async fn exists(_place: &DbPlace) -> Result<bool, FsError> {
    todo!()
}

/// Makes `clone`'s database from a checkpoint of `source`. Repeating it after it was done is harmless.
pub async fn clone_from(_clone: &DbPlace, _source: Incarnation, _checkpoint: CheckpointId) -> Result<(), FsError> {
    todo!()
}

/// A named checkpoint on a database that nobody has open: opens (fences, replays), checkpoints, closes.
pub async fn checkpoint_closed(_place: &DbPlace, _name: &str) -> Result<CheckpointId, FsError> {
    todo!()
}

/// Drops a checkpoint. An absent one counts as dropped.
pub async fn drop_checkpoint(_place: &DbPlace, _checkpoint: CheckpointId) -> Result<(), FsError> {
    todo!()
}

/// The checkpoints that keep a database: named ones (snapshots) and unnamed ones that never expire (clones' pins).
pub struct Holds {
    pub named: Vec<(String, CheckpointId)>,
    pub clone_pins: usize,
}

pub async fn holds(_place: &DbPlace) -> Result<Holds, FsError> {
    todo!()
}

/// How many ancestors' databases a clone's database still reads (R13).
pub async fn ancestors(_place: &DbPlace) -> Result<usize, FsError> {
    todo!()
}

/// Opens and closes, so that no earlier owner can write any more. The first step of deletion.
pub async fn fence(_place: &DbPlace) -> Result<(), FsError> {
    todo!()
}

/// Removes a fenced database's objects. Refuses while anything holds it.
pub async fn delete(_place: &DbPlace) -> Result<(), FsError> {
    todo!()
}
