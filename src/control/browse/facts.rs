//! Facts about datasets and snapshots that need none of them opened.

use super::lookup::is_live;
use super::names::Names;
use super::{Browser, Root};
use crate::catalog::{Dataset, Snapshot, State};
use crate::control::{ControlError, writable_name};
use crate::types::{Incarnation, SnapshotHandle, Timestamp, VolumeHandle};
use std::collections::HashMap;

/// A dataset, and what other records say of it.
#[derive(Clone, Debug)]
pub struct DatasetFacts {
    pub dataset: Dataset,
    pub handle: VolumeHandle,
    /// The snapshot that it was made from, by name.
    pub origin_name: Option<String>,
    /// Its snapshots of both kinds that are ready.
    pub snapshots: u64,
    /// The time of the newest of them.
    pub newest_snapshot: Option<Timestamp>,
}

/// A snapshot, or a clone that is listed among the snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotFacts {
    /// The dataset that it was taken of, by name.
    pub dataset: String,
    pub name: String,
    pub state: State,
    pub created: Timestamp,
    /// The dataset's quota when it was taken.
    pub size: Option<u64>,
    /// Bytes that the dataset held when it was taken, if known.
    pub referenced: Option<u64>,
    /// Clones and others that depend on it.
    pub dependants: u64,
    /// A policy made it.
    pub by_policy: bool,
    /// Tags of those who hold it.
    pub holds: Vec<String>,
    pub kind: SnapshotKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    ReadOnly(SnapshotHandle),
    /// A clone named `DATASET@NAME`, which is a volume.
    Writable(VolumeHandle),
}

impl SnapshotFacts {
    /// The id of the snapshot, or of the volume that it is.
    pub fn handle(&self) -> String {
        match self.kind {
            SnapshotKind::ReadOnly(handle) => handle.to_string(),
            SnapshotKind::Writable(handle) => handle.to_string(),
        }
    }

    pub fn is_writable(&self) -> bool {
        matches!(self.kind, SnapshotKind::Writable(_))
    }
}

impl Browser {
    /// The volume that a dataset is.
    pub fn handle(&self, dataset: &Dataset) -> VolumeHandle {
        VolumeHandle { pool: self.pool().id(), dataset: dataset.id() }
    }

    /// The handle of the snapshot or dataset whose files these are.
    pub fn root_handle(&self, root: &Root) -> String {
        match root {
            Root::Snapshot(snapshot) => {
                SnapshotHandle { pool: self.pool().id(), snapshot: snapshot.id() }.to_string()
            }
            Root::Head(dataset) => self.handle(dataset).to_string(),
        }
    }

    /// Every dataset but those that are gone for good, by name; deleted ones whose data others
    /// still use have that state.
    pub async fn datasets(&self) -> Result<Vec<DatasetFacts>, ControlError> {
        let catalog = &self.pool().catalog;
        let datasets: Vec<Dataset> =
            catalog.datasets().await?.into_iter().map(|at| at.record).collect();
        let snapshots: Vec<Snapshot> =
            catalog.snapshots(None).await?.into_iter().map(|at| at.record).collect();
        let names = Names::of(&datasets, snapshots.iter().cloned());
        let mut counts = Counts::default();
        for snapshot in snapshots.iter().filter(|s| s.state == State::Ready && !s.implied) {
            counts.add(snapshot.dataset.incarnation, snapshot.created);
        }
        for (source, clone, _) in writable(&datasets).filter(|(_, clone, _)| is_live(clone)) {
            counts.add(source.incarnation, clone.created);
        }
        let shown = datasets.iter().filter(|dataset| dataset.state != State::Dead);
        let mut facts: Vec<DatasetFacts> =
            shown.map(|dataset| self.facts(dataset, &names, &counts)).collect();
        facts.sort_by(|a, b| a.dataset.name.cmp(&b.dataset.name));
        Ok(facts)
    }

    fn facts(&self, dataset: &Dataset, names: &Names, counts: &Counts) -> DatasetFacts {
        let (snapshots, newest) =
            counts.of.get(&dataset.incarnation).copied().unwrap_or((0, Timestamp::from_nanos(0)));
        DatasetFacts {
            handle: self.handle(dataset),
            origin_name: dataset.origin.map(|origin| names.snapshot(origin)),
            snapshots,
            newest_snapshot: (snapshots > 0).then_some(newest),
            dataset: dataset.clone(),
        }
    }

    /// Facts about one dataset.
    pub async fn dataset_facts(&self, dataset: &Dataset) -> Result<DatasetFacts, ControlError> {
        let names = Names::of_origin(self.pool(), dataset).await?;
        let mut counts = Counts::default();
        for snapshot in self.snapshots(Some(dataset)).await? {
            if snapshot.state == State::Ready {
                counts.add(dataset.incarnation, snapshot.created);
            }
        }
        Ok(self.facts(dataset, &names, &counts))
    }

