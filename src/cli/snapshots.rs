//! `dataset snapshot`: snapshots, and the clones that are kept among them.
//!
//! A **writable snapshot** `NAME` of a dataset is a clone of it as it is, called `DATASET@NAME`: it is mounted, snapshotted and cloned by that name as any
//! dataset, and listed and deleted with the snapshots. A name is given once among both.

use super::args::Common;
use super::exit::Wrong;
use super::info::{self, SnapshotShown};
use super::target::{Opened, dataset_name};
use crate::catalog::{Dataset, Form, Properties, State};
use crate::control::{NewVolume, Source};
use crate::types::{Class, DatasetName, SnapshotHandle, SnapshotName, VolumeHandle};
use std::collections::BTreeMap;

fn full_name(dataset: &str, name: &SnapshotName) -> anyhow::Result<DatasetName> {
    dataset_name(&format!("{dataset}@{name}"))
}

/// The writable snapshot of this name.
async fn writable(opened: &Opened, source: &Dataset, name: &SnapshotName) -> anyhow::Result<Option<Dataset>> {
    let found = opened.pool.catalog.dataset(&full_name(source.name.as_str(), name)?).await?;
    Ok(found.map(|at| at.record).filter(|record| record.state != State::Dead && is_of(record, source)))
}

fn is_of(clone: &Dataset, source: &Dataset) -> bool {
    clone.form == Form::Writable && clone.origin.is_some_and(|origin| origin.dataset == source.incarnation)
}

fn taken(dataset: &str, name: &SnapshotName) -> anyhow::Error {
    Wrong::new(Class::Exists, format!("{dataset}@{name} is there already: delete it, or choose another name"))
}

pub async fn make(opened: &Opened, dataset: &str, name: SnapshotName) -> anyhow::Result<SnapshotShown> {
    let source = opened.dataset(dataset).await?;
    if writable(opened, &source, &name).await?.is_some() {
        return Err(taken(dataset, &name));
    }
    let handle = VolumeHandle { pool: opened.pool.id(), dataset: source.id() };
    let made = opened.controller.create_snapshot(handle, name, false).await?;
    Ok(SnapshotShown::of(&opened.pool, dataset, &made.snapshot))
}

pub async fn make_writable(opened: &Opened, dataset: &str, name: &SnapshotName) -> anyhow::Result<SnapshotShown> {
    let source = opened.dataset(dataset).await?;
    let snapshot = opened.pool.catalog.snapshot(source.id(), name).await?;
    if snapshot.is_some_and(|at| at.record.state != State::Dead) {
        return Err(taken(dataset, name));
    }
    let wanted = NewVolume {
        name: full_name(dataset, name)?,
        size: None,
        size_limit: None,
        source: Some(Source::Volume(VolumeHandle { pool: opened.pool.id(), dataset: source.id() })),
        properties: Properties::default(),
        access_modes: vec![],
        form: Form::Writable,
        parameters: BTreeMap::new(),
    };
    let made = opened.controller.create_volume(None, wanted).await?;
    Ok(SnapshotShown::of_writable(&opened.pool, dataset, &made.dataset))
}

pub async fn list(dataset: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let opened = common.pool.open().await?;
    let datasets: Vec<Dataset> = opened.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
    let of = match dataset {
        // One that is deleted may have left snapshots.
        Some(name) => match opened.pool.catalog.dataset(&dataset_name(name)?).await? {
            Some(at) => Some(at.record.incarnation),
            None => Some(opened.dataset(name).await?.incarnation),
        },
        None => None,
    };
    let name_of = |incarnation| {
        let found = datasets.iter().find(|dataset| dataset.incarnation == incarnation);
        found.map_or_else(|| format!("{incarnation}"), |dataset| dataset.name.to_string())
    };
    let records = opened.pool.catalog.snapshots(of).await?;
    let live = records.iter().map(|at| &at.record).filter(|s| s.state != State::Dead && !s.implied);
    let mut shown: Vec<SnapshotShown> = live.map(|s| SnapshotShown::of(&opened.pool, &name_of(s.dataset.incarnation), s)).collect();
    for source in datasets.iter().filter(|dataset| of.is_none_or(|of| of == dataset.incarnation)) {
        let prefix = format!("{}@", source.name);
        let named = datasets.iter().filter(|clone| clone.name.as_str().starts_with(&prefix) && clone.state != State::Dead);
        let clones = named.filter(|clone| is_of(clone, source));
        shown.extend(clones.map(|clone| SnapshotShown::of_writable(&opened.pool, source.name.as_str(), clone)));
    }
    shown.sort_by(|a, b| (&a.dataset, &a.created, &a.name).cmp(&(&b.dataset, &b.created, &b.name)));
    common.output.print(&shown, |shown| info::snapshots(shown))
}

/// Whether there was one.
pub async fn delete(opened: &Opened, dataset: &str, name: &SnapshotName) -> anyhow::Result<bool> {
    let Some(of) = opened.pool.catalog.dataset(&dataset_name(dataset)?).await? else { return Ok(false) };
    let pool = opened.pool.id();
    if let Some(at) = opened.pool.catalog.snapshot(of.record.id(), name).await? {
        opened.controller.delete_snapshot(SnapshotHandle { pool, snapshot: at.record.id() }).await?;
        return Ok(true);
    }
    let Some(clone) = writable(opened, &of.record, name).await? else { return Ok(false) };
    opened.controller.delete_volume(VolumeHandle { pool, dataset: clone.id() }).await?;
    Ok(true)
}
