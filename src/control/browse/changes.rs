//! Snapshots that people make and delete by name.

use super::reserved::is_reserved;
use super::{Browser, SnapshotFacts, dataset_name, refused, snapshot_name, split_snapshot};
use crate::catalog::{Dataset, Snapshot, State, Versioned};
use crate::control::controller::KnownRecords;
use crate::control::{ControlError, Controller, NewVolume, Source};
use crate::types::{Class, SnapshotHandle, SnapshotName, VolumeHandle};

/// The kind of snapshot to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSnapshot {
    ReadOnly,
    /// A clone that is listed among the snapshots.
    Writable,
}

/// The change of a hold: it is set or released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldChange {
    Add,
    Release,
}

/// A dataset that was made.
#[derive(Debug)]
pub struct MadeDataset {
    pub dataset: Dataset,
    /// `DATASET@SNAPSHOT`, if that is what it was made from.
    pub origin: Option<String>,
}

/// The source of a new dataset.
#[derive(Default)]
struct FoundSource {
    source: Option<Source>,
    snapshot: Option<Versioned<Snapshot>>,
}

impl Browser {
    /// Makes a dataset, from `source` if one is named: `DATASET@SNAPSHOT`, unless a dataset has
    /// that very name, or `DATASET`.
    ///
    /// # Errors
    /// `Exists` for an earlier one of that name, unless it is still unfinished: then this call
    /// completes it.
    pub async fn make_dataset(
        &self,
        controller: &Controller,
        new: NewVolume,
        source: Option<&str>,
    ) -> Result<MadeDataset, ControlError> {
        let (name, found) = tokio::join!(self.new_name(&new.name), self.source(source));
        let (name, FoundSource { source: from, snapshot }) = (name?, found?);
        let is_named = snapshot.as_ref().is_some_and(|at| !at.record.implied);
        let known = KnownRecords { name, source: snapshot };
        let new = NewVolume { source: from, ..new };
        let pool = Some(self.pool().name.as_str());
        let dataset = controller.create_volume_from(pool, new, known).await?.dataset;
        let origin = source.filter(|_| is_named).map(str::to_owned);
        Ok(MadeDataset { dataset, origin })
    }

    async fn source(&self, text: Option<&str>) -> Result<FoundSource, ControlError> {
        let Some(text) = text else { return Ok(FoundSource::default()) };
        let pool = self.pool().id();
        if let Some((dataset, snapshot)) = split_snapshot(text) {
            let (whole, found) =
                tokio::join!(self.record(text), self.snapshot_version(dataset, snapshot));
            if whole?.is_none() {
                let at = found?;
                let source = Source::Snapshot(SnapshotHandle { pool, snapshot: at.record.id() });
                return Ok(FoundSource { source: Some(source), snapshot: Some(at) });
            }
        }
        let dataset = self.dataset(text).await?.id();
        let source = Source::Volume(VolumeHandle { pool, dataset });
        Ok(FoundSource { source: Some(source), snapshot: None })
    }

    /// Makes a snapshot of the current state of a dataset.
    ///
    /// # Errors
    /// `Exists` for an earlier one of that name, unless it is still unfinished: then this call
    /// finishes it. `Invalid` for a reserved name.
    pub async fn make_snapshot(
        &self,
        controller: &Controller,
        dataset: &str,
        name: &str,
        kind: NewSnapshot,
    ) -> Result<SnapshotFacts, ControlError> {
        let name = snapshot_name(name)?;
        if is_reserved(&name) {
            let why = format!(
                "snapshot name {name}: names like check-… are reserved for `check`: choose another"
            );
            return Err(refused(Class::Invalid, why));
        }
        let of = self.dataset_version(dataset).await?;
        match kind {
            NewSnapshot::ReadOnly => {
                let made = controller.create_new_snapshot(self.pool(), of, name).await?;
                Ok(self.snapshot_facts(dataset, &made.snapshot))
            }
            NewSnapshot::Writable => {
                let volume = self.handle(&of.record);
                self.is_new_snapshot(controller, dataset, volume, &name).await?;
                let made = controller.create_writable_snapshot(volume, &name).await?;
                Ok(self.writable_facts(dataset, name.as_str(), &made.dataset))
            }
        }
    }

    /// A caller wants a snapshot of the current state: an earlier one of that name is a conflict.
    async fn is_new_snapshot(
        &self,
        controller: &Controller,
        dataset: &str,
        volume: VolumeHandle,
        name: &SnapshotName,
    ) -> Result<(), ControlError> {
        let snapshot = self.pool().catalog.snapshot(volume.dataset, name).await?;
        let snapshot = snapshot.map(|at| (at.record.state, at.record.created));
        let writable = controller.writable_snapshot(volume, name).await?;
        let writable = writable.map(|found| (found.dataset.state, found.dataset.created));
        match snapshot.into_iter().chain(writable).find(|(state, _)| *state == State::Ready) {
            Some((_, since)) => {
                Err(ControlError::already_exists(&format!("{dataset}@{name}"), since))
            }
            None => Ok(()),
        }
    }

    /// Holds a read-only snapshot under a tag, or releases that hold.
    pub async fn change_hold(
        &self,
        controller: &Controller,
        (dataset, name): (&str, &str),
        tag: &str,
        change: HoldChange,
    ) -> Result<SnapshotFacts, ControlError> {
        let snapshot = self.snapshot(dataset, name).await?.id();
        let handle = SnapshotHandle { pool: self.pool().id(), snapshot };
        let changed = match change {
            HoldChange::Add => controller.hold_snapshot(handle, tag).await?,
            HoldChange::Release => controller.unhold_snapshot(handle, tag).await?,
        };
        Ok(self.snapshot_facts(dataset, &changed.snapshot))
    }

    /// Deletes a snapshot of either kind; its dataset may be deleted. Returns whether there was
    /// one.
    pub async fn delete_snapshot(
        &self,
        controller: &Controller,
        dataset: &str,
        name: &str,
    ) -> Result<bool, ControlError> {
        let (dataset, name) = (dataset_name(dataset)?, snapshot_name(name)?);
        let catalog = &self.pool().catalog;
        let Some(of) = catalog.dataset(&dataset).await? else { return Ok(false) };
        let volume = self.handle(&of.record);
        if let Some(at) = catalog.snapshot(volume.dataset, &name).await? {
            let snapshot = SnapshotHandle { pool: volume.pool, snapshot: at.record.id() };
            controller.delete_snapshot(snapshot).await?;
            return Ok(true);
        }
        let Some(writable) = controller.writable_snapshot(volume, &name).await? else {
            return Ok(false);
        };
        controller.delete_volume(writable.handle).await?;
        Ok(true)
    }
}
