//! Maintenance of released datasets under a maintenance claim: a controller makes a checkpoint,
//! detaches a clone, or collects a database; an administrator repairs rows.

use super::VolumeError;
use super::claim::{ActiveClaim, Opening, Openings, claim, lost_to, release, undo};
use super::lease::ExpiredLease;
use super::ownership::{self, Before};
use super::restoring::forget_restore;
use super::settings::VolumeSettings;
use crate::catalog::{Catalog, Dataset, Form, State};
use crate::fs::check::{self, Repaired};
use crate::fs::db::{self, CheckpointId, ClosedDatabase, Database, DbPlace, Detached};
use crate::fs::{Committer, Fs, FsError, key, void_journals};
use crate::telemetry::Injected;
use crate::types::{DatasetId, Epoch, InodeNo, PackId};

/// Returns the database of a dataset whose record, as just read, says that it is released, if it
/// was closed in order: its checkpoint needs neither a claim nor an opening.
pub async fn closed_database(
    settings: &VolumeSettings,
    pool: &Catalog,
    dataset: &Dataset,
) -> Result<Option<ClosedDatabase>, FsError> {
    // An interrupted restore is to be ended first, and so is an interrupted release by force, of
    // which a maintenance claim is left.
    let is_released = dataset.state == State::Ready
        && dataset.form == Form::Writable
        && dataset.owner.is_none()
        && dataset.restoring.is_none();
    if !is_released {
        return Ok(None);
    }
    let place = settings.place(pool, dataset.family, dataset.incarnation);
    ClosedDatabase::read(&place, &key::inode(InodeNo::ROOT)).await
}

/// Makes a checkpoint of a released dataset. It holds every acknowledged change, because released
/// means cleanly closed (R16).
///
/// # Errors
/// [`VolumeError::Owned`] when a node owns it, or took it meanwhile: only that owner can make the
/// checkpoint.
pub async fn checkpoint_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    name: &str,
) -> Result<CheckpointId, VolumeError> {
    let work = async |held: &Maintained| checkpoint(settings, pool, held, name).await;
    maintain(settings, pool, id, work).await.map(|(made, _)| made)
}

/// As [`checkpoint_released`], if nobody has opened the dataset's database since its writer epoch
/// was `expected`, and the epoch of the opening that made it; `None`: somebody has.
///
/// # Errors
/// [`VolumeError::Owned`] when a node owns it, or took it meanwhile.
pub async fn checkpoint_unchanged(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    name: &str,
    expected: Epoch,
) -> Result<Option<(CheckpointId, Epoch)>, VolumeError> {
    let work = async |held: &Maintained| {
        if held.opening.expected != expected {
            return Ok(None);
        }
        checkpoint(settings, pool, held, name).await.map(Some)
    };
    maintain(settings, pool, id, work).await
}

/// Detaches a released clone from its origin (R13).
///
/// # Errors
/// [`VolumeError::Owned`] when a node owns it.
pub async fn detach_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
) -> Result<Detached, VolumeError> {
    maintain(settings, pool, id, async |held: &Maintained| {
        db::detach_closed(&held.opening.place, held.opening.expected).await
    })
    .await
}

/// Removes obsolete objects of a released dataset's database.
///
/// # Errors
/// [`VolumeError::Owned`] when a node owns it, which collects the database itself.
pub async fn collect_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
) -> Result<(), VolumeError> {
    maintain(settings, pool, id, async |held: &Maintained| db::collect_garbage(&held.place).await)
        .await
}

/// Seals packs that a released dataset refers to (R12). Durable when this returns.
///
/// # Errors
/// [`VolumeError::Owned`] when a node owns it: only the owner can.
pub async fn seal_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    packs: &[PackId],
) -> Result<(), VolumeError> {
    let work = async |held: &Maintained| {
        let fs = open(settings, pool, held).await?;
        let sealed = fs.seal(packs).await;
        fs.close().await?;
        sealed
    };
    maintain(settings, pool, id, work).await
}

