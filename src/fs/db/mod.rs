//! The thin module around SlateDB: nothing else in the tree names the crate.
//!
//! - `settings`: every option of the engine, with the measurement that chose it.
//! - `database`: a database open for writing. Only the committer holds one (R4).
//! - `clock`: the time that its writes carry.
//! - `compaction`: a compactor that runs only while there is something to compact, so that an idle
//!   volume makes no request.
//! - `damage`: finds damaged tables that keep a compaction from making progress.
//! - `collection`: removes a database's obsolete objects; `detach`: detaches a clone from its
//!   ancestors.
//! - `reader`: reads at a checkpoint, or at the newest durable state, without an owner and without
//!   writing.
//! - `admin`: operations on a database that need not be open: clones, checkpoints, fencing,
//!   deletion, collection.
//! - `sealing`: encrypts SlateDB's blocks.
//! - `status`: what others wait for of the engine's status.
//! - `unflushed`: memory for rows that are written but in no stored table yet.
//! - `closed`: a database that its last owner has closed in order.
//! - `manifests`: manifests that one operation reads several times, read once.
//! - `summed`: checksums for the objects that SlateDB stores without one.
//! - `reads`: serves the engine's reads: the log listed once, small objects read whole, and `parts`
//!   of large ones.
//! - `wal_cache`: WAL objects that this node put, on its own disk.
//!
//! Invariants. A database's path is literal in the store (`vol/<incarnation>` below the pool's
//! prefix) and never changes: clones name their ancestors by path. Checkpoint names are not unique
//! in SlateDB; here they are, because every creation lists first. Every call that waits for the
//! store has a time limit, except [`Database::write`] and [`Database::flush`], whose callers keep
//! waiting through an outage on purpose (R17).
//!
//! A crash leaves at most: a half-made clone (its creation is retried), a checkpoint whose id was
//! not recorded (found by its name), an unfinished deletion (retried; SlateDB's `.deleting` marker
//! shows that this was a database).
//!
//! This module does not know what rows mean.

mod admin;
mod clock;
mod closed;
mod collection;
mod compaction;
mod damage;
mod database;
mod detach;
mod manifests;
mod parts;
mod reader;
mod reads;
mod sealing;
mod settings;
mod status;
mod summed;
#[cfg(test)]
mod tests;
mod unflushed;
mod wal_cache;

pub use admin::{
    Holds, NewClone, ancestors, checkpoint_closed, collect_garbage, delete, detach_closed,
    drop_checkpoint, epoch, exists, fence, holds,
};
pub use closed::ClosedDatabase;
pub use database::{Database, View};
pub use detach::Detached;
pub use reader::Reader;
pub use settings::ROW_BYTES;
pub use unflushed::{Account, Unflushed};

use super::FsError;
use crate::bucket::Bucket;
use crate::crypto::Sealer;
use crate::types::Incarnation;
use bytes::Bytes;
use manifests::{KnownManifests, ManifestStore, Taken};
use slatedb::object_store::ObjectStore;
use slatedb::object_store::path::Path;
use slatedb::{CloseReason, ErrorKind, VersionedManifest};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// The location of a database and how its blocks are encrypted.
#[derive(Clone)]
pub struct DbPlace {
    pub bucket: Bucket,
    /// `vol/<incarnation>` (R2).
    pub incarnation: Incarnation,
    /// The family's: a clone reads its ancestors' blocks.
    pub sealer: Option<Sealer>,
    /// Shared by all databases of the process.
    pub cache: DbCache,
    /// The manifests that the operation of [`Self::reading_once`] has read.
    known: Option<Arc<KnownManifests>>,
}

impl DbPlace {
    pub fn new(
        bucket: Bucket,
        incarnation: Incarnation,
        sealer: Option<Sealer>,
        cache: DbCache,
    ) -> Self {
        Self { bucket, incarnation, sealer, cache, known: None }
    }

    /// The same place for one operation that reads manifests and then writes one: what is read
    /// through this place (and its clones) is read once until then.
    #[must_use]
    pub fn reading_once(&self) -> Self {
        self.knowing(KnownManifests::new(Taken::Retry))
    }

    /// The same place for whoever stays: every read asks the store.
    fn reading_always(&self) -> Self {
        Self { known: None, ..self.clone() }
    }

    fn knowing(&self, known: Arc<KnownManifests>) -> Self {
        Self { known: Some(known), ..self.clone() }
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        let store = Arc::new(summed::Summed::new(self.bucket.store()));
        match &self.known {
            Some(known) => Arc::new(ManifestStore::new(store, known.clone())),
            None => store,
        }
    }

    /// As [`Self::store`], for one opening of the database.
    fn opening_store(&self) -> reads::ReadStore {
        let store = reads::ReadStore::new(self.store(), &self.path(), self.cache.objects.clone());
        // A folder's files are in the kernel's cache.
        if self.bucket.is_local() { store } else { store.with_parts(self.cache.parts.clone()) }
    }

    fn path(&self) -> Path {
        self.path_of(self.incarnation)
    }

