//! Releasing a volume whose owner is gone for good.

use super::Controller;
use crate::catalog::State;
use crate::control::{ControlError, mail};
use crate::types::VolumeHandle;
use crate::volume::{is_caretaker, release_lost};

/// Whether the caller knows that what only the owner's journal holds is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    MayHoldMore,
    GivenUp,
}

impl Controller {
    /// Takes the volume from its owner, which must not answer; the name of the node that had it. Not owned counts as released.
    ///
    /// # Errors
    /// [`ControlError::Precondition`] while the owner answers, or unless its journal is given up.
    pub async fn release_volume(&self, volume: VolumeHandle, journal: Journal) -> Result<Option<String>, ControlError> {
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pool(volume.pool)?.ok_or_else(absent)?;
        let _call = self.enter_volume(volume.dataset)?;
        let dataset = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?.record;
        if dataset.state != State::Ready {
            return Err(absent());
        }
        let Some(owner) = dataset.owner.clone().filter(|owner| !is_caretaker(owner)) else { return Ok(None) };
        let (name, node) = (&dataset.name, &owner.node);
        if self.volumes.get(volume.dataset).is_some() {
            return Err(ControlError::Precondition(format!("volume {name} is open in this process: unmount it, then repeat")));
        }
        if mail::ask_for_life(pool, &dataset, &owner, self.owner_timeout).await.is_ok() {
            return Err(ControlError::Precondition(format!(
                "volume {name} is open on node {node}, which answers: unmount it there, then repeat"
            )));
        }
        if journal == Journal::MayHoldMore {
            return Err(ControlError::Precondition(format!(
                "volume {name} belongs to node {node}, which does not answer: start it again, and nothing is lost; or, if that \
                 machine is gone for good, repeat with --force, which gives up what only its journal holds (up to some seconds of \
                 changes that were not synced)"
            )));
        }
        pool.step("control.release.begin").await?;
        release_lost(self.volumes.settings(), &pool.catalog, volume.dataset, &owner).await?;
        Ok(Some(owner.node))
    }
}
