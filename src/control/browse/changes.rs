//! Snapshots that people make and delete by name.

use super::reserved::is_reserved;
use super::{Browser, SnapshotFacts, dataset_name, exists, refused, snapshot_name};
use crate::catalog::State;
use crate::control::{ControlError, Controller};
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

impl Browser {
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
        let volume = self.handle(&self.dataset(dataset).await?);
        self.is_new_snapshot(controller, dataset, volume, &name).await?;
        match kind {
            NewSnapshot::ReadOnly => {
                let made = controller.create_snapshot(volume, name).await?;
                Ok(self.snapshot_facts(dataset, &made.snapshot))
            }
            NewSnapshot::Writable => {
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
        if is_reserved(name) {
            let why = format!(
                "snapshot name {name}: names like check-… are reserved for `check`: choose another"
            );
            return Err(refused(Class::Invalid, why));
        }
        let snapshot = self.pool().catalog.snapshot(volume.dataset, name).await?;
        let snapshot = snapshot.map(|at| (at.record.state, at.record.created));
        let writable = controller.writable_snapshot(volume, name).await?;
        let writable = writable.map(|found| (found.dataset.state, found.dataset.created));
        match snapshot.into_iter().chain(writable).find(|(state, _)| *state == State::Ready) {
            Some((_, since)) => Err(exists(&format!("{dataset}@{name}"), since)),
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
