//! The roots of a pool, row by row: the heads of datasets, and their snapshots. For use cases that
//! read all of them; the collector, which decides what may be deleted, reads roots by rules of its
//! own.

use super::{ControlError, Pool};
use crate::catalog::{CatalogError, Dataset, Snapshot, State};
use crate::fs::FsError;
use crate::fs::db::Reader;
use crate::fs::key::Key;
use crate::fs::row::{Row, Usage};
use crate::types::{DatasetId, FamilyId, Incarnation, PackId};
use crate::volume::{RootReader, VolumeError, Volumes};
use bytes::Bytes;
use std::collections::HashMap;

/// A head or a snapshot being read.
pub(super) struct OpenRoot {
    /// `DATASET` or `DATASET@SNAPSHOT`.
    pub(super) name: String,
    pub(super) family: FamilyId,
    reader: RootReader,
}

/// A root that can be read.
pub(super) enum RootRef {
    Head(Dataset),
    Snapshot { snapshot: Snapshot, dataset: String },
}

impl RootRef {
    pub(super) fn family(&self) -> FamilyId {
        match self {
            Self::Head(dataset) => dataset.family,
            Self::Snapshot { snapshot, .. } => snapshot.family,
        }
    }

    /// Returns the id of the dataset itself, or of the one that the snapshot was taken of.
    pub(super) fn dataset(&self) -> DatasetId {
        match self {
            Self::Head(dataset) => dataset.id(),
            Self::Snapshot { snapshot, .. } => snapshot.dataset,
        }
    }

    pub(super) fn is_head(&self) -> bool {
        matches!(self, Self::Head(_))
    }

    /// Returns whether it was deleted since it was listed: then its objects may be gone, however
    /// it was registered.
    pub(super) async fn is_deleted(&self, pool: &Pool) -> Result<bool, ControlError> {
        let state = match self {
            Self::Head(dataset) => {
                pool.catalog.dataset_by_id(dataset.id()).await?.map(|at| at.record.state)
            }
            Self::Snapshot { snapshot, .. } => {
                pool.catalog.snapshot_by_id(snapshot.id()).await?.map(|at| at.record.state)
            }
        };
        Ok(state != Some(State::Ready))
    }
}

/// Lists everything live in a pool, by name: heads, then snapshots.
pub(super) async fn list(pool: &Pool) -> Result<Vec<RootRef>, ControlError> {
    let mut datasets: Vec<Dataset> =
        pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
    datasets.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    let names: HashMap<Incarnation, String> =
        datasets.iter().map(|d| (d.incarnation, d.name.to_string())).collect();
    let mut snapshots: Vec<(String, Snapshot)> = Vec::new();
    for at in pool.catalog.snapshots(None).await? {
        let dataset = names.get(&at.record.dataset.incarnation).cloned();
        snapshots.push((dataset.unwrap_or_else(|| at.record.dataset.to_string()), at.record));
    }
    snapshots.sort_by(|a, b| (&a.0, a.1.name.as_str()).cmp(&(&b.0, b.1.name.as_str())));
    let heads = datasets.into_iter().filter(|d| d.state == State::Ready).map(RootRef::Head);
    let ready = snapshots.into_iter().filter(|(_, s)| s.state == State::Ready);
    Ok(heads
        .chain(ready.map(|(dataset, snapshot)| RootRef::Snapshot { snapshot, dataset }))
        .collect())
}

impl OpenRoot {
    /// `None`: never opened, or removed meanwhile.
    pub(super) async fn open(
        pool: &Pool,
        volumes: &Volumes,
        source: &RootRef,
    ) -> Result<Option<Self>, ControlError> {
        let settings = volumes.settings();
        let (name, reader) = match source {
            RootRef::Head(dataset) => {
                let reader = RootReader::head(settings, &pool.catalog, dataset).await?;
                (dataset.name.to_string(), reader)
            }
            RootRef::Snapshot { snapshot, dataset } => {
                let opened = RootReader::snapshot_to_verify(settings, &pool.catalog, snapshot.id());
                let reader = match opened.await {
                    Ok((reader, _)) => Some(reader),
                    Err(VolumeError::Catalog(CatalogError::NotFound { .. })) => None,
                    Err(error) => return Err(error.into()),
                };
                (format!("{dataset}@{}", snapshot.name), reader)
            }
        };
        Ok(reader.map(|reader| Self { name, family: source.family(), reader }))
    }

    pub(super) fn rows(&self) -> &Reader {
        self.reader.rows()
    }

    pub(super) async fn close(self) -> Result<(), ControlError> {
        Ok(self.reader.close().await?)
    }
}

/// Every pack with references, by its `U` row.
pub(super) async fn usage(reader: &Reader) -> Result<Vec<(PackId, Usage)>, FsError> {
    let mut packs = Vec::new();
    let mut pages = reader.pages(Bytes::from_static(b"U"), Bytes::from_static(b"V"));
    while let Some(rows) = pages.next().await? {
        for (row_key, row) in &rows {
            let Some(Key::Usage(pack)) = Key::parse(row_key) else {
                return Err(FsError::Corrupt(format!(
                    "key {} among pack usage",
                    row_key.escape_ascii()
                )));
            };
            let usage = Usage::decode(row)?;
            if usage.refs > 0 {
                packs.push((pack, usage));
            }
        }
    }
    Ok(packs)
}
