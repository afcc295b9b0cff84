//! The names and the ids of exports: which dataset or snapshot a path, or a handle, is of.

use crate::catalog::{CatalogError, State};
use crate::control::Pool;
use crate::nfs::{ExportId, MountRefused};
use crate::types::{DatasetId, DatasetName, SnapshotId, SnapshotName};

/// The dataset or snapshot of an export.
#[derive(Clone, Copy, Debug)]
pub(super) enum Named {
    Dataset(DatasetId),
    Snapshot(SnapshotId),
}

impl Named {
    pub fn export(self) -> ExportId {
        match self {
            Self::Dataset(id) => export_id(id),
            Self::Snapshot(id) => snapshot_export(id),
        }
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dataset(id) => write!(f, "{id}"),
            Self::Snapshot(id) => write!(f, "{id}"),
        }
    }
}

/// The snapshot's own incarnation: two exports never share a handle.
fn snapshot_export(snapshot: SnapshotId) -> ExportId {
    ExportId(*snapshot.snapshot.incarnation.as_bytes())
}

pub(super) fn export_id(dataset: DatasetId) -> ExportId {
    ExportId(*dataset.incarnation.as_bytes())
}

/// The first name of a path, which is an export's, and the rest.
pub(super) fn export_and_below(path: &[u8]) -> (&[u8], &[u8]) {
    let is_slash = |byte: &u8| *byte == b'/';
    let (_, path) =
        path.split_at(path.iter().position(|byte| !is_slash(byte)).unwrap_or(path.len()));
    path.split_at(path.iter().position(is_slash).unwrap_or(path.len()))
}

/// The dataset or snapshot of a name in a pool; without a name, the pool's default dataset.
///
/// A dataset's name may hold `@` itself: a dataset of the whole name comes first, then the last
/// `@` counts.
pub(super) async fn find(pool: &Pool, name: &[u8]) -> Result<Named, MountRefused> {
    let path = std::str::from_utf8(name).map_err(|_| MountRefused::NotFound)?;
    let unavailable = |error: CatalogError| MountRefused::Unavailable(error.to_string());
    if path.is_empty() {
        let default = pool.catalog.default_dataset().await.map_err(unavailable)?;
        let default = default.ok_or(MountRefused::NotFound)?;
        return Ok(Named::Dataset(default));
    }
    let find = async |name: &str| {
        let name: DatasetName = name.parse().map_err(|_| MountRefused::NotFound)?;
        Ok::<_, MountRefused>(
            pool.catalog.dataset(&name).await.map_err(unavailable)?.map(|at| at.record),
        )
    };
    if let Some(dataset) = find(path).await?.filter(|dataset| dataset.state == State::Ready) {
        return Ok(Named::Dataset(dataset.id()));
    }
    let (dataset, snapshot) = path.rsplit_once('@').ok_or(MountRefused::NotFound)?;
    let dataset = find(dataset).await?.ok_or(MountRefused::NotFound)?;
    let snapshot: SnapshotName = snapshot.parse().map_err(|_| MountRefused::NotFound)?;
    let found = pool
        .catalog
        .snapshot(dataset.id(), &snapshot)
        .await
        .map_err(unavailable)?
        .map(|at| at.record);
    let found =
        found.filter(|snapshot| snapshot.state == State::Ready).ok_or(MountRefused::NotFound)?;
    Ok(Named::Snapshot(found.id()))
}