/// Repairs rows of a released dataset that can be derived from others (see [`crate::fs::check`]).
///
/// # Errors
/// [`VolumeError::Owned`] when a node owns it: its memory would not be repaired.
pub async fn repair_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
) -> Result<Repaired, VolumeError> {
    maintain(settings, pool, id, async |held: &Maintained| repair(&held.opening).await).await
}

async fn repair(Opening { place, expected }: &Opening) -> Result<Repaired, FsError> {
    let database = Database::visit(place, Some(*expected)).await?;
    // The committer stores no packs, so that none is settled.
    let committer =
        Committer::start(database, None, Box::new(|| 0), place.bucket.failpoints().clone()).await?;
    let repaired = check::repair(&committer).await?;
    committer.close().await.map(|()| repaired)
}

/// Does `work` on a released dataset as its owner, and closes it again.
///
/// # Errors
/// [`VolumeError::Owned`] when a node owns it.
pub async fn with_released<T>(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    work: impl AsyncFnOnce(&Fs, &ActiveClaim) -> T,
) -> Result<T, VolumeError> {
    let opened = async |held: &Maintained| {
        let fs = open(settings, pool, held).await?;
        let done = Box::pin(work(&fs, &held.claim)).await;
        fs.close().await.map(|()| done)
    };
    maintain(settings, pool, id, opened).await
}

/// Takes a dataset from an owner that must have stopped, and releases it. Changes that only that
/// owner's journal held are lost: should the owner come back, it can neither write nor replay (R16,
/// R34). May be retried.
///
/// # Errors
/// [`VolumeError::Owned`] when the record names another owner by now, or that owner has come back.
/// Nobody is fenced then (R32).
pub async fn release_lost(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    expired: &ExpiredLease,
) -> Result<(), VolumeError> {
    let me = ownership::voiding_claim(settings.session, expired.owner().journal_dir_id);
    let (dataset, _) = claim(pool, id, &me, Some(expired)).await?;
    let step = |name: &'static str| async move {
        let failed = |injected: Injected| VolumeError::Fs {
            dataset: id.to_string(),
            source: FsError::Unavailable(injected.to_string()),
        };
        pool.bucket().failpoints().step(name).await.map_err(failed)
    };
    step("volume.lost.claimed").await?;
    let place = settings.place(pool, dataset.family, dataset.incarnation);
    let mine = ActiveClaim::Maintenance(me.claim);
    let mut openings = Openings::new(pool, &place, id, &mine);
    loop {
        let Opening { place, expected } = openings.next().await?;
        // No owner ever opened it.
        if expected == Epoch(0) {
            break;
        }
        match void_journals(&place, expected).await {
            Err(FsError::Fenced) => {}
            voided => {
                voided.map_err(|source| VolumeError::Fs { dataset: id.to_string(), source })?;
                break;
            }
        }
    }
    step("volume.lost.fenced").await?;
    release(pool, id, &mine).await
}

/// Finishes a release by force that may have been interrupted: the dataset is released, and every
/// earlier journal is void (R34).
///
/// # Errors
/// [`VolumeError::Owned`] when a node owns it.
pub async fn finish_release(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
) -> Result<(), VolumeError> {
    maintain(settings, pool, id, async |_: &Maintained| Ok(())).await
}

/// A released dataset under a maintenance claim.
struct Maintained {
    place: DbPlace,
    dataset: Dataset,
    /// The one opening of the database (R32), unless it is not written to as its owner at all.
    opening: Opening,
    claim: ActiveClaim,
}

