//! The journals in this node's journal directory, `<directory>/<pool>/<dataset>.journal`, and the
//! removal of obsolete ones.
//!
//! A journal is needed while the dataset's record names a session of this directory: the next
//! opening replays it. A journal that a crash left, and whose dataset was taken by another node
//! since, is never replayed: the new owner has raised the writer epoch (R16, R34). Nor is one whose
//! dataset is deleted.

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

/// The datasets that have journal files: a journal is a lock file with up to two segments beside
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
    /// Removes obsolete journals of a pool's datasets, except of volumes that are open or being
    /// closed. Returns the number of removed journals.
    ///
    /// # Errors
    /// The store does not answer, or the directory cannot be used: the next call retries.
    pub async fn remove_obsolete_journals(&self, pool: &Catalog) -> Result<usize, VolumeError> {
        let Some(dir) = &self.settings().journal_dir else { return Ok(0) };
        let here = folder(dir, pool);
        let failed = move |error: std::io::Error| {
            Io(format!("journal directory {}: {error}: make it readable", here.display()))
        };
        let here = folder(dir, pool);
        let listed = tokio::task::spawn_blocking(move || found(&here))
            .await
            .map_err(|error| Io(error.to_string()))?;
        let mut removed = 0;
        for dataset in listed.map_err(failed)? {
            removed += usize::from(
                self.remove_if_obsolete(pool, dataset, path(dir, pool, dataset)).await?,
            );
        }
        Ok(removed)
    }

    async fn remove_if_obsolete(
        &self,
        pool: &Catalog,
        dataset: DatasetId,
        at: PathBuf,
    ) -> Result<bool, VolumeError> {
        if self.find(dataset).is_some() {
            return Ok(false);
        }
        // Keeps the volume from being opened meanwhile.
        let entry = self.entry(pool, dataset)?;
        let _lock = entry.transition.lock().await;
        if !self.is_current(&entry) || !entry.lifecycle().is_idle() {
            return Ok(false);
        }
        let obsolete = self.is_obsolete(pool, dataset).await;
        let removed = match obsolete {
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
        self.forget(&entry);
        if let Ok(true) = removed {
            tracing::info!(
                %dataset,
                "removed an obsolete journal: the dataset is deleted, or another node has taken it"
            );
        }
        removed
    }

    async fn is_obsolete(&self, pool: &Catalog, dataset: DatasetId) -> Result<bool, VolumeError> {
        let me = self.owner_with_journals().await?;
        let record = pool.dataset_by_id(dataset).await?.map(|at| at.record);
        let ours = |owner: &Owner| {
            owner.session == me.session
                || owner.journal_dir_id.is_some() && owner.journal_dir_id == me.journal_dir_id
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
        std::fs::write(dir.path().join("directory-id"), "").unwrap();
        std::fs::write(dir.path().join("x.journal"), "").unwrap();
        assert_eq!(found(dir.path()).unwrap(), BTreeSet::from([id(1), id(2)]));
    }
}