    fn path_of(&self, incarnation: Incarnation) -> Path {
        self.bucket.path(&format!("vol/{incarnation}"))
    }

    /// Separates the databases that share the block cache; the same for every opening of one
    /// database. Incarnations are random, so eight of their bytes do not collide.
    fn cache_id(&self) -> u64 {
        self.incarnation.as_bytes().iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte))
    }

    /// The same place for another incarnation of the same family.
    fn sibling(&self, incarnation: Incarnation) -> Self {
        Self { incarnation, ..self.clone() }
    }
}

/// The memory that all databases of a process share: for blocks, for copies of small objects, and
/// for rows that are in no table yet.
#[derive(Clone)]
pub struct DbCache {
    cache: Arc<dyn slatedb::db_cache::DbCache>,
    objects: Arc<reads::ObjectCache>,
    parts: Arc<parts::Parts>,
    unflushed: Arc<Unflushed>,
}

impl DbCache {
    /// A cache of at most `bytes`: one quarter for indexes and filters, a sixteenth for small
    /// objects and one for parts of large ones, the rest for blocks. SlateDB's own default would
    /// be 640 MiB for each database.
    pub fn new(bytes: u64) -> Self {
        let part = |bytes| {
            let options = slatedb::db_cache::foyer::FoyerCacheOptions {
                max_capacity: bytes,
                shards: settings::CACHE_SHARDS,
            };
            Some(Arc::new(slatedb::db_cache::foyer::FoyerCache::new_with_opts(options))
                as Arc<dyn slatedb::db_cache::DbCache>)
        };
        let (meta, objects) = (bytes / 4, bytes / 16);
        let blocks = part(bytes - meta - 2 * objects);
        let split = slatedb::db_cache::SplitCache::new()
            .with_block_cache(blocks)
            .with_meta_cache(part(meta))
            .build();
        let objects = usize::try_from(objects).unwrap_or(usize::MAX);
        Self {
            cache: Arc::new(split),
            objects: Arc::new(reads::ObjectCache::new(objects)),
            parts: Arc::new(parts::Parts::new(objects)),
            unflushed: Unflushed::new(settings::UNFLUSHED_BYTES),
        }
    }

    /// Sets another limit in bytes for rows that are in no table yet.
    #[must_use]
    pub fn with_unflushed(mut self, bytes: u64) -> Self {
        self.unflushed = Unflushed::new(bytes);
        self
    }

    /// Bytes of rows that are in no stored table yet.
    pub fn unflushed(&self) -> u64 {
        self.unflushed.held()
    }
}

/// A checkpoint, by SlateDB's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct CheckpointId(pub [u8; 16]);

impl CheckpointId {
    fn uuid(self) -> uuid::Uuid {
        uuid::Uuid::from_bytes(self.0)
    }
}

impl From<uuid::Uuid> for CheckpointId {
    fn from(id: uuid::Uuid) -> Self {
        Self(*id.as_bytes())
    }
}

/// Returns whether a table may have a row of this key: `false` where each begins behind it.
fn may_have(manifest: &VersionedManifest, key: &[u8]) -> bool {
    let runs = manifest.compacted().iter().flat_map(|run| run.sst_views());
    let mut first = manifest.l0().iter().chain(runs).map(|view| &view.sst.info.first_entry);
    first.any(|first| first.as_ref().is_none_or(|first| first.as_ref() <= key))
}

/// The checkpoint of that name.
fn named(manifest: &VersionedManifest, name: &str) -> Option<CheckpointId> {
    let named = manifest.checkpoints().iter().find(|c| c.name.as_deref() == Some(name));
    named.map(|checkpoint| checkpoint.id.into())
}

/// The rows of one atomic write.
pub type Ops = Vec<(Bytes, Option<Bytes>)>;

/// Maps an error of the engine to a file system's. The message always names the operation.
fn fs_error(doing: &str, error: &slatedb::Error) -> FsError {
    match error.kind() {
        ErrorKind::Closed(CloseReason::Fenced) => FsError::Fenced,
        ErrorKind::Closed(_) => FsError::Unavailable(format!("{doing}: the database is closed")),
        ErrorKind::Unavailable => FsError::Unavailable(format!("{doing}: {error}")),
        ErrorKind::Data => FsError::Corrupt(format!("{doing}: {error}")),
        _ => FsError::Internal(format!("{doing}: {error}")),
    }
}

/// Runs a call of the engine with a time limit: some of its calls retry for ever (see `settings`).
async fn limited<T>(
    doing: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, slatedb::Error>>,
) -> Result<T, FsError> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(|error| fs_error(doing, &error)),
        Err(_) => {
            Err(FsError::Unavailable(format!("{doing}: no answer within {} s", limit.as_secs())))
        }
    }
}

async fn step(failpoints: &crate::telemetry::Failpoints, name: &str) -> Result<(), FsError> {
    failpoints.step(name).await.map_err(|error| FsError::Unavailable(error.to_string()))
}