/// Does `work` on a released dataset under a maintenance claim.
///
/// A node may take over from a maintenance claim at any time, and fences its work.
async fn maintain<T>(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    work: impl AsyncFnOnce(&Maintained) -> Result<T, FsError>,
) -> Result<T, VolumeError> {
    let me = ownership::maintenance_claim(settings.session);
    let (dataset, before) = claim(pool, id, &me, None).await?;
    let place = settings.place(pool, dataset.family, dataset.incarnation);
    let (name, mine) = (dataset.name.to_string(), ActiveClaim::Maintenance(me.claim));
    let step = pool.bucket().failpoints().step("volume.maintenance.claimed").await;
    let fs = |source| VolumeError::Fs { dataset: id.to_string(), source };
    let opened = match step {
        Ok(()) => Openings::new(pool, &place, id, &mine).next().await,
        Err(injected) => Err(fs(FsError::Unavailable(injected.to_string()))),
    };
    let settled = match opened {
        Ok(opening) => {
            let held = Maintained { place, dataset, opening, claim: mine.clone() };
            Box::pin(settle(pool, held, before)).await.map_err(fs)
        }
        Err(error) => Err(error),
    };
    let done = match settled {
        Ok(held) => {
            let done = Box::pin(work(&held)).await.map_err(fs);
            let released = release(pool, id, &mine).await;
            done.and_then(|done| released.map(|()| done))
        }
        Err(error) => {
            undo(pool, id, &mine, (before, me.session)).await;
            Err(error)
        }
    };
    match done {
        // Another owner opened it: the record names it, unless it has released it again.
        Err(VolumeError::Fs { source: FsError::Fenced, .. }) => Err(taken(pool, id, name).await?),
        done => done,
    }
}

/// Finishes earlier work on a released dataset, so that nothing from before can change it.
///
/// - The journal of an earlier node is voided where a release by force was interrupted before it
///   had done so (R34).
/// - An interrupted restore is ended: a released dataset may never be opened again, so that no
///   owner may do so for long (R10). A process that still restores is fenced, and its journal is
///   void, so that the store holds all rows that it will ever have restored. If this fails, the
///   next maintenance claim or owner retries.
async fn settle(
    pool: &Catalog,
    mut held: Maintained,
    before: Before,
) -> Result<Maintained, FsError> {
    let restoring = held.dataset.restoring;
    let is_new = held.opening.expected == Epoch(0);
    if is_new || restoring.is_none() && !matches!(before, Before::Unfinished(_)) {
        return Ok(held);
    }
    let expected = void_journals(&held.opening.place, held.opening.expected).await?;
    held.opening = Opening { place: held.place.clone(), expected };
    let Some(snapshot) = restoring else { return Ok(held) };
    if let Err(error) = forget_restore(pool, held.dataset.id(), snapshot, &held.claim).await {
        tracing::warn!(
            dataset = %held.dataset.name,
            %error,
            "an interrupted restore retains its snapshot until the next maintenance claim"
        );
    }
    Ok(held)
}

/// The error when another owner has opened the database.
async fn taken(pool: &Catalog, id: DatasetId, dataset: String) -> Result<VolumeError, VolumeError> {
    Ok(lost_to(dataset, pool.dataset_by_id(id).await?.and_then(|at| at.record.owner)))
}

/// Returns also the writer epoch of the opening that made it.
///
/// A first opening that fails may leave a database without a root directory, of which no reader
/// could open a snapshot. Whatever opens the database again, an attempt or the end of a lost
/// owner's journal, may put its rows into tables. So no checkpoint is taken of a database whose
/// tables cannot have the root's row, before an opening as a file system has made sure of a root.
async fn checkpoint(
    settings: &VolumeSettings,
    pool: &Catalog,
    held: &Maintained,
    name: &str,
) -> Result<(CheckpointId, Epoch), FsError> {
    let Opening { place, expected } = &held.opening;
    let root = key::inode(InodeNo::ROOT);
    if *expected > Epoch(0)
        && let Some(made) = db::checkpoint_closed(place, name, (*expected, &root[..])).await?
    {
        return Ok(made);
    }
    let fs = open(settings, pool, held).await?;
    let (made, epoch) = (fs.snapshot(name).await, fs.epoch());
    let closed = fs.close().await;
    let made = made?;
    closed.map(|()| (made, epoch))
}

async fn open(settings: &VolumeSettings, pool: &Catalog, held: &Maintained) -> Result<Fs, FsError> {
    let chunks = settings.chunks(pool, held.dataset.family);
    let Opening { place, expected } = &held.opening;
    Fs::open_at(place, chunks, settings.options(&held.dataset, None), *expected).await
}
