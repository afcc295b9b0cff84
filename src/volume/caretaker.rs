//! Work on a dataset that nobody has open: a controller makes a checkpoint, detaches a clone or
//! collects its database; an administrator repairs its rows.

use super::VolumeError;
use super::claim::{Openings, claim, lost_to, own, release, undo};
use super::lease::ExpiredLease;
use super::ownership::{self, Before};
use super::restoring::forget_restore;
use super::settings::VolumeSettings;
use crate::catalog::{Catalog, Dataset};
use crate::fs::check::{self, Repaired};
use crate::fs::db::{self, CheckpointId, Database, DbPlace, Detached};
use crate::fs::{Committer, Fs, FsError, void_journals};
use crate::telemetry::Injected;
use crate::types::{DatasetId, Epoch, PackId};

/// Takes a released dataset for as long as a checkpoint needs, and gives it back. The checkpoint
/// holds everything that was ever acknowledged, because released means cleanly closed (R16).
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it, or took it meanwhile: only that owner can make the
/// checkpoint.
pub async fn checkpoint_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    name: &str,
) -> Result<CheckpointId, VolumeError> {
    let work = async |place: DbPlace, dataset: Dataset, epoch: Epoch| {
        checkpoint(settings, pool, &place, &dataset, epoch, name).await
    };
    care(settings, pool, id, work).await
}

/// Detaches a released clone from its ancestors (R13).
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it.
pub async fn detach_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
) -> Result<Detached, VolumeError> {
    care(settings, pool, id, async |place: DbPlace, _: Dataset, epoch: Epoch| {
        db::detach_closed(&place, epoch).await
    })
    .await
}

/// Removes what a released dataset's database has outlived.
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it: it collects its own.
pub async fn collect_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
) -> Result<(), VolumeError> {
    care(settings, pool, id, async |place: DbPlace, _: Dataset, _: Epoch| {
        db::collect_garbage(&place).await
    })
    .await
}

/// Seals packs that a released dataset refers to (R12). Durable when answered.
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it: its owner can.
pub async fn seal_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    packs: &[PackId],
) -> Result<(), VolumeError> {
    let work = async |place: DbPlace, dataset: Dataset, epoch: Epoch| {
        let fs = open(settings, pool, &place, &dataset, epoch).await?;
        let sealed = fs.seal(packs).await;
        fs.close().await?;
        sealed
    };
    care(settings, pool, id, work).await
}

/// Mends what can be mended of a released dataset's rows without a choice (see
/// [`crate::fs::check`]).
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it: what its memory holds would not be mended.
pub async fn repair_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
) -> Result<Repaired, VolumeError> {
    care(settings, pool, id, async |place: DbPlace, _: Dataset, epoch: Epoch| {
        repair(&place, epoch).await
    })
    .await
}

async fn repair(place: &DbPlace, epoch: Epoch) -> Result<Repaired, FsError> {
    let database = Database::visit(place, Some(epoch)).await?;
    // The committer stores no packs, so none is settled.
    let committer =
        Committer::start(database, None, Box::new(|| 0), place.bucket.failpoints().clone()).await?;
    let repaired = check::repair(&committer).await?;
    committer.close().await.map(|()| repaired)
}

/// Does `work` on a released dataset as its owner would, and closes it again.
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it.
pub async fn with_released<T>(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    work: impl AsyncFnOnce(&Fs) -> T,
) -> Result<T, VolumeError> {
    let opened = async |place: DbPlace, dataset: Dataset, epoch: Epoch| {
        let fs = open(settings, pool, &place, &dataset, epoch).await?;
        let done = Box::pin(work(&fs)).await;
        fs.close().await.map(|()| done)
    };
    care(settings, pool, id, opened).await
}

/// Takes a dataset from an owner that must have stopped, and releases it. Changes that only that
/// owner's journal held are abandoned: should the owner come back, it can neither write nor replay
/// (R16, R34). May be called again.
///
/// # Errors
/// [`VolumeError::Owned`] when the record names another owner by now, or the owner came back.
/// Nobody is fenced then (R32).
pub async fn release_lost(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    expired: &ExpiredLease,
) -> Result<(), VolumeError> {
    let me = ownership::voiding(settings.session, expired.owner().home);
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
    let mine = own(me.claim);
    let mut openings = Openings::new(pool, &place, id, &mine);
    loop {
        match openings.expected().await? {
            // No owner ever opened the dataset.
            Epoch(0) => break,
            expected => match void_journals(&place, expected).await {
                Err(FsError::Fenced) => {}
                voided => {
                    voided.map_err(|source| VolumeError::Fs { dataset: id.to_string(), source })?;
                    break;
                }
            },
        }
    }
    step("volume.lost.fenced").await?;
    release(pool, id, &mine).await
}

