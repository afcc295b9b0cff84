//! `dataset snapshot`: snapshots, and the clones that are listed among them.

use super::args::Common;
use super::exit::Wrong;
use super::info::{self, SnapshotShown};
use super::reserved;
use super::target::{Opened, dataset_name, exists, snapshot_name};
use crate::catalog::{Dataset, State};
use crate::control::writable_name;
use crate::types::{Class, SnapshotHandle, SnapshotName, VolumeHandle};

async fn source(opened: &Opened, dataset: &str) -> anyhow::Result<VolumeHandle> {
    Ok(VolumeHandle { pool: opened.pool.id(), dataset: opened.dataset(dataset).await?.id() })
}

/// A caller wants a snapshot of the current state: an earlier one of that name is a conflict,
/// unless it is still unfinished.
async fn is_new(
    opened: &Opened,
    dataset: &str,
    volume: VolumeHandle,
    name: &SnapshotName,
) -> anyhow::Result<()> {
    if reserved::is_reserved(name) {
        return Err(Wrong::new(
            Class::Invalid,
            format!(
                "snapshot name {name}: names like check-… are reserved for `check`: choose another"
            ),
        ));
    }
    let snapshot = opened
        .pool
        .catalog
        .snapshot(volume.dataset, name)
        .await?
        .map(|at| (at.record.state, at.record.created));
    let writable = opened
        .controller
        .writable_snapshot(volume, name)
        .await?
        .map(|found| (found.dataset.state, found.dataset.created));
    match snapshot.into_iter().chain(writable).find(|(state, _)| *state == State::Ready) {
        Some((_, since)) => Err(exists(&format!("{dataset}@{name}"), since)),
        None => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ReadOnly,
    /// A clone that is listed among the snapshots.
    Writable,
}

pub async fn make(
    opened: &Opened,
    dataset: &str,
    name: SnapshotName,
    kind: Kind,
) -> anyhow::Result<SnapshotShown> {
    let volume = source(opened, dataset).await?;
    is_new(opened, dataset, volume, &name).await?;
    let pool = &opened.pool;
    match kind {
        Kind::ReadOnly => {
            let made = opened.controller.create_snapshot(volume, name).await?;
            Ok(SnapshotShown::of(pool, dataset, &made.snapshot))
        }
        Kind::Writable => {
            let made = opened.controller.create_writable_snapshot(volume, &name).await?;
            Ok(SnapshotShown::of_writable(pool, dataset, name.as_str(), &made.dataset))
        }
    }
}

/// A snapshot of either kind.
pub async fn show(opened: &Opened, dataset: &str, name: &str) -> anyhow::Result<SnapshotShown> {
    if let Some(source) = opened.pool.catalog.dataset(&dataset_name(dataset)?).await? {
        let volume = VolumeHandle { pool: opened.pool.id(), dataset: source.record.id() };
        if let Some(clone) =
            opened.controller.writable_snapshot(volume, &snapshot_name(name)?).await?
        {
            return Ok(SnapshotShown::of_writable(&opened.pool, dataset, name, &clone.dataset));
        }
    }
    Ok(SnapshotShown::of(&opened.pool, dataset, &opened.snapshot(dataset, name).await?))
}

pub async fn list(dataset: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let opened = common.pool.open().await?;
    let datasets: Vec<Dataset> =
        opened.pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
    let of = match dataset {
        // A deleted dataset may still have snapshots.
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
    let mut shown: Vec<SnapshotShown> =
        live.map(|s| SnapshotShown::of(&opened.pool, &name_of(s.dataset.incarnation), s)).collect();
    for source in datasets.iter().filter(|dataset| of.is_none_or(|of| of == dataset.incarnation)) {
        let writable =
            datasets.iter().filter_map(|clone| Some((writable_name(clone, source)?, clone)));
        let pool = &opened.pool;
        shown.extend(writable.map(|(name, clone)| {
            SnapshotShown::of_writable(pool, source.name.as_str(), name, clone)
        }));
    }
    shown.sort_by(|a, b| (&a.dataset, &a.created, &a.name).cmp(&(&b.dataset, &b.created, &b.name)));
    common.output.print(&shown, |shown| info::snapshots(shown))
}

/// Deletes a snapshot. Returns whether it existed.
pub async fn delete(opened: &Opened, dataset: &str, name: &SnapshotName) -> anyhow::Result<bool> {
    let Some(of) = opened.pool.catalog.dataset(&dataset_name(dataset)?).await? else {
        return Ok(false);
    };
    let volume = VolumeHandle { pool: opened.pool.id(), dataset: of.record.id() };
    if let Some(at) = opened.pool.catalog.snapshot(volume.dataset, name).await? {
        opened
            .controller
            .delete_snapshot(SnapshotHandle { pool: volume.pool, snapshot: at.record.id() })
            .await?;
        return Ok(true);
    }
    let Some(writable) = opened.controller.writable_snapshot(volume, name).await? else {
        return Ok(false);
    };
    opened.controller.delete_volume(writable.handle).await?;
    Ok(true)
}
