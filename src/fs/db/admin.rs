//! Operations on a database that need not be open.

use super::clock::Clock;
use super::collection::{self, Ages};
use super::database::last_time;
use super::detach::Detached;
use super::settings::TableReaders;
use super::{
    CheckpointId, Database, DbPlace, compaction::admin, limited, may_have, named, settings, step,
};
use crate::fs::FsError;
use crate::types::{Epoch, Incarnation};
use slatedb::admin::CloneSourceSpec;
use slatedb::{Checkpoint, VersionedManifest};
use slatedb_common::clock::SystemClock;
use std::collections::BTreeSet;
use std::sync::Arc;

/// SlateDB's mark of a deletion is empty.
const MARK_BYTES_MAX: u64 = 64;

pub(super) async fn manifest(place: &DbPlace) -> Result<Option<VersionedManifest>, FsError> {
    limited("reading the manifest", settings::READ_LIMIT, admin(place).read_manifest(None)).await
}

/// Returns whether a database exists at the place. A half-made clone does not count.
pub async fn exists(place: &DbPlace) -> Result<bool, FsError> {
    Ok(manifest(place).await?.is_some_and(|manifest| manifest.initialized()))
}

/// A clone's database to be made from a checkpoint of another, as both were read.
pub struct NewClone {
    place: DbPlace,
    source: Incarnation,
    checkpoint: CheckpointId,
    exists: bool,
    ancestors: usize,
}

impl NewClone {
    pub async fn read(
        clone: &DbPlace,
        source: Incarnation,
        checkpoint: CheckpointId,
    ) -> Result<Self, FsError> {
        let place = clone.reading_once();
        let of = place.sibling(source);
        let (exists, ancestors) = tokio::try_join!(exists(&place), ancestors_at(&of, checkpoint))?;
        Ok(Self { place, source, checkpoint, exists, ancestors })
    }

    /// Counts the ancestors to which the clone is attached, its own source excluded (R13): each
    /// costs it a pin. The source itself may be attached to fewer by now, or more.
    pub fn ancestors(&self) -> usize {
        self.ancestors
    }

    /// Makes the database. A retry after it was done is harmless, even after the clone was detached
    /// (SlateDB itself would refuse then).
    pub async fn make(self) -> Result<(), FsError> {
        if self.exists {
            return Ok(());
        }
        let clone = &self.place;
        let failpoints = clone.bucket.failpoints();
        step(failpoints, "fs.db.before-clone").await?;
        let from = clone.path_of(self.source);
        let spec = CloneSourceSpec::with_checkpoint(from, self.checkpoint.uuid());
        let admin = admin(clone);
        limited(
            "cloning the database",
            settings::CHANGE_LIMIT,
            admin.create_clone_builder_from_source(spec).build(),
        )
        .await?;
        step(failpoints, "fs.db.after-clone").await
    }
}

/// Returns the writer epoch: the number of times the database was opened for writing.
pub async fn epoch(place: &DbPlace) -> Result<Epoch, FsError> {
    let manifest = manifest(place).await?.filter(|manifest| manifest.initialized());
    Ok(manifest.map_or(Epoch(0), |manifest| Epoch(manifest.writer_epoch())))
}

/// Makes a named checkpoint of a database that nobody has open: opens (replays), checkpoints,
/// closes. A checkpoint from outside (`create_detached_checkpoint`) would miss rows that only the
/// WAL holds. Returns also the writer epoch of that opening. [`FsError::Fenced`], and nobody is
/// fenced, when its writer epoch is no longer `expected`.
///
/// `first`: the key of a row that its first opening writes. `None`: no table has such a row, so that
/// the first opening may have failed before.
pub async fn checkpoint_closed(
    place: &DbPlace,
    name: &str,
    (expected, first): (Epoch, &[u8]),
) -> Result<Option<(CheckpointId, Epoch)>, FsError> {
    let existing = manifest(place).await?.ok_or_else(|| missing(place))?;
    if let Some(checkpoint) = named(&existing, name) {
        return Ok(Some((checkpoint, Epoch(existing.writer_epoch()))));
    }
    if !may_have(&existing, first) {
        return Ok(None);
    }
    let database = Database::visit(place, Some(expected)).await?;
    let epoch = database.epoch();
    let checkpoint = database.checkpoint(name).await;
    let closed = database.close().await;
    let checkpoint = checkpoint?;
    closed.map(|()| Some((checkpoint, epoch)))
}

/// Removes a database's obsolete objects. Only for one that nobody has open, or whose owner cannot
/// have begun before this call's caller claimed it: an owner collects its own.
pub async fn collect_garbage(place: &DbPlace) -> Result<(), FsError> {
    let Some(manifest) = manifest(place).await?.filter(|manifest| manifest.initialized()) else {
        return Ok(());
    };
    step(place.bucket.failpoints(), "fs.db.before-collect").await?;
    collection::collect(place, &closed_clock(place, &manifest).await?, Ages::of(place)).await
}

/// Returns the clock of a database that nobody has open: its last time, plus the time since its
/// manifest was stored.
pub(super) async fn closed_clock(
    place: &DbPlace,
    manifest: &VersionedManifest,
) -> Result<Arc<Clock>, FsError> {
    let (clock, last) = (Arc::new(Clock::default()), last_time(manifest));
    let ahead = u64::try_from(last.saturating_sub(clock.now().timestamp_millis())).unwrap_or(0);
    if ahead > 0 {
        let listed = place.bucket.list(&format!("vol/{}/manifest/", place.incarnation)).await;
        let listed = listed.map_err(|error| {
            FsError::Unavailable(format!("listing the database's manifests: {error}"))
        })?;
        let stored = listed.iter().map(|object| object.modified).max();
        let passed = stored.and_then(|stored| stored.elapsed().ok()).unwrap_or_default();
        clock.go_on_from(last.saturating_add(i64::try_from(passed.as_millis()).unwrap_or(0)));
    }
    Ok(clock)
}

