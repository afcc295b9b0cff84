//! Changes of a dataset's properties, by CSI's ControllerModifyVolume and by people.
//!
//! The record is written first: whoever opens the dataset from then on reads it. Its owner, if it
//! has one, is then asked to take it over, so that the change holds when the call returns. A retry
//! asks again.

use super::{Controller, SIZE_MAX, check};
use crate::catalog::{CatalogError, Dataset, Properties, Snapdir, State};
use crate::chunk::Codec;
use crate::control::ControlError;
use crate::control::owner::{OwnerRequest, owner_of};
use crate::types::{SyncMode, VolumeHandle};

/// The properties to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PropertyChanges {
    /// Byte quota: it only grows.
    pub size: Option<u64>,
    /// Inode quota; `Some(None)`: unlimited.
    pub inodes: Option<Option<u64>>,
    /// Record size of new files.
    pub record_bytes: Option<u32>,
    /// `Some(None)`: by access modes.
    pub sync: Option<Option<SyncMode>>,
    pub codec: Option<Codec>,
    pub snapdir: Option<Snapdir>,
    /// Limits of reads and writes; `Some(None)`: unlimited.
    pub max_read_bandwidth: Option<Option<u64>>,
    pub max_write_bandwidth: Option<Option<u64>>,
    pub max_iops: Option<Option<u64>>,
}

impl PropertyChanges {
    fn apply(&self, dataset: &mut Dataset) {
        if let Some(size) = self.size {
            dataset.size = Some(size);
        }
        let before = dataset.properties.clone();
        self.apply_to(&mut dataset.properties);
        dataset.modified |= dataset.properties != before;
    }

    /// Changes all but the size.
    pub fn apply_to(&self, properties: &mut Properties) {
        properties.quota_inodes = self.inodes.unwrap_or(properties.quota_inodes);
        properties.record_bytes = self.record_bytes.unwrap_or(properties.record_bytes);
        properties.sync = self.sync.unwrap_or(properties.sync);
        properties.codec = self.codec.unwrap_or(properties.codec);
        properties.snapdir = self.snapdir.unwrap_or(properties.snapdir);
        let limits = &mut properties.limits;
        for (change, limit) in [
            (self.max_read_bandwidth, &mut limits.max_read_bandwidth),
            (self.max_write_bandwidth, &mut limits.max_write_bandwidth),
            (self.max_iops, &mut limits.max_iops),
        ] {
            *limit = change.unwrap_or(*limit);
        }
    }

    fn check(&self, dataset: &Dataset) -> Result<(), ControlError> {
        if let Some(size) = self.size {
            let out = |why: &str| {
                let why = format!("dataset {}: {size} bytes {why}", dataset.name);
                Err(ControlError::OutOfRange(why))
            };
            match dataset.size {
                _ if size > SIZE_MAX => return out(&format!("are more than {SIZE_MAX}")),
                Some(now) if size < now => {
                    return out(&format!("are less than its {now}: a quota never shrinks"));
                }
                _ => {}
            }
        }
        let mut changed = dataset.clone();
        self.apply(&mut changed);
        check::properties(&changed.properties)
    }
}

impl Controller {
    /// Changes properties of a dataset, at once where it is open. Returns its record.
    ///
    /// # Errors
    /// [`ControlError::OutOfRange`] and [`ControlError::Invalid`] for values that cannot be; then
    /// nothing has changed. `Unavailable` when its owner does not answer: the change then holds
    /// from the next opening on.
    pub async fn set_properties(
        &self,
        volume: VolumeHandle,
        changes: PropertyChanges,
    ) -> Result<Dataset, ControlError> {
        let pool = self.known_pool(volume.pool, &format!("volume {volume}"))?;
        let _lock = self.lock_volume(volume.dataset)?;
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let before = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?;
        check::has_database(&before.record)?;
        changes.check(&before.record)?;
        let mut refused = None;
        let changed = pool
            .catalog
            .update_dataset_from(&before, |dataset| {
                if dataset.state != State::Ready {
                    let what = format!("volume {}", dataset.name);
                    return Err(CatalogError::NotFound { what });
                }
                refused = changes.check(dataset).err();
                if let Some(why) = &refused {
                    let (what, why) = (format!("volume {}", dataset.name), why.to_string());
                    return Err(CatalogError::Precondition { what, why });
                }
                changes.apply(dataset);
                Ok(())
            })
            .await;
        let after = match (changed, refused) {
            (Err(_), Some(why)) => return Err(why),
            (changed, _) => changed?.record,
        };
        pool.step("control.properties.recorded").await?;
        let Some(owner) = owner_of(&after) else { return Ok(after) };
        let told = self.owners.perform::<()>(pool, &after, &OwnerRequest::ApplyProperties).await;
        told.map_err(|error| {
            ControlError::Unavailable(format!(
                "dataset {}: the change is recorded, and node {}, which has it open, did not take \
                 it over: {error}; retry, or it holds when the dataset is next opened",
                after.name, owner.node
            ))
        })?;
        Ok(after)
    }
}
