//! The exports of `serve`: every dataset as `/<name>`, opened by its first MNT.
//!
//! What this process's name owns already is opened at start, because a client that mounted it before a restart sends no
//! MNT again. A volume that is also staged through CSI is closed by its unstaging; its handles are stale here until it is
//! mounted again.

use crate::catalog::State;
use crate::control::{Pool, Pools};
use crate::fs::Fs;
use crate::nfs::{Export, ExportId, ExportTable, Found, Listed, MountRefused, Registry};
use crate::types::{Class, Classify, DatasetId, DatasetName, PoolId};
use crate::volume::{VolumeError, Volumes};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;

/// Volumes opened at once after a restart.
const REOPENS_AT_ONCE: usize = 8;

pub struct Exports {
    pools: Pools,
    volumes: Volumes,
    registry: Registry<Fs>,
    /// What was opened for a MNT, and must be closed at the end.
    opened: Mutex<HashMap<DatasetId, PoolId>>,
}

impl Exports {
    /// Serves the default pool, and begins to open what this node owned before.
    pub async fn start(pools: Pools, volumes: Volumes) -> anyhow::Result<Arc<Self>> {
        let exports = Arc::new(Self { pools, volumes, registry: Registry::default(), opened: Mutex::default() });
        exports.watch_losses();
        exports.clone().reopen().await?;
        Ok(exports)
    }

    fn pool(&self) -> Option<&Pool> {
        self.pools.get(None).ok()
    }

    async fn reopen(self: Arc<Self>) -> anyhow::Result<()> {
        let Some(pool) = self.pool().cloned() else { return Ok(()) };
        let node = self.volumes.settings().node.clone();
        let datasets = pool.catalog.datasets().await?.into_iter().map(|at| at.record);
        let ours: Vec<DatasetId> = datasets
            .filter(|d| d.state == State::Ready && d.owner.as_ref().is_some_and(|o| o.node == node))
            .map(|d| d.id())
            .collect();
        ours.iter().for_each(|id| self.registry.announce(export_id(*id)));
        let exports = self.clone();
        tokio::spawn(async move {
            use futures::StreamExt;
            let opens = futures::stream::iter(ours).map(|id| {
                let (exports, pool) = (exports.clone(), pool.clone());
                async move {
                    if let Err(error) = exports.open(&pool, id).await {
                        tracing::error!(dataset = %id, %error, "a dataset served before the restart cannot be opened: its clients get stale handles");
                        exports.registry.remove(export_id(id));
                    }
                }
            });
            opens.buffer_unordered(REOPENS_AT_ONCE).collect::<Vec<()>>().await;
        });
        Ok(())
    }

    async fn open(&self, pool: &Pool, id: DatasetId) -> Result<Arc<Export<Fs>>, VolumeError> {
        let volume = self.volumes.open(&pool.catalog, id).await?;
        let export = Export::new(export_id(id), volume.fs.clone(), volume.handle_key);
        self.registry.publish(export.clone());
        self.opened.lock().insert(id, pool.id());
        Ok(export)
    }

    fn watch_losses(self: &Arc<Self>) {
        let mut losses = self.volumes.lost();
        let exports = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let loss = losses.recv().await;
                let Some(exports) = exports.upgrade() else { return };
                match loss {
                    Ok(lost) => exports.registry.lose(export_id(lost.dataset)),
                    Err(RecvError::Lagged(_)) => exports.lose_missing(),
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    fn lose_missing(&self) {
        let opened: Vec<DatasetId> = self.opened.lock().keys().copied().collect();
        for id in opened.into_iter().filter(|id| self.volumes.get(*id).is_none()) {
            self.registry.lose(export_id(id));
        }
    }

    /// Flushes, closes and releases what was opened here. Answers the first failure after having tried all.
    pub async fn close(&self) -> Result<(), VolumeError> {
        let opened: Vec<DatasetId> = self.opened.lock().drain().map(|(id, _)| id).collect();
        let mut result = Ok(());
        for id in opened {
            self.registry.remove(export_id(id));
            if let Err(error) = self.volumes.close(id).await {
                tracing::error!(dataset = %id, %error, "a volume was not closed cleanly: the next start on this state folder recovers it");
                result = Err(error);
            }
        }
        result
    }

    async fn find_named(&self, path: &[u8]) -> Result<(Pool, DatasetId), MountRefused> {
        let path = std::str::from_utf8(path).map_err(|_| MountRefused::NotFound)?;
        let name: DatasetName = path.trim_matches('/').parse().map_err(|_| MountRefused::NotFound)?;
        let pool = self.pool().ok_or(MountRefused::NotFound)?;
        let found = pool.catalog.dataset(&name).await.map_err(|error| MountRefused::Unavailable(error.to_string()))?;
        let dataset = found.map(|at| at.record).filter(|d| d.state == State::Ready).ok_or(MountRefused::NotFound)?;
        Ok((pool.clone(), dataset.id()))
    }
}

fn export_id(dataset: DatasetId) -> ExportId {
    ExportId(*dataset.incarnation.as_bytes())
}

/// The table that the NFS server asks.
#[derive(Clone)]
pub struct ServeTable(pub Arc<Exports>);

impl ExportTable for ServeTable {
    type Fs = Fs;

    fn find(&self, id: ExportId) -> Found<Fs> {
        self.0.registry.find(id)
    }

    async fn opened(&self, id: ExportId) -> Found<Fs> {
        self.0.registry.opened(id).await
    }

    async fn mount(&self, path: &[u8], peer: SocketAddr) -> Result<Arc<Export<Fs>>, MountRefused> {
        let (pool, id) = self.0.find_named(path).await?;
        let opened = self.0.open(&pool, id).await;
        opened.map_err(|error| match error.class() {
            Class::NotFound => MountRefused::NotFound,
            Class::Precondition | Class::Denied => {
                tracing::warn!(%peer, dataset = %id, %error, "a mount is refused");
                MountRefused::Denied
            }
            _ => {
                tracing::error!(%peer, dataset = %id, %error, "a dataset cannot be opened for a mount");
                MountRefused::Unavailable(error.to_string())
            }
        })
    }

    async fn list(&self) -> Vec<Listed> {
        let Some(pool) = self.0.pool() else { return vec![] };
        match pool.catalog.datasets().await {
            Ok(datasets) => {
                let ready = datasets.into_iter().map(|at| at.record).filter(|d| d.state == State::Ready);
                ready.map(|d| Listed { path: format!("/{}", d.name) }).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "the datasets cannot be listed for a client");
                vec![]
            }
        }
    }
}
