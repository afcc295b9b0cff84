//! Finds datasets and snapshots by the names that people give.

use super::{Browser, refused};
use crate::catalog::{Dataset, DatasetSlot, Snapshot, State, Versioned};
use crate::control::ControlError;
use crate::types::{Class, DatasetId, DatasetName, SnapshotName};

/// A state of a dataset whose files can be read.
#[derive(Clone, Debug)]
pub enum Root {
    Snapshot(Snapshot),
    /// The dataset as the store has it: without the unsynced changes of a node that has it open.
    Head(Dataset),
}

impl Root {
    /// The dataset whose files these are.
    pub fn dataset(&self) -> DatasetId {
        match self {
            Self::Snapshot(snapshot) => snapshot.dataset,
            Self::Head(dataset) => dataset.id(),
        }
    }
}

impl Browser {
    /// A live dataset by name.
    ///
    /// # Errors
    /// `NotFound`, which tells a deleted dataset from an unknown one; `Invalid` for what is no
    /// name.
    pub async fn dataset(&self, name: &str) -> Result<Dataset, ControlError> {
        self.dataset_version(name).await.map(|at| at.record)
    }

    /// As [`Self::dataset`], for a caller that will change its record.
    pub(super) async fn dataset_version(
        &self,
        name: &str,
    ) -> Result<Versioned<Dataset>, ControlError> {
        let found = self.pool().catalog.dataset(&dataset_name(name)?).await?;
        let why = match &found {
            Some(at) if at.record.state == State::Deleting => {
                "was deleted: only the data that its snapshots and clones use is left"
            }
            _ => "does not exist in this pool: `zerofs-csi dataset list` lists all datasets",
        };
        let live = found.filter(|at| is_live(&at.record));
        live.ok_or_else(|| refused(Class::NotFound, format!("dataset {name} {why}")))
    }

    /// A dataset by name that is live, or was deleted and may still have snapshots.
    pub async fn dataset_or_deleted(&self, name: &str) -> Result<Dataset, ControlError> {
        match self.record(name).await? {
            Some(dataset) => Ok(dataset),
            None => self.dataset(name).await,
        }
    }

    /// The pool's default dataset, if one is chosen.
    ///
    /// # Errors
    /// `NotFound` when it was deleted.
    pub async fn default_dataset(&self) -> Result<Option<Dataset>, ControlError> {
        let catalog = &self.pool().catalog;
        let Some(id) = catalog.default_dataset().await? else { return Ok(None) };
        let found = catalog.dataset_by_id(id).await?.map(|at| at.record);
        let deleted = || {
            refused(
                Class::NotFound,
                "the default dataset was deleted: choose another with `zerofs-csi dataset \
                 set-default NAME`, or none with `--none`",
            )
        };
        found.filter(is_live).map(Some).ok_or_else(deleted)
    }

    /// A live dataset by name; without one, the pool's default.
    pub async fn dataset_or_default(&self, name: Option<&str>) -> Result<Dataset, ControlError> {
        if let Some(name) = name {
            return self.dataset(name).await;
        }
        self.default_dataset().await?.ok_or_else(|| {
            refused(
                Class::Invalid,
                "the pool has no default dataset: name a dataset, or choose the default with \
                 `zerofs-csi dataset set-default NAME`",
            )
        })
    }

    /// A snapshot of either kind, or without one the head of the dataset.
    pub async fn root(&self, dataset: &str, snapshot: Option<&str>) -> Result<Root, ControlError> {
        let Some(snapshot) = snapshot else { return Ok(Root::Head(self.dataset(dataset).await?)) };
        if let Some(writable) = self.ready(&format!("{dataset}@{snapshot}")).await? {
            return Ok(Root::Head(writable));
        }
        Ok(Root::Snapshot(self.snapshot(dataset, snapshot).await?))
    }

    /// `DATASET@SNAPSHOT` or `DATASET`. A dataset of the whole name, such as a writable snapshot,
    /// comes first.
    pub async fn root_named(&self, text: &str) -> Result<Root, ControlError> {
        match split_snapshot(text) {
            Some((dataset, snapshot)) => self.root(dataset, Some(snapshot)).await,
            None => self.root(text, None).await,
        }
    }

