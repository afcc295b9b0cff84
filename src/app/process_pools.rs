//! The pools of a process, opened as its role asks.

use super::config::Config;
use super::credentials::CredentialFiles;
use super::pools::{self, Missing, Opening};
use super::role::Role;
use crate::control::Pools;
use crate::control::secrets::{NoSecrets, Unlock};
use crate::control::unlock::Unlocker;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The pools of a process.
pub(super) enum ProcessPools {
    /// A server opens all of them before it serves.
    Open(Pools),
    /// Others serve while their pools are being opened.
    Opening { opening: Opening, unlocker: Option<Arc<Unlocker>> },
}

impl ProcessPools {
    pub(super) async fn start(
        config: &Config,
        role: &Role,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let files = CredentialFiles::read(config);
        let started = match role {
            Role::Serve(_) => Self::Open(pools::open(config, Missing::Create).await?),
            Role::Controller | Role::Node(_) => {
                Self::Opening { opening: pools::open_patiently(config, stop)?, unlocker: None }
            }
        };
        tokio::spawn(files.follow(started.pools().clone(), stop.clone()));
        Ok(started)
    }

    pub(super) fn pools(&self) -> &Pools {
        match self {
            Self::Open(pools) => pools,
            Self::Opening { opening, .. } => &opening.pools,
        }
    }

    /// Takes the secrets of requests, once each pool was tried.
    pub(super) async fn unlock(
        &mut self,
        config: &Config,
        role: &Role,
    ) -> anyhow::Result<Arc<dyn Unlock>> {
        let Self::Opening { opening, unlocker } = self else { return Ok(Arc::new(NoSecrets)) };
        if let Some(unlocker) = unlocker {
            return Ok(unlocker.clone());
        }
        opening.tried().await;
        let run_dir = match role {
            Role::Node(node) => node.run_dir.as_deref(),
            Role::Controller | Role::Serve(_) => None,
        };
        let started = pools::unlocker(config, opening.pools.clone(), run_dir).await?;
        *unlocker = Some(started.clone());
        Ok(started)
    }
}
