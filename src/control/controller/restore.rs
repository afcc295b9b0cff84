//! Restore in place, through the process that may act on the dataset.

use super::{ControlError, Controller, check};
use crate::catalog::State;
use crate::control::owner::{OwnerRequest, Replaced, Report, RestoreInPlace};
use crate::fs::Restored;
use crate::types::VolumeHandle;
use std::ops::ControlFlow;

impl Controller {
    /// Restores through the volume's owner, or under a maintenance claim where it has none.
    /// `progress` is called with what was restored so far, some times a second.
    ///
    /// # Errors
    /// `NotFound` for a path that is not in the snapshot, `Exists` for an object in the way,
    /// `Invalid` for an invalid path.
    pub async fn restore_in_place(
        &self,
        volume: VolumeHandle,
        wanted: &RestoreInPlace,
        progress: &(dyn Fn(Restored) + Sync),
    ) -> Result<Restored, ControlError> {
        let report = |now| {
            progress(now);
            ControlFlow::Continue(())
        };
        self.restore_in_place_with(volume, wanted, Replaced::Removed, &report).await
    }

    /// As [`Self::restore_in_place`], with a choice of what becomes of the files that it replaces.
    /// `report` may end it early; the error says how many objects are restored.
    pub async fn restore_in_place_with(
        &self,
        volume: VolumeHandle,
        wanted: &RestoreInPlace,
        replaced: Replaced,
        report: &Report<'_>,
    ) -> Result<Restored, ControlError> {
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pool(volume.pool)?.ok_or_else(absent)?;
        wanted.route()?;
        let _lock = self.lock_volume(volume.dataset)?;
        let dataset = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?.record;
        if dataset.state != State::Ready {
            return Err(absent());
        }
        check::has_database(&dataset)?;
        if wanted.snapshot.dataset != dataset.incarnation {
            return Err(ControlError::Invalid(format!(
                "the snapshot is not one of volume {}",
                dataset.name
            )));
        }
        let request = OwnerRequest::Restore { wanted: wanted.clone(), replaced };
        self.owners.perform_reporting(pool, &dataset, &request, report).await
    }
}
