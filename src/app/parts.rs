//! The parts of every process: pools, caches, volumes.

use super::config::Config;
use super::journals;
use super::memory::{Shares, process_max};
use super::state_dir::StateDir;
use crate::chunk::{ChunkCache, ChunkLimits, DiskSize};
use crate::control::policy::PolicyStatus;
use crate::control::{Carriers, Controller, Pools, report_damage};
use crate::nfs::Limits;
use crate::types::SessionId;
use crate::volume::{LeaseSettings, VolumeSettings, Volumes};
use anyhow::Context;
use tokio_util::sync::CancellationToken;

/// The parts of a process, wired.
pub struct Parts {
    pub config: Config,
    pub pools: Pools,
    pub volumes: Volumes,
    /// Limits of all NFS endpoints together.
    pub nfs: Limits,
    /// Counts of the snapshot policies that this process runs.
    pub policies: PolicyStatus,
}

impl Parts {
    /// Builds the parts on pools that are open, or will be. `node` is the name that owns the
    /// volumes of this process. Journals go to `state`; without it, changes wait for the store.
    pub async fn over(
        config: Config,
        pools: Pools,
        node: String,
        state: Option<&StateDir>,
    ) -> anyhow::Result<Self> {
        let limits = config.limits;
        let shares = Shares::of(&limits);
        tracing::info!(
            limit = %limits.memory,
            process_max = %process_max(&limits),
            "memory limits; process_max is the most with every volume open"
        );
        let settings = VolumeSettings {
            node,
            session: SessionId::random(),
            journal_dir: state.map(StateDir::journals),
            cache: shares.blocks,
            chunk_cache: chunk_cache(&config, shares.chunks, state).await?,
            flush_interval: config.flush_interval,
            memory: shares.fs,
            volumes_max: limits.volumes_max,
        };
        let volumes = Volumes::with_lease(
            settings,
            LeaseSettings { lease: config.lease, ..LeaseSettings::default() },
        );
        Ok(Self { config, pools, volumes, nfs: shares.nfs, policies: PolicyStatus::default() })
    }
}

async fn chunk_cache(
    config: &Config,
    limits: ChunkLimits,
    state: Option<&StateDir>,
) -> anyhow::Result<ChunkCache> {
    let size = match config.limits.disk_cache {
        Some(bytes) if bytes.0 == 0 => return Ok(ChunkCache::limited(limits)),
        Some(bytes) => DiskSize::Bytes(bytes.0),
        None => DiskSize::Share,
    };
    let Some(state) = state else { return Ok(ChunkCache::limited(limits)) };
    let dir = state.path().join("cache");
    match ChunkCache::with_disk(limits, &dir, size).await {
        // Nobody asked for it: volumes are served without.
        Err(error) if size == DiskSize::Share => {
            tracing::warn!(
                %error,
                dir = %dir.display(),
                "no disk cache: what is read comes from the object store each time; remove the \
                 folder and restart"
            );
            Ok(ChunkCache::limited(limits))
        }
        cache => cache.with_context(|| format!("disk cache {}", dir.display())),
    }
}

impl Parts {
    pub(super) fn controller(&self, carriers: Carriers) -> Controller {
        Controller::new(self.pools.clone(), self.volumes.clone())
            .with_owner_timeout(self.config.owner_timeout)
            .with_carriers(carriers)
    }

    pub(super) fn damage_reports(
        &self,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        report_damage(self.pools.clone(), self.volumes.clone(), stop.child_token())
    }

    pub(super) fn journals(
        &self,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        journals::run(self.pools.clone(), self.volumes.clone(), stop.child_token())
    }
}