    /// Refuses the name of an existing dataset. An unfinished one is no conflict: the call
    /// completes it.
    pub async fn is_new(&self, name: &DatasetName) -> Result<(), ControlError> {
        self.new_name(name).await.map(drop)
    }

    /// As [`Self::is_new`], for a caller that will make it.
    pub(super) async fn new_name(&self, name: &DatasetName) -> Result<DatasetSlot, ControlError> {
        let slot = self.pool().catalog.dataset_slot(name).await?;
        match slot.record().filter(|at| at.record.state == State::Ready) {
            Some(at) => Err(ControlError::already_exists(name.as_str(), at.record.created)),
            None => Ok(slot),
        }
    }

    /// The dataset that a command is limited to, if any.
    pub async fn only(&self, name: Option<&str>) -> Result<Option<DatasetId>, ControlError> {
        let Some(name) = name else { return Ok(None) };
        if let Some((dataset, snapshot)) = split_snapshot(name)
            && self.record(name).await?.is_none()
        {
            self.snapshot(dataset, snapshot).await?;
            let why =
                format!("{name} is a snapshot: name its dataset, {dataset}, which includes it");
            return Err(refused(Class::Invalid, why));
        }
        Ok(Some(self.dataset(name).await?.id()))
    }

    /// A live snapshot of a dataset; the dataset may be deleted.
    ///
    /// # Errors
    /// `NotFound`; `InProgress` for one that is not finished; `Invalid` for the name of a writable
    /// snapshot, which is a dataset.
    pub async fn snapshot(&self, dataset: &str, name: &str) -> Result<Snapshot, ControlError> {
        self.snapshot_version(dataset, name).await.map(|at| at.record)
    }

    /// As [`Self::snapshot`], for a caller that will change its record.
    pub(super) async fn snapshot_version(
        &self,
        dataset: &str,
        name: &str,
    ) -> Result<Versioned<Snapshot>, ControlError> {
        let parsed = snapshot_name(name)?;
        let found = match self.record(dataset).await? {
            Some(of) => self.pool().catalog.snapshot(of.id(), &parsed).await?,
            None => None,
        };
        let full = format!("{dataset}@{name}");
        let (class, why) = match found {
            Some(found) if found.record.state == State::Ready => return Ok(found),
            Some(found) if found.record.state == State::Creating => (
                Class::InProgress,
                format!("is not finished: run `dataset snapshot create {dataset} {name}` again"),
            ),
            Some(_) => (
                Class::NotFound,
                "was deleted: only the data that its clones and readers use is left".to_owned(),
            ),
            None if self.ready(&full).await?.is_some() => (
                Class::Invalid,
                "is a dataset: append the name of one of its snapshots, like `@NAME`".to_owned(),
            ),
            None => (
                Class::NotFound,
                "does not exist: `zerofs-csi dataset snapshot list` lists all snapshots".to_owned(),
            ),
        };
        Err(refused(class, format!("snapshot {full} {why}")))
    }

    /// The record of that name, in whatever state.
    pub async fn record(&self, name: &str) -> Result<Option<Dataset>, ControlError> {
        let name = dataset_name(name)?;
        Ok(self.pool().catalog.dataset(&name).await?.map(|at| at.record))
    }

    async fn ready(&self, name: &str) -> Result<Option<Dataset>, ControlError> {
        Ok(self.record(name).await?.filter(|dataset| dataset.state == State::Ready))
    }
}

pub(super) fn is_live(dataset: &Dataset) -> bool {
    matches!(dataset.state, State::Ready | State::Creating)
}

/// # Errors
/// `Invalid`, with the rule that the name breaks.
pub fn dataset_name(name: &str) -> Result<DatasetName, ControlError> {
    name.parse().map_err(|error| refused(Class::Invalid, format!("dataset name: {error}")))
}

/// # Errors
/// `Invalid`, with the rule that the name breaks.
pub fn snapshot_name(name: &str) -> Result<SnapshotName, ControlError> {
    name.parse().map_err(|error| refused(Class::Invalid, format!("snapshot name: {error}")))
}

/// `DATASET@SNAPSHOT`. A dataset's name may hold `@`: the last one counts.
pub fn split_snapshot(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once('@').filter(|(dataset, snapshot)| !dataset.is_empty() && !snapshot.is_empty())
}
