//! What a controller does to a dataset that nobody has open: a checkpoint, the detaching of a clone, the collection of its database; and what an
//! administrator does: mending its rows.

use super::VolumeError;
use super::claim::{claim, release};
use super::lease::Forfeit;
use super::ownership;
use super::restoring::forget_restore;
use super::settings::VolumeSettings;
use crate::catalog::{Catalog, CatalogError, Dataset};
use crate::fs::check::{self, Repaired};
use crate::fs::db::{self, CheckpointId, Database, DbPlace, Detached};
use crate::fs::{Committer, Fs, FsError};
use crate::types::{DatasetId, Epoch, PackId};

/// Takes a released dataset for as long as a checkpoint needs, and gives it back. The checkpoint holds everything that was
/// ever acknowledged, because released means cleanly closed (R16).
///
/// A node may take a caretaker's claim at any time. The writer epoch is therefore read before the claim and expected at
/// the opening: whoever opened the database since has raised it, and the opening fails here instead of fencing that owner.
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it, or took it meanwhile: only that owner can make the checkpoint.
pub async fn checkpoint_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    name: &str,
) -> Result<CheckpointId, VolumeError> {
    let work =
        async |place: DbPlace, dataset: Dataset, epoch: Epoch| checkpoint(settings, pool, &place, &dataset, epoch, name).await;
    care(settings, pool, id, work).await
}

/// Makes a released clone stand on its own (R13).
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it.
pub async fn detach_released(settings: &VolumeSettings, pool: &Catalog, id: DatasetId) -> Result<Detached, VolumeError> {
    care(settings, pool, id, async |place: DbPlace, _: Dataset, epoch: Epoch| db::detach_closed(&place, epoch).await).await
}

/// Removes what a released dataset's database has outlived.
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it: it collects its own.
pub async fn collect_released(settings: &VolumeSettings, pool: &Catalog, id: DatasetId) -> Result<(), VolumeError> {
    care(settings, pool, id, async |place: DbPlace, _: Dataset, _: Epoch| db::collect_garbage(&place).await).await
}

/// Seals packs that a released dataset refers to (R12). Durable when answered.
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it: its owner can.
pub async fn seal_released(settings: &VolumeSettings, pool: &Catalog, id: DatasetId, packs: &[PackId]) -> Result<(), VolumeError> {
    let work = async |place: DbPlace, dataset: Dataset, epoch: Epoch| {
        let fs = open(settings, pool, &place, &dataset, epoch).await?;
        let sealed = fs.seal(packs).await;
        fs.close().await?;
        sealed
    };
    care(settings, pool, id, work).await
}

/// Mends what can be mended of a released dataset's rows without a choice (see [`crate::fs::check`]).
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it: what its memory holds would not be mended.
pub async fn repair_released(settings: &VolumeSettings, pool: &Catalog, id: DatasetId) -> Result<Repaired, VolumeError> {
    care(settings, pool, id, async |place: DbPlace, _: Dataset, epoch: Epoch| repair(&place, epoch).await).await
}

async fn repair(place: &DbPlace, epoch: Epoch) -> Result<Repaired, FsError> {
    let database = Database::visit(place, Some(epoch)).await?;
    // It stores no packs, so that none is settled.
    let committer = Committer::start(database, None, Box::new(|| 0), place.bucket.failpoints().clone()).await?;
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

/// Takes a dataset from an owner that must have stopped, and releases it. What only that owner's journal held is lost, and the owner
/// is fenced: should it come back, it can neither write nor replay (R16). May be repeated.
///
/// # Errors
/// [`VolumeError::Owned`] when the record names another owner by now, or that one came back.
pub async fn release_lost(settings: &VolumeSettings, pool: &Catalog, id: DatasetId, forfeit: &Forfeit) -> Result<(), VolumeError> {
    let me = ownership::caretaker(settings.session);
    let mut other = None;
    let taken = pool
        .update_dataset(id, |dataset| {
            other = dataset.owner.clone().filter(|owner| !forfeit.covers(id, owner) && !ownership::is_caretaker(owner));
            if other.is_some() {
                let why = "another owns it".to_owned();
                return Err(CatalogError::Precondition { what: format!("dataset {}", dataset.name), why });
            }
            dataset.owner = Some(me.clone());
            Ok(())
        })
        .await;
    let dataset = match (taken, other) {
        (Ok(at), _) => at.record,
        (Err(_), Some(owner)) => {
            return Err(VolumeError::Owned { dataset: id.to_string(), node: owner.node.clone(), owner: Box::new(owner) });
        }
        (Err(error), None) => return Err(error.into()),
    };
    let step = |name: &'static str| async move {
        pool.bucket().failpoints().step(name).await.map_err(|injected| VolumeError::Io(injected.to_string()))
    };
    step("volume.lost.claimed").await?;
    let place = settings.place(pool, dataset.family, dataset.incarnation);
    db::fence(&place).await.map_err(|source| VolumeError::Fs { dataset: dataset.name.to_string(), source })?;
    step("volume.lost.fenced").await?;
    release(pool, id, &me).await
}