    /// The snapshots of both kinds, of one dataset or all, by the time they were made.
    pub async fn snapshots(
        &self,
        of: Option<&Dataset>,
    ) -> Result<Vec<SnapshotFacts>, ControlError> {
        let catalog = &self.pool().catalog;
        let datasets: Vec<Dataset> =
            catalog.datasets().await?.into_iter().map(|at| at.record).collect();
        let of = of.map(|dataset| dataset.incarnation);
        let names: HashMap<Incarnation, &str> =
            datasets.iter().map(|d| (d.incarnation, d.name.as_str())).collect();
        let records = catalog.snapshots(of).await?.into_iter().map(|at| at.record);
        let shown = records.filter(|s| s.state != State::Dead && !s.implied);
        let mut facts: Vec<SnapshotFacts> = shown
            .map(|snapshot| {
                let dataset = snapshot.dataset.incarnation;
                let name = names.get(&dataset).map(|name| (*name).to_owned());
                self.snapshot_facts(&name.unwrap_or_else(|| dataset.to_string()), &snapshot)
            })
            .collect();
        let writable =
            writable(&datasets).filter(|(source, ..)| of.is_none_or(|of| of == source.incarnation));
        facts.extend(
            writable.map(|(source, clone, name)| {
                self.writable_facts(source.name.as_str(), name, clone)
            }),
        );
        facts.sort_by(|a, b| {
            (a.created, &a.dataset, &a.name).cmp(&(b.created, &b.dataset, &b.name))
        });
        Ok(facts)
    }

    /// Facts about a snapshot of the dataset of that name.
    pub fn snapshot_facts(&self, dataset: &str, snapshot: &Snapshot) -> SnapshotFacts {
        SnapshotFacts {
            dataset: dataset.to_owned(),
            name: snapshot.name.to_string(),
            state: snapshot.state.clone(),
            created: snapshot.created,
            size: snapshot.size,
            referenced: snapshot.referenced,
            dependants: snapshot.dependants.len() as u64,
            by_policy: snapshot.slot.is_some(),
            holds: snapshot.holds.iter().cloned().collect(),
            kind: SnapshotKind::ReadOnly(SnapshotHandle {
                pool: self.pool().id(),
                snapshot: snapshot.id(),
            }),
        }
    }

    /// Facts about a clone named `DATASET@NAME`.
    pub fn writable_facts(&self, dataset: &str, name: &str, clone: &Dataset) -> SnapshotFacts {
        SnapshotFacts {
            dataset: dataset.to_owned(),
            name: name.to_owned(),
            state: clone.state.clone(),
            created: clone.created,
            size: clone.size,
            referenced: None,
            dependants: 0,
            by_policy: false,
            holds: Vec::new(),
            kind: SnapshotKind::Writable(self.handle(clone)),
        }
    }

    /// A snapshot of either kind by name; the dataset may be deleted.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub async fn find_snapshot(
        &self,
        dataset: &str,
        name: &str,
    ) -> Result<SnapshotFacts, ControlError> {
        if let Some(source) = self.record(dataset).await?
            && let Some(clone) = self.record(&format!("{dataset}@{name}")).await?
            && writable_name(&clone, &source).is_some()
        {
            return Ok(self.writable_facts(dataset, name, &clone));
        }
        Ok(self.snapshot_facts(dataset, &self.snapshot(dataset, name).await?))
    }

    /// The name of a root as people write it: `DATASET@SNAPSHOT` or `DATASET`.
    pub async fn name_of(&self, root: &Root) -> Result<String, ControlError> {
        Ok(match root {
            Root::Head(dataset) => dataset.name.to_string(),
            Root::Snapshot(snapshot) => {
                let of = self.pool().catalog.dataset_by_id(snapshot.dataset).await?;
                let of = of
                    .map_or_else(|| snapshot.dataset.to_string(), |at| at.record.name.to_string());
                format!("{of}@{}", snapshot.name)
            }
        })
    }
}

/// The number of snapshots of datasets, and the time of the newest.
#[derive(Default)]
struct Counts {
    of: HashMap<Incarnation, (u64, Timestamp)>,
}

impl Counts {
    fn add(&mut self, dataset: Incarnation, created: Timestamp) {
        let (count, newest) = self.of.entry(dataset).or_insert((0, created));
        *count += 1;
        *newest = created.max(*newest);
    }
}

/// The writable snapshots among datasets: the source, the clone, and the clone's name among the
/// snapshots.
fn writable(datasets: &[Dataset]) -> impl Iterator<Item = (&Dataset, &Dataset, &str)> {
    let sources: HashMap<Incarnation, &Dataset> =
        datasets.iter().map(|dataset| (dataset.incarnation, dataset)).collect();
    datasets.iter().filter_map(move |clone| {
        let source = *sources.get(&clone.origin?.dataset)?;
        Some((source, clone, writable_name(clone, source)?))
    })
}
