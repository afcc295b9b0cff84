//! The journals in this node's folder: `<folder>/<pool>/<dataset>.journal`, and their removal once
//! they are obsolete.
//!
//! A journal is needed while the dataset's record names a session of this folder: it is replayed at
//! the next opening. A journal left by a crash whose dataset has moved away since is never
//! replayed: the new owner has raised the writer epoch (R16, R34). Nor is one whose dataset was
//! deleted.

use super::volumes::Volumes;
use super::{VolumeError, VolumeError::Io};
use crate::catalog::{Catalog, Owner};
use crate::fs::journal;
use crate::types::DatasetId;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".journal";

/// The journals of one pool.
fn folder(dir: &Path, pool: &Catalog) -> PathBuf {
    dir.join(pool.pool().id.to_string())
}

/// A dataset's journal.
pub(super) fn path(dir: &Path, pool: &Catalog, dataset: DatasetId) -> PathBuf {
    folder(dir, pool).join(format!("{dataset}{SUFFIX}"))
}

/// Finds the datasets of the journal files: a journal is its lock, and up to two segments beside
/// it.
fn found(folder: &Path) -> std::io::Result<BTreeSet<DatasetId>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.split_once(SUFFIX)?.0.parse().ok()).collect())
}

impl Volumes {
    /// Removes a pool's obsolete journals and returns their number. Those of datasets that are
    /// open, or being closed, are left alone.
    ///
    /// # Errors
    /// The store does not answer, or the folder cannot be used: the next call removes the rest.
    pub async fn remove_outlived_journals(&self, pool: &Catalog) -> Result<usize, VolumeError> {
        let Some(dir) = &self.settings().journal_dir else { return Ok(0) };
        let here = folder(dir, pool);
        let failed = move |error: std::io::Error| {
            Io(format!("journal folder {}: {error}: make it readable", here.display()))
        };
        let here = folder(dir, pool);
        let listed = tokio::task::spawn_blocking(move || found(&here))
            .await
            .map_err(|error| Io(error.to_string()))?;
        let mut removed = 0;
        for dataset in listed.map_err(failed)? {
            removed += usize::from(
                self.remove_if_outlived(pool, dataset, path(dir, pool, dataset)).await?,
            );
        }
        Ok(removed)
    }

    async fn remove_if_outlived(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        at: PathBuf,
    ) -> Result<bool, VolumeError> {
        if self.find(dataset).is_some() {
            return Ok(false);
        }
        // The place's turn keeps it from being opened meanwhile.
        let place = self.place(pool, dataset)?;
        let _turn = place.turn.lock().await;
        if !self.is_current(&place) || !place.life().is_idle() {
            return Ok(false);
        }
        let outlived = self.is_outlived(pool, dataset).await;
        let removed = match outlived {
            Ok(true) => {
                let removal = tokio::task::spawn_blocking(move || journal::remove(&at)).await;
                removal.map_err(|error| Io(error.to_string())).and_then(|removed| {
                    removed
                        .map_err(|source| VolumeError::Fs { dataset: dataset.to_string(), source })
                })
            }
            Ok(false) => Ok(false),
            Err(error) => Err(error),
        };
        self.forget(&place);
        if let Ok(true) = removed {
            tracing::info!(
                %dataset,
                "the dataset has moved away, or is gone: its journal is of no use here any more \
                 and is removed"
            );
        }
        removed
    }

    async fn is_outlived(&self, pool: &Catalog, dataset: DatasetId) -> Result<bool, VolumeError> {
        let me = self.owner_at_home().await?;
        let record = pool.dataset_by_id(dataset).await?.map(|at| at.record);
        let ours = |owner: &Owner| {
            owner.session == me.session || owner.home.is_some() && owner.home == me.home
        };
        Ok(!record.and_then(|record| record.owner).as_ref().is_some_and(ours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Incarnation, NameKey};

    #[test]
    fn a_journal_is_found_by_any_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(found(&dir.path().join("absent")).unwrap(), BTreeSet::new());
        let id = |n| DatasetId {
            key: NameKey::from_bytes([n; 16]),
            incarnation: Incarnation::from_bytes([n; 16]),
        };
        for name in [
            format!("{}.journal", id(1)),
            format!("{}.journal.0", id(1)),
            format!("{}.journal.1", id(2)),
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::write(dir.path().join("home"), "").unwrap();
        std::fs::write(dir.path().join("x.journal"), "").unwrap();
        assert_eq!(found(dir.path()).unwrap(), BTreeSet::from([id(1), id(2)]));
    }
}
