//! The exports as others see them: the table that the NFS server asks, and the users of volumes
//! that a hand-over asks.

use super::{Exports, named};
use crate::catalog::State;
use crate::control::ControlError;
use crate::control::node::Mounts;
use crate::nfs::{ExportId, ExportTable, Found, Listed, MountPoint, MountRefused};
use crate::types::{Class, Classify, DatasetId};
use crate::volume::{Closing, ExportedFs, Volumes};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;

/// The users of volumes in `serve`: mounts of staged volumes, and exports.
pub struct VolumeUsers {
    pub mounts: Arc<dyn Mounts>,
    pub exports: Arc<Exports>,
}

impl Mounts for VolumeUsers {
    fn sync(&self, dataset: DatasetId) -> BoxFuture<'_, Result<(), ControlError>> {
        self.mounts.sync(dataset)
    }

    fn hand_over<'a>(
        &'a self,
        volumes: &'a Volumes,
        dataset: DatasetId,
    ) -> BoxFuture<'a, Result<Closing, ControlError>> {
        if (self.exports.is_staged)(dataset) {
            return self.mounts.hand_over(volumes, dataset);
        }
        Box::pin(async move { Ok(self.exports.hand_over(dataset).await?) })
    }
}

/// The table that the NFS server asks.
#[derive(Clone)]
pub struct ServeTable(pub Arc<Exports>);

impl ExportTable for ServeTable {
    type Fs = ExportedFs;

    fn find(&self, id: ExportId) -> Found<ExportedFs> {
        self.0.find(id)
    }

    async fn opened(&self, id: ExportId) -> Found<ExportedFs> {
        self.0.registry.opened(id).await
    }

    async fn mount(
        &self,
        path: &[u8],
        peer: SocketAddr,
    ) -> Result<MountPoint<ExportedFs>, MountRefused> {
        let (name, below) = named::export_and_below(path);
        let pool = self.0.pool().ok_or(MountRefused::NotFound)?;
        let id = named::find(pool, name).await?;
        let opened =
            self.0.open(pool, id).await.map(|export| MountPoint { export, below: below.into() });
        opened.map_err(|error| match error.class() {
            Class::NotFound => MountRefused::NotFound,
            Class::Precondition | Class::Denied => {
                tracing::warn!(%peer, dataset = %id, %error, "refused a mount");
                MountRefused::Denied
            }
            _ => {
                tracing::error!(
                    %peer,
                    dataset = %id,
                    %error,
                    "cannot open a dataset for a mount"
                );
                MountRefused::Unavailable(error.to_string())
            }
        })
    }

    async fn list(&self) -> Vec<Listed> {
        let Some(pool) = self.0.pool() else { return vec![] };
        match pool.catalog.datasets().await {
            Ok(datasets) => {
                let ready =
                    datasets.into_iter().map(|at| at.record).filter(|d| d.state == State::Ready);
                ready.map(|d| Listed { path: format!("/{}", d.name) }).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "cannot list the datasets for a client");
                vec![]
            }
        }
    }
}
