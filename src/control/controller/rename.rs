//! Renames of datasets, by people: Kubernetes knows a volume by its id, which stays.

use super::{Controller, check, writable_name};
use crate::catalog::{Dataset, State};
use crate::control::{ControlError, Pool};
use crate::types::{DatasetName, VolumeHandle};

impl Controller {
    /// Gives a dataset another name, whether it is open or not. Returns its record.
    ///
    /// # Errors
    /// [`ControlError::Precondition`] for a writable snapshot, and for a dataset that has some:
    /// their names begin with the dataset's.
    pub async fn rename_volume(
        &self,
        volume: VolumeHandle,
        name: &DatasetName,
    ) -> Result<Dataset, ControlError> {
        check::name(name.may_be_given())?;
        let pool = self.known_pool(volume.pool, &format!("volume {volume}"))?;
        let _lock = self.lock_volume(volume.dataset)?;
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let dataset = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?.record;
        may_be_renamed(pool, &dataset).await?;
        let (at, rename) = pool.catalog.begin_rename(volume.dataset, name).await?;
        let Some(rename) = rename else { return Ok(at.record) };
        // A writable snapshot that was begun since the look before is seen by this one, or sees
        // the intent (`writable.rs`).
        if let Err(error) = may_be_renamed(pool, &at.record).await {
            pool.catalog.withdraw_rename(&rename).await?;
            return Err(error);
        }
        Ok(pool.catalog.complete_rename(&rename).await?.record)
    }
}

async fn may_be_renamed(pool: &Pool, dataset: &Dataset) -> Result<(), ControlError> {
    let datasets = pool.catalog.datasets().await?.into_iter().map(|at| at.record);
    let live = datasets.filter(|of| matches!(of.state, State::Ready | State::Creating));
    let why = |why: String| Err(ControlError::Precondition(why));
    if dataset.ephemeral {
        return why(format!(
            "{} is the inline volume of a pod, which finds it by its name: clone it under a name \
             of its own",
            dataset.name
        ));
    }
    for other in live {
        if let Some(snapshot) = writable_name(&other, dataset) {
            return why(format!(
                "dataset {} has the writable snapshot {snapshot}, which is named after it: delete \
                 that first, or clone it under a name of its own",
                dataset.name
            ));
        }
    }
    match dataset.name.may_be_given() {
        Ok(()) => Ok(()),
        Err(_) => why(format!(
            "{} is a writable snapshot, named after its dataset: clone it under another name",
            dataset.name
        )),
    }
}
