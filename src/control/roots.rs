//! States that can be read row by row: the heads of datasets and their snapshots. For callers that
//! read all of them; the collector, which decides what may be deleted, reads roots by rules of its
//! own.

use super::{ControlError, Pool};
use crate::catalog::{CatalogError, Dataset, READING_RENEWAL, Reading, Snapshot, State};
use crate::fs::FsError;
use crate::fs::db::{self, CheckpointId, DbPlace, Reader};
use crate::fs::key::Key;
use crate::fs::row::{Row, Usage};
use crate::types::{DatasetId, FamilyId, Incarnation, PackId};
use crate::volume::Volumes;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Instant;

/// A state that is read.
pub(super) struct Root {
    /// `DATASET` or `DATASET@SNAPSHOT`.
    pub(super) name: String,
    pub(super) family: FamilyId,
    pub(super) reader: Reader,
    /// The announcement of a reader, so that the snapshot stays (R14).
    reading: Option<(Reading, Mutex<Instant>)>,
}

/// The state to read.
pub(super) enum Source {
    Head(Dataset),
    Snapshot { snapshot: Snapshot, dataset: String },
}

impl Source {
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
}

/// Lists everything live in a pool, by name: heads, then snapshots.
pub(super) async fn list(pool: &Pool) -> Result<Vec<Source>, ControlError> {
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
    let heads = datasets.into_iter().filter(|d| d.state == State::Ready).map(Source::Head);
    let cuts = snapshots.into_iter().filter(|(_, s)| s.state == State::Ready);
    Ok(heads
        .chain(cuts.map(|(dataset, snapshot)| Source::Snapshot { snapshot, dataset }))
        .collect())
}

impl Root {
    /// `None`: never opened, or removed meanwhile.
    pub(super) async fn open(
        pool: &Pool,
        volumes: &Volumes,
        source: &Source,
    ) -> Result<Option<Self>, ControlError> {
        match source {
            Source::Head(dataset) => {
                let place = place_of(pool, volumes, dataset.family, dataset.incarnation);
                if !db::exists(&place).await? {
                    return Ok(None);
                }
                let reader = Reader::newest(&place).await?;
                Ok(Some(Self {
                    name: dataset.name.to_string(),
                    family: dataset.family,
                    reader,
                    reading: None,
                }))
            }
            Source::Snapshot { snapshot, dataset } => {
                Self::open_snapshot(pool, volumes, snapshot, dataset).await
            }
        }
    }

    async fn open_snapshot(
        pool: &Pool,
        volumes: &Volumes,
        snapshot: &Snapshot,
        dataset: &str,
    ) -> Result<Option<Self>, ControlError> {
        let (reading, snapshot) =
            match pool.catalog.begin_reading(snapshot.id(), &volumes.owner()).await {
                Ok(begun) => begun,
                Err(CatalogError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let name = format!("{dataset}@{}", snapshot.name);
        let place = place_of(pool, volumes, snapshot.family, snapshot.dataset.incarnation);
        let opened = match snapshot.checkpoint {
            Some(checkpoint) => Reader::at_checkpoint(&place, CheckpointId(checkpoint)).await,
            None => {
                Err(FsError::Corrupt(format!("snapshot {name} is ready but names no checkpoint")))
            }
        };
        match opened {
            Ok(reader) => Ok(Some(Self {
                name,
                family: snapshot.family,
                reader,
                reading: Some((reading, Mutex::new(Instant::now()))),
            })),
            Err(error) => {
                pool.catalog.end_reading(&reading).await?;
                Err(error.into())
            }
        }
    }

    /// Renews the announcement; to be called now and then during a long read.
    pub(super) async fn renew(&self, pool: &Pool) -> Result<(), ControlError> {
        let Some((reading, renewed)) = &self.reading else { return Ok(()) };
        if renewed.lock().elapsed() > READING_RENEWAL {
            pool.catalog.renew_reading(reading).await?;
            *renewed.lock() = Instant::now();
        }
        Ok(())
    }

    pub(super) async fn close(self, pool: &Pool) -> Result<(), ControlError> {
        let closed = self.reader.close().await;
        if let Some((reading, _)) = &self.reading {
            pool.catalog.end_reading(reading).await?;
        }
        Ok(closed?)
    }
}

fn place_of(pool: &Pool, volumes: &Volumes, family: FamilyId, incarnation: Incarnation) -> DbPlace {
    volumes.settings().place(&pool.catalog, family, incarnation)
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
