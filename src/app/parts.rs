//! The parts that every process has: pools, caches, volumes.

use super::config::Config;
use super::memory::{Shares, process_max};
use super::state_dir::StateDir;
use crate::chunk::{ChunkCache, ChunkLimits};
use crate::control::Pools;
use crate::nfs::Limits;
use crate::types::SessionId;
use crate::volume::{LeaseSettings, VolumeSettings, Volumes};
use anyhow::Context;

/// A process's parts, wired.
pub struct Parts {
    pub config: Config,
    pub pools: Pools,
    pub volumes: Volumes,
    /// For all NFS endpoints together.
    pub nfs: Limits,
}

impl Parts {
    /// On pools that are open, or will be. `node`: the name that owns what this process opens.
    /// `state`: where journals go; none: changes wait for the store.
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
            "memory, and what it comes to with every volume open"
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
        Ok(Self { config, pools, volumes, nfs: shares.nfs })
    }
}

async fn chunk_cache(
    config: &Config,
    limits: ChunkLimits,
    state: Option<&StateDir>,
) -> anyhow::Result<ChunkCache> {
    let disk_bytes = config.limits.disk_cache.0;
    match state {
        Some(state) if disk_bytes > 0 => {
            let dir = state.path().join("cache");
            let cache = ChunkCache::with_disk(limits, &dir, disk_bytes).await;
            cache.with_context(|| format!("disk cache {}", dir.display()))
        }
        _ => Ok(ChunkCache::limited(limits)),
    }
}
