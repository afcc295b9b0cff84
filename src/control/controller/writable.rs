//! Writable snapshots: clones that are kept among a dataset's snapshots.
//!
//! The writable snapshot `NAME` of a dataset is a clone of it, called `DATASET@NAME`. A name is
//! unique among a dataset's snapshots and its writable snapshots, except where CSI names the
//! snapshots, whose names are unique in the pool.
//!
//! A writable snapshot keeps its dataset from being renamed, which would leave it with the earlier
//! name. Whoever creates it and whoever renames the dataset may be two processes: each first writes
//! its intent, and then looks for the other's.
//!
//! ```text
//! create    `DATASET@NAME`, unfinished ─▶ look at the dataset ─▶ make it ─▶ ready
//! rename    intent in the dataset ──────▶ list the datasets ───▶ alias ──▶ the dataset's name
//! ```
//! Where the listing shows the clone, the rename is given up. Else the clone was written after it,
//! and after the intent, so that the look at the dataset shows one of three:
//! - The intent: it is taken away. The rename fails at its last step, which needs it in the record.
//! - The new name: the clone is undone, and a retry makes it under the new name.
//! - Neither, because the rename has failed.
//!
//! Any later rename lists the datasets after the clone was written. So a dataset gets no other name
//! after the look has shown the expected one, and only after the look does the clone become ready.
//! Both may give way at a time; neither is ever done with the earlier name.
//!
//! A crash of the creation before its look leaves an unfinished clone. A retry looks first. If the
//! dataset has got another name, none finds this clone: the collector abandons it, like any that
//! nobody finishes. A crash of the rename leaves an intent, which the look takes away.

use super::{Controller, NewVolume, VolumeInfo, check, volume_info};
use crate::catalog::{Dataset, Form, Properties, State, Versioned};
use crate::control::{ControlError, Pool, Source};
use crate::types::{Class, DatasetName, SnapshotName, VolumeHandle};
use std::collections::BTreeMap;

impl Controller {
    /// Makes a writable snapshot of a volume's current state, or returns the existing one.
    pub async fn create_writable_snapshot(
        &self,
        volume: VolumeHandle,
        name: &SnapshotName,
    ) -> Result<VolumeInfo, ControlError> {
        check::name(name.may_be_given())?;
        let absent = || ControlError::NotFound { what: format!("volume {volume}") };
        let pool = self.pool(volume.pool)?.ok_or_else(absent)?;
        let source = pool.catalog.dataset_by_id(volume.dataset).await?.ok_or_else(absent)?.record;
        let snapshot = pool.catalog.snapshot(source.id(), name).await?;
        if snapshot.is_some_and(|at| at.record.state != State::Dead) {
            return Err(name_given(&source, name, "it is a read-only snapshot"));
        }
        let new = NewVolume {
            name: full_name(&source, name)?,
            size: None,
            size_limit: None,
            source: Some(Source::Volume(volume)),
            properties: Properties::default(),
            access_modes: vec![],
            form: Form::Writable,
            parameters: BTreeMap::new(),
        };
        Box::pin(self.make_volume(Some(&pool.name), new, None)).await
    }

    /// Makes sure that the unfinished clone, if it is a writable snapshot, has its dataset's name,
    /// and that the dataset keeps it: see the module's text. A clone of another name is undone.
    pub(super) async fn keep_source_name(
        &self,
        pool: &Pool,
        new: &NewVolume,
        clone: &Versioned<Dataset>,
    ) -> Result<(), ControlError> {
        let (Some(Source::Volume(source)), Some((dataset, _))) =
            (&new.source, new.name.as_str().split_once('@'))
        else {
            return Ok(());
        };
        let expected: DatasetName = dataset.parse().map_err(|error| {
            ControlError::Internal(format!("writable snapshot {}: {error}", new.name))
        })?;
        match pool.catalog.keep_name(source.dataset, &expected).await? {
            Some(now) if now.name != expected => {
                self.abandon(pool, &clone.record).await?;
                let why =
                    format!("dataset {expected} was renamed to {} meanwhile; retry", now.name);
                Err(ControlError::Refused { class: Class::InProgress, why })
            }
            // Where the source is gone, the next steps say so.
            Some(_) | None => Ok(()),
        }
    }

    /// The writable snapshot of that name, if there is one.
    pub async fn writable_snapshot(
        &self,
        volume: VolumeHandle,
        name: &SnapshotName,
    ) -> Result<Option<VolumeInfo>, ControlError> {
        let Some(pool) = self.pool(volume.pool)? else { return Ok(None) };
        let Some(source) = pool.catalog.dataset_by_id(volume.dataset).await? else {
            return Ok(None);
        };
        Ok(find(pool, &source.record, name).await?.map(|clone| volume_info(pool, clone)))
    }
}

/// The error for a read-only snapshot that is to get the name of a writable one.
pub(super) fn is_writable(source: &Dataset, name: &SnapshotName) -> ControlError {
    name_given(source, name, "it is a writable snapshot")
}

/// Returns the name of a dataset as a writable snapshot of another, if it is one.
pub fn writable_name<'a>(clone: &'a Dataset, source: &Dataset) -> Option<&'a str> {
    let of = clone.origin.is_some_and(|origin| origin.dataset == source.incarnation);
    let lives = clone.form == Form::Writable && clone.state != State::Dead;
    clone
        .name
        .as_str()
        .strip_prefix(source.name.as_str())?
        .strip_prefix('@')
        .filter(|_| of && lives)
}

pub(super) async fn find(
    pool: &Pool,
    source: &Dataset,
    name: &SnapshotName,
) -> Result<Option<Dataset>, ControlError> {
    let found = pool.catalog.dataset(&full_name(source, name)?).await?.map(|at| at.record);
    Ok(found.filter(|clone| writable_name(clone, source).is_some()))
}

fn full_name(source: &Dataset, name: &SnapshotName) -> Result<DatasetName, ControlError> {
    let full = format!("{}@{name}", source.name);
    full.parse().map_err(|error| {
        ControlError::Invalid(format!("writable snapshot {full:?}: {error}: choose a shorter name"))
    })
}

fn name_given(source: &Dataset, name: &SnapshotName, why: &str) -> ControlError {
    let why = format!("{why}: delete it, or choose another name");
    ControlError::Exists { what: format!("{}@{name}", source.name), why }
}
