//! Resolves ids to the names that operators gave.

use crate::catalog::{CatalogError, Dataset, Snapshot};
use crate::control::Pool;
use crate::types::{DatasetId, Incarnation, SnapshotId};
use std::collections::HashMap;

#[derive(Default)]
pub struct Names {
    datasets: HashMap<Incarnation, String>,
    snapshots: HashMap<SnapshotId, Snapshot>,
}

impl Names {
    /// The names of the whole pool; `datasets` were read already.
    pub async fn all(pool: &Pool, datasets: &[Dataset]) -> Result<Self, CatalogError> {
        let snapshots = pool.catalog.snapshots(None).await?;
        Ok(Self::of(datasets, snapshots.into_iter().map(|at| at.record)))
    }

    /// The names in these records.
    pub(super) fn of(datasets: &[Dataset], snapshots: impl Iterator<Item = Snapshot>) -> Self {
        Self {
            datasets: datasets.iter().map(|d| (d.incarnation, d.name.to_string())).collect(),
            snapshots: snapshots.map(|snapshot| (snapshot.id(), snapshot)).collect(),
        }
    }

    /// The name of the snapshot that one dataset was made from.
    pub async fn of_origin(pool: &Pool, dataset: &Dataset) -> Result<Self, CatalogError> {
        let mut names = Self::default();
        let Some(origin) = dataset.origin else { return Ok(names) };
        let Some(snapshot) = pool.catalog.snapshot_by_id(origin).await?.map(|at| at.record) else {
            return Ok(names);
        };
        if let Some(of) = pool.catalog.dataset_by_id(snapshot.dataset).await? {
            names.datasets.insert(origin.dataset, of.record.name.to_string());
        }
        names.snapshots.insert(origin, snapshot);
        Ok(names)
    }

    /// `DATASET@SNAPSHOT`, or the id if that is gone.
    pub fn snapshot(&self, id: SnapshotId) -> String {
        match (self.datasets.get(&id.dataset), self.snapshots.get(&id)) {
            // An implied snapshot has no name.
            (Some(of), Some(snapshot)) if snapshot.implied => {
                format!("{of}, as it was at {}", snapshot.created.rfc3339())
            }
            (Some(of), Some(snapshot)) => format!("{of}@{}", snapshot.name),
            _ => id.to_string(),
        }
    }

    pub fn dataset(&self, id: DatasetId) -> String {
        self.datasets.get(&id.incarnation).cloned().unwrap_or_else(|| id.to_string())
    }
}