/// Detaches a clone's database that nobody has open from its ancestors (R13). [`FsError::Fenced`],
/// and nobody is fenced, when its writer epoch is no longer `expected`.
pub async fn detach_closed(place: &DbPlace, expected: Epoch) -> Result<Detached, FsError> {
    let existing = manifest(place).await?.ok_or_else(|| missing(place))?;
    if existing.external_dbs().is_empty() {
        return Ok(Detached::Whole);
    }
    // A maintenance compaction would hold replaced tables for readers that do not exist.
    let database = Database::visit(place, Some(expected)).await?;
    let detached = database.detach_for(TableReaders::None).await;
    let closed = database.close().await;
    let detached = detached?;
    closed.map(|()| detached)
}

/// Drops a checkpoint. An absent one counts as dropped.
pub async fn drop_checkpoint(place: &DbPlace, checkpoint: CheckpointId) -> Result<(), FsError> {
    let Some(manifest) = manifest(place).await? else { return Ok(()) };
    if !manifest.checkpoints().iter().any(|c| c.id == checkpoint.uuid()) {
        return Ok(());
    }
    limited(
        "dropping a checkpoint",
        settings::CHANGE_LIMIT,
        admin(place).delete_checkpoint(checkpoint.uuid()),
    )
    .await
}

/// The checkpoints that keep a database: named ones (snapshots) and unnamed ones that never expire
/// (clones' pins).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    pub named: Vec<(String, CheckpointId)>,
    pub clone_pins: usize,
}

pub async fn holds(place: &DbPlace) -> Result<Holds, FsError> {
    let Some(manifest) = manifest(place).await? else { return Ok(Holds::default()) };
    let pin = |c: &&Checkpoint| c.name.is_none() && c.expire_time.is_none();
    Ok(Holds {
        named: manifest
            .checkpoints()
            .iter()
            .filter_map(|c| Some((c.name.clone()?, c.id.into())))
            .collect(),
        clone_pins: manifest.checkpoints().iter().filter(pin).count(),
    })
}

/// Counts the ancestors' databases that a clone's database still reads (R13).
pub async fn ancestors(place: &DbPlace) -> Result<usize, FsError> {
    let manifest = manifest(place).await?.ok_or_else(|| missing(place))?;
    Ok(distinct(&manifest))
}

async fn ancestors_at(place: &DbPlace, checkpoint: CheckpointId) -> Result<usize, FsError> {
    let newest = manifest(place).await?.ok_or_else(|| missing(place))?;
    let gone = || {
        FsError::Corrupt(format!(
            "database vol/{} has no checkpoint {}",
            place.incarnation,
            checkpoint.uuid()
        ))
    };
    let at = newest
        .checkpoints()
        .iter()
        .find(|c| c.id == checkpoint.uuid())
        .ok_or_else(gone)?
        .manifest_id;
    let admin = admin(place);
    let held = limited("reading the manifest", settings::READ_LIMIT, admin.read_manifest(Some(at)))
        .await?
        .ok_or_else(gone)?;
    Ok(distinct(&held))
}

fn distinct(manifest: &VersionedManifest) -> usize {
    manifest
        .external_dbs()
        .iter()
        .map(|external| external.path.as_str())
        .collect::<BTreeSet<_>>()
        .len()
}

/// Opens and closes the database, so that no earlier owner can write to it. This is the first step
/// of deletion. An absent database has no owner; one whose deletion has begun was fenced before,
/// and may have lost too much to be opened.
pub async fn fence(place: &DbPlace) -> Result<(), FsError> {
    if deletion_begun(place).await? || !exists(place).await? {
        return Ok(());
    }
    let fenced = async { Database::visit(place, None).await?.close().await };
    match Box::pin(fenced).await {
        // Another process's deletion removed objects while they were read.
        Err(_) if deletion_begun(place).await? || !exists(place).await? => Ok(()),
        fenced => fenced,
    }
}

/// Returns whether [`delete`] was begun and not finished: SlateDB sets a mark before it removes
/// anything, and removes the mark last.
async fn deletion_begun(place: &DbPlace) -> Result<bool, FsError> {
    let mark = format!("vol/{}/.deleting", place.incarnation);
    let found = place.bucket.get(&mark, MARK_BYTES_MAX).await;
    Ok(found
        .map_err(|error| {
            FsError::Unavailable(format!("looking whether the database is being deleted: {error}"))
        })?
        .is_some())
}

/// Removes a fenced database's objects, its pins on ancestors first. Refuses while anything holds
/// it: SlateDB itself would not. Objects without a manifest are no database, only remains that
/// arrived after one was removed, or while another process removes it: they are left to the caller.
pub async fn delete(place: &DbPlace) -> Result<(), FsError> {
    let holds = holds(place).await?;
    if !holds.named.is_empty() {
        return Err(FsError::Busy("the database still has snapshots: delete them first"));
    }
    if holds.clone_pins > 0 {
        return Err(FsError::Busy("clones still read the database: they are detached first"));
    }
    let failpoints = place.bucket.failpoints();
    step(failpoints, "fs.db.before-delete").await?;
    if manifest(place).await?.is_some() {
        let deleted =
            limited("deleting the database", settings::DELETE_LIMIT, admin(place).delete_db(true))
                .await;
        if let Err(error) = deleted
            && manifest(place).await?.is_some()
        {
            return Err(error);
        }
    }
    step(failpoints, "fs.db.after-delete").await
}

fn missing(place: &DbPlace) -> FsError {
    FsError::Corrupt(format!("database vol/{} does not exist", place.incarnation))
}