/// Finishes what a release by force may have left: the dataset is released, and every journal of
/// before is void (R34).
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it.
pub async fn finish_release(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
) -> Result<(), VolumeError> {
    care(settings, pool, id, async |_: DbPlace, _: Dataset, _: Epoch| Ok(())).await
}

/// Does `work` on a released dataset under a maintenance claim. `work` gets the writer epoch, and
/// must open the database with it (R32), or not write to the database as its owner at all.
///
/// A node may take over a maintenance claim at any time, and fences the work in progress.
async fn care<T>(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    work: impl AsyncFnOnce(DbPlace, Dataset, Epoch) -> Result<T, FsError>,
) -> Result<T, VolumeError> {
    let me = ownership::caretaker(settings.session);
    let (dataset, before) = claim(pool, id, &me, None).await?;
    let place = settings.place(pool, dataset.family, dataset.incarnation);
    let (name, mine) = (dataset.name.to_string(), own(me.claim));
    let step = pool.bucket().failpoints().step("volume.care.claimed").await;
    let fs = |source| VolumeError::Fs { dataset: id.to_string(), source };
    let opened = match step {
        Ok(()) => Openings::new(pool, &place, id, &mine).expected().await,
        Err(injected) => Err(fs(FsError::Unavailable(injected.to_string()))),
    };
    let settled = match opened {
        Ok(epoch) => {
            Box::pin(settle(settings, pool, &place, (&dataset, before), epoch)).await.map_err(fs)
        }
        Err(error) => Err(error),
    };
    let done = match settled {
        Ok(epoch) => {
            let done = Box::pin(work(place, dataset, epoch)).await.map_err(fs);
            let released = release(pool, id, &mine).await;
            done.and_then(|done| released.map(|()| done))
        }
        Err(error) => {
            undo(pool, id, &mine, (before, me.session)).await;
            Err(error)
        }
    };
    match done {
        // Another process opened the dataset: its record names it, unless it has released the
        // dataset again.
        Err(VolumeError::Fs { source: FsError::Fenced, .. }) => Err(taken(pool, id, name).await?),
        done => done,
    }
}

/// Finishes earlier owners' work on a released dataset, so that nothing from before can change it.
/// Returns the writer epoch afterwards.
///
/// - A forced release that was cut short before it had voided the previous node's journal is
///   finished (R34).
/// - A restore that was cut short is ended, which might otherwise not happen: a released dataset
///   may never be opened again (R10). A process that still restores is fenced, and its journal is
///   void, so the rows in the store are all that will ever be restored. If this fails, the next
///   maintenance claim or owner does it.
async fn settle(
    settings: &VolumeSettings,
    pool: &Catalog,
    place: &DbPlace,
    (dataset, before): (&Dataset, Before),
    epoch: Epoch,
) -> Result<Epoch, FsError> {
    if epoch == Epoch(0) || dataset.restoring.is_none() && !matches!(before, Before::Unfinished(_))
    {
        return Ok(epoch);
    }
    let epoch = void_journals(place, epoch).await?;
    let Some(snapshot) = dataset.restoring else { return Ok(epoch) };
    if let Err(error) = forget_restore(pool, dataset.id(), snapshot, settings.session).await {
        tracing::warn!(
            dataset = %dataset.name,
            %error,
            "a restore that was cut short keeps its snapshot until the next maintenance claim"
        );
    }
    Ok(epoch)
}

/// Returns the error for a database that another process opened.
async fn taken(pool: &Catalog, id: DatasetId, dataset: String) -> Result<VolumeError, VolumeError> {
    Ok(lost_to(dataset, pool.dataset_by_id(id).await?.and_then(|at| at.record.owner)))
}

async fn checkpoint(
    settings: &VolumeSettings,
    pool: &Catalog,
    place: &DbPlace,
    dataset: &Dataset,
    epoch: Epoch,
    name: &str,
) -> Result<CheckpointId, FsError> {
    if epoch > Epoch(0) {
        return db::checkpoint_closed(place, name, epoch).await;
    }
    // Never opened: it has no root directory yet.
    let fs = open(settings, pool, place, dataset, epoch).await?;
    let made = fs.snapshot(name).await;
    let closed = fs.close().await;
    let made = made?;
    closed.map(|()| made)
}

async fn open(
    settings: &VolumeSettings,
    pool: &Catalog,
    place: &DbPlace,
    dataset: &Dataset,
    epoch: Epoch,
) -> Result<Fs, FsError> {
    Fs::open_at(
        place,
        settings.chunks(pool, dataset.family),
        settings.options(dataset, None),
        epoch,
    )
    .await
}
