//! Replaces the credentials of pools in use when their `credentialsFile` changes: kubelet updates a
//! mounted Secret within about a minute. Nothing is opened again; requests in progress end with the
//! old ones.
//!
//! ```text
//! the file changed ─▶ open the bucket with it ─▶ read the pool, write and delete ─▶ replace
//!        ▲                                             │ they do not work
//!        └───────── later, the old ones in use ────────┘
//! ```

use super::config::{Config, PoolConfig};
use super::pools::read_credentials;
use crate::bucket::Folder;
use crate::control::{Pool, Pools};
use crate::types::Backoff;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Interval at which the files are read, on this machine.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before credentials that do not work are tried again, doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// The credential files of pools, and what of them is in use.
pub(super) struct CredentialFiles(Vec<CredentialFile>);

struct CredentialFile {
    pool: String,
    config: PoolConfig,
    path: PathBuf,
    /// Digest of the credentials in use; `None`: the file could not be read.
    used: Option<blake3::Hash>,
    failed: Option<Failed>,
}

/// Credentials that do not work.
struct Failed {
    digest: blake3::Hash,
    backoff: Backoff,
    again: Instant,
}

impl CredentialFiles {
    /// Reads the files. It must happen before the pools are opened with them, so that no change is
    /// missed.
    pub fn read(config: &Config) -> Self {
        let file = |(name, pool): (&String, &PoolConfig)| {
            // With the secrets of requests, these replace those of the open pool.
            let path = pool.credentials_file.clone().filter(|_| !pool.request_secrets)?;
            Some(CredentialFile {
                pool: name.clone(),
                config: pool.clone(),
                used: digest(&path).ok(),
                path,
                failed: None,
            })
        };
        Self(config.pools.iter().filter_map(file).collect())
    }

    /// Follows the files until stopped.
    pub async fn follow(mut self, pools: Pools, stop: CancellationToken) {
        if self.0.is_empty() {
            return;
        }
        let following = async {
            loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                for file in &mut self.0 {
                    file.look(&pools).await;
                }
            }
        };
        stop.run_until_cancelled(following).await;
    }
}

impl CredentialFile {
    async fn look(&mut self, pools: &Pools) {
        // A pool that is not open yet is opened with what the file holds then.
        let Some(pool) = pools.iter().find(|pool| pool.name == self.pool) else { return };
        // While kubelet replaces the files, or nobody does anything: the next look sees them.
        let Ok(now) = digest(&self.path) else { return };
        if self.used == Some(now) {
            self.failed = None;
            return;
        }
        let before = self.failed.take().filter(|failed| failed.digest == now);
        if let Some(failed) = &before
            && Instant::now() < failed.again
        {
            self.failed = before;
            return;
        }
        match self.replace(pool).await {
            Ok(()) => {
                self.used = Some(now);
                tracing::info!(pool = self.pool, "replaced the credentials of the pool");
            }
            Err(error) => {
                let mut backoff = before
                    .map_or_else(|| Backoff::new(RETRY_MIN, RETRY_MAX), |failed| failed.backoff);
                let wait = backoff.pause();
                tracing::error!(
                    pool = self.pool,
                    file = %self.path.display(),
                    error = format!("{error:#}"),
                    retry_secs = wait.as_secs(),
                    "the new credentials of the pool do not work; the old ones stay in use; \
                     correct the file or its Secret"
                );
                self.failed = Some(Failed { digest: now, backoff, again: Instant::now() + wait });
            }
        }
    }

    async fn replace(&self, pool: &Pool) -> anyhow::Result<()> {
        let bucket = self.config.bucket(Folder::MustExist)?;
        Ok(pool.catalog.take_credentials_of(&bucket).await?)
    }
}

fn digest(path: &std::path::Path) -> anyhow::Result<blake3::Hash> {
    let mut credentials = read_credentials(path)?;
    credentials.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, value) in &credentials {
        for part in [name, value] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
    }
    Ok(hasher.finalize())
}
