//! From the configuration to open pools.

use super::config::{Config, PoolConfig};
use crate::bucket::{Bucket, Credentials, Folder, Limits, PoolUrl};
use crate::catalog::{Catalog, CatalogError, Secret};
use crate::control::{Pool, Pools};
use crate::types::{Class, Classify};
use anyhow::{Context, bail};
use std::path::Path;
use zeroize::Zeroizing;

/// The variable that a passphrase may be in, for the command line.
pub const PASSPHRASE_ENV: &str = "ZEROFS_PASSPHRASE";
/// The longest passphrase or credential file, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What to do where there is no pool yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Refuse,
    /// `serve` makes a pool in an empty place.
    Create,
}

impl PoolConfig {
    /// A pool that is given by its URL alone: credentials from the environment.
    pub fn at(url: PoolUrl) -> Self {
        Self { url, credentials: Default::default(), credentials_file: None, passphrase_file: None }
    }

    pub fn bucket(&self, folder: Folder) -> anyhow::Result<Bucket> {
        let mut credentials = Credentials::from_env();
        if let Some(path) = &self.credentials_file {
            credentials = credentials.with(read_credentials(path)?);
        }
        let credentials = credentials.with(self.credentials.clone());
        Ok(Bucket::open(&self.url, &credentials, folder, Limits::default())?)
    }

    pub fn secret(&self) -> anyhow::Result<Option<Secret>> {
        match &self.passphrase_file {
            Some(path) => Ok(Some(read_secret(path)?)),
            None => Ok(std::env::var(PASSPHRASE_ENV).ok().filter(|p| !p.is_empty()).map(|p| Secret(Zeroizing::new(p)))),
        }
    }

    pub async fn open(&self, missing: Missing) -> anyhow::Result<Catalog> {
        let secret = self.secret()?;
        let folder = if missing == Missing::Create { Folder::Create } else { Folder::MustExist };
        let bucket = self.bucket(folder)?;
        match Catalog::open(bucket.clone(), secret.as_ref()).await {
            Err(error) if missing == Missing::Create && error.class() == Class::NotFound => {
                match Catalog::create(bucket.clone(), secret.as_ref()).await {
                    // Another process was faster.
                    Err(CatalogError::Exists { .. }) => Ok(Catalog::open(bucket, secret.as_ref()).await?),
                    created => Ok(created?),
                }
            }
            opened => opened.with_context(|| format!("pool {}", self.url)),
        }
    }

    pub async fn create(&self) -> anyhow::Result<Catalog> {
        let secret = self.secret()?;
        Catalog::create(self.bucket(Folder::Create)?, secret.as_ref()).await.with_context(|| format!("pool {}", self.url))
    }
}

/// Opens every configured pool.
pub async fn open(config: &Config, missing: Missing) -> anyhow::Result<Pools> {
    if config.pools.is_empty() {
        bail!("no pool is configured: give --pool URL, or a configuration with `pools:`");
    }
    let mut pools = Vec::with_capacity(config.pools.len());
    for (name, pool) in &config.pools {
        let catalog = pool.open(missing).await.with_context(|| format!("opening pool {name}"))?;
        pools.push(Pool { name: name.clone(), catalog, folder: pool.url.folder().map(Path::to_owned) });
    }
    Ok(Pools::new(pools, config.default_pool.clone())?)
}

fn read_limited(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let size = std::fs::metadata(path).with_context(|| format!("secret {}", path.display()))?.len();
    if size > SECRET_BYTES_MAX {
        bail!("secret {}: {size} bytes are too many for a secret", path.display());
    }
    Ok(Zeroizing::new(std::fs::read_to_string(path).with_context(|| format!("secret {}", path.display()))?))
}

fn read_secret(path: &Path) -> anyhow::Result<Secret> {
    let text = read_limited(path)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        bail!("secret {}: its first line is empty: write the passphrase there", path.display());
    }
    Ok(Secret(Zeroizing::new(line.to_owned())))
}

/// A folder with a file for each credential, or a YAML file of them.
fn read_credentials(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    if !path.is_dir() {
        let text = read_limited(path)?;
        let map: std::collections::BTreeMap<String, String> = serde_saphyr::from_str(&text)
            .map_err(|_| anyhow::anyhow!("credentials {}: not a YAML map of names to values", path.display()))?;
        return Ok(map.into_iter().collect());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("credentials {}", path.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Kubernetes keeps its own `..data` links beside the keys.
        if !name.starts_with('.') && entry.path().is_file() {
            found.push((name, read_limited(&entry.path())?.trim_end_matches(['\n', '\r']).to_owned()));
        }
    }
    Ok(found)
}