/// Does `work` on a released dataset under a caretaker's claim. It is given the writer epoch as it was before the claim,
/// and must open the database with it, or not write to it as its owner at all.
async fn care<T>(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    work: impl AsyncFnOnce(DbPlace, Dataset, Epoch) -> Result<T, FsError>,
) -> Result<T, VolumeError> {
    let me = ownership::caretaker(settings.session);
    let absent = || VolumeError::NotFound { what: format!("dataset {id}") };
    let family = pool.dataset_by_id(id).await?.ok_or_else(absent)?.record.family;
    let place = settings.place(pool, family, id.incarnation);
    let fs = |source| VolumeError::Fs { dataset: id.to_string(), source };
    let epoch = db::epoch(&place).await.map_err(fs)?;
    let (dataset, _) = claim(pool, id, &me, None).await?;
    let name = dataset.name.to_string();
    let step = pool.bucket().failpoints().step("volume.care.claimed").await;
    let done = match step {
        Ok(()) => match Box::pin(end_restore(settings, pool, &place, &dataset, epoch)).await {
            Ok(epoch) => Box::pin(work(place, dataset, epoch)).await,
            Err(error) => Err(error),
        },
        Err(injected) => Err(FsError::Unavailable(injected.to_string())),
    };
    let released = release(pool, id, &me).await;
    match done {
        Ok(done) => released.map(|()| done),
        // Somebody opened it: its record says who, unless that one is gone again.
        Err(FsError::Fenced) => Err(taken(pool, id, name).await?),
        Err(source) => Err(VolumeError::Fs { dataset: name, source }),
    }
}

/// Ends a restore that was cut short, which nobody else may do for long: a released dataset may never be opened again (R10). The writer epoch
/// afterwards. Whoever still restores is fenced by the opening, and its journal, if it had one, was given up when the dataset was released: what is
/// in the store then is all there will ever be of it. What fails is done by the next caretaker or owner.
async fn end_restore(
    settings: &VolumeSettings,
    pool: &Catalog,
    place: &DbPlace,
    dataset: &Dataset,
    epoch: Epoch,
) -> Result<Epoch, FsError> {
    let Some(snapshot) = dataset.restoring else { return Ok(epoch) };
    let database = Database::visit(place, Some(epoch)).await?;
    let epoch = database.epoch();
    database.close().await?;
    if let Err(error) = forget_restore(pool, dataset.id(), snapshot, settings.session).await {
        tracing::warn!(dataset = %dataset.name, %error, "a restore that was cut short keeps its snapshot until the next caretaker");
    }
    Ok(epoch)
}

/// What to say when the database was opened by another.
async fn taken(pool: &Catalog, id: DatasetId, dataset: String) -> Result<VolumeError, VolumeError> {
    let owner = pool.dataset_by_id(id).await?.and_then(|at| at.record.owner).filter(|owner| !ownership::is_caretaker(owner));
    Ok(match owner {
        Some(owner) => VolumeError::Owned { dataset, node: owner.node.clone(), owner: Box::new(owner) },
        None => VolumeError::Fs { dataset, source: FsError::Busy("it was opened elsewhere meanwhile: try again") },
    })
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

async fn open(settings: &VolumeSettings, pool: &Catalog, place: &DbPlace, dataset: &Dataset, epoch: Epoch) -> Result<Fs, FsError> {
    Fs::open_at(place, settings.chunks(pool, dataset.family), settings.options(dataset, None), Some(epoch)).await
}
