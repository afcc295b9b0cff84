//! A checkpoint of a dataset that nobody has open, made by a controller.

use super::VolumeError;
use super::ownership;
use super::volumes::{VolumeSettings, claim, place, release};
use crate::catalog::{Catalog, Dataset};
use crate::chunk::ChunkStore;
use crate::fs::db::{self, CheckpointId};
use crate::fs::{Fs, FsError};
use crate::types::DatasetId;

/// Takes a released dataset for as long as a checkpoint needs, and gives it back. The checkpoint holds everything that was
/// ever acknowledged, because released means cleanly closed (R16).
///
/// # Errors
/// [`VolumeError::Owned`] when a node has it: only that owner can make the checkpoint.
pub async fn checkpoint_released(
    settings: &VolumeSettings,
    pool: &Catalog,
    id: DatasetId,
    name: &str,
) -> Result<CheckpointId, VolumeError> {
    let me = ownership::caretaker(settings.session);
    let (dataset, _) = claim(pool, id, &me).await?;
    let made = Box::pin(checkpoint(settings, pool, &dataset, name)).await;
    let released = release(pool, id, &me).await;
    let made = made.map_err(|source| VolumeError::Fs { dataset: dataset.name.to_string(), source })?;
    released.map(|()| made)
}

async fn checkpoint(settings: &VolumeSettings, pool: &Catalog, dataset: &Dataset, name: &str) -> Result<CheckpointId, FsError> {
    let place = place(pool, dataset.family, dataset.incarnation, &settings.cache);
    if db::exists(&place).await? {
        return db::checkpoint_closed(&place, name).await;
    }
    // Never opened: it has no root directory yet.
    let chunks = ChunkStore::new(pool.bucket().clone(), dataset.family, pool.keyring(), settings.chunk_cache.clone());
    let fs = Fs::open(&place, chunks, settings.options(dataset, None)).await?;
    let made = fs.snapshot(name).await;
    let closed = fs.close().await;
    let made = made?;
    closed.map(|()| made)
}
