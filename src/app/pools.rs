//! Opens the configured pools.

use super::config::{Config, PoolConfig};
use crate::bucket::{Bucket, Credentials, Folder, Limits, PoolUrl};
use crate::catalog::{Catalog, CatalogError, Secret};
use crate::control::secrets::RequestSecrets;
use crate::control::unlock::{OpenPool, PoolRefused, Unlocker};
use crate::control::{Pool, Pools};
use crate::types::{Backoff, Class, Classify};
use anyhow::{Context, bail};
use futures::future::BoxFuture;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// The environment variable that may hold a passphrase, for the command line.
pub const PASSPHRASE_ENV: &str = "ZEROFS_PASSPHRASE";
/// The longest passphrase or credential file, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// A pool's key.
const KEY_BYTES: usize = 32;
/// Time that a start waits for the first attempt to open each pool.
const FIRST_TRY: Duration = Duration::from_secs(5);
/// Between attempts to open a pool.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// From the start to the check whether the pools' stores take objects of the size of packs: such an
/// object has a slow line for itself, which a hand-over and the opening of volumes need first.
const FIRST_CHECK: Duration = Duration::from_secs(30);
/// Between checks whether the pools' stores refuse objects.
const REFUSED_AGAIN: Duration = Duration::from_secs(20);

/// The treatment of a location without a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Refuse,
    /// `serve` creates a pool in an empty location and logs it, because a mistyped URL is one too.
    Create,
}

impl PoolConfig {
    /// A pool that is given by its URL alone: credentials from the environment.
    pub fn at(url: PoolUrl) -> Self {
        Self {
            url,
            credentials: Default::default(),
            credentials_file: None,
            passphrase_file: None,
            key_file: None,
            request_secrets: false,
        }
    }

    pub fn bucket(&self, folder: Folder) -> anyhow::Result<Bucket> {
        self.bucket_with(folder, None)
    }

    fn bucket_with(
        &self,
        folder: Folder,
        request: Option<&RequestSecrets>,
    ) -> anyhow::Result<Bucket> {
        let mut credentials = Credentials::from_env();
        if let Some(path) = &self.credentials_file {
            credentials = credentials.with(read_credentials(path)?);
        }
        let mut credentials = credentials.with(self.credentials.clone());
        if let Some(request) = request {
            credentials = credentials.with(request.options());
        }
        Ok(Bucket::open(&self.url, &credentials, folder, Limits::default())?)
    }

    pub fn secret(&self) -> anyhow::Result<Option<Secret>> {
        let in_file = secret_in(self.passphrase_file.as_deref(), self.key_file.as_deref())?;
        Ok(in_file.or_else(|| {
            let given = std::env::var(PASSPHRASE_ENV).ok().filter(|p| !p.is_empty());
            given.map(|p| Secret(Zeroizing::new(p)))
        }))
    }

    pub async fn open(&self, missing: Missing) -> anyhow::Result<Catalog> {
        self.open_with(missing, None).await
    }

    /// Opens the pool with the secrets of a request on top of the configured ones.
    async fn open_with(
        &self,
        missing: Missing,
        request: Option<&RequestSecrets>,
    ) -> anyhow::Result<Catalog> {
        let secret = match request.and_then(RequestSecrets::passphrase) {
            Some(passphrase) => Some(Secret::new(passphrase)),
            None => self.secret()?,
        };
        let folder = if missing == Missing::Create { Folder::Create } else { Folder::MustExist };
        let bucket = self.bucket_with(folder, request)?;
        match Catalog::open(bucket.clone(), secret.as_ref()).await {
            Err(error) if missing == Missing::Create && error.class() == Class::NotFound => {
                if !bucket.list("").await?.is_empty() {
                    return Err(error).with_context(|| {
                        format!(
                            "pool {}: the location is not empty and holds no pool; use an empty \
                             one",
                            self.url
                        )
                    });
                }
                match Catalog::create(bucket.clone(), secret.as_ref()).await {
                    // Another process was faster.
                    Err(CatalogError::PoolExists) => {
                        Ok(Catalog::open(bucket, secret.as_ref()).await?)
                    }
                    Ok(created) => {
                        tracing::warn!(
                            url = %self.url,
                            "created a new pool in an empty location; if there should have been \
                             one, stop and correct the URL or mount the folder"
                        );
                        Ok(created)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            opened => opened.with_context(|| format!("pool {}", self.url)),
        }
    }

    pub async fn create(&self) -> anyhow::Result<Catalog> {
        let secret = self.secret()?;
        Catalog::create(self.bucket(Folder::Create)?, secret.as_ref())
            .await
            .with_context(|| format!("pool {}", self.url))
    }
}

/// Opens every configured pool.
pub async fn open(config: &Config, missing: Missing) -> anyhow::Result<Pools> {
    if config.pools.is_empty() {
        bail!("no pool is configured: give --pool URL, or --config with `pools:`");
    }
    let mut pools = Vec::with_capacity(config.pools.len());
    for (name, pool) in &config.pools {
        let catalog = pool.open(missing).await.with_context(|| format!("opening pool {name}"))?;
        pools.push(Pool {
            name: name.clone(),
            catalog,
            folder: pool.url.folder().map(Path::to_owned),
        });
    }
    Ok(Pools::new(pools, config.default_pool.clone())?)
}

/// Pools that are being opened, each however long it takes.
pub struct Opening {
    pub pools: Pools,
    first: Vec<oneshot::Receiver<()>>,
}

impl Opening {
    /// Waits until each was attempted once, for some seconds at most.
    pub async fn tried(&mut self) {
        let first = futures::future::join_all(std::mem::take(&mut self.first));
        let _ = tokio::time::timeout(FIRST_TRY, first).await;
    }
}

/// Begins to open every configured pool.
pub fn open_patiently(config: &Config, stop: &CancellationToken) -> anyhow::Result<Opening> {
    if config.pools.is_empty() {
        bail!("no pool is configured: add `pools:` to the configuration");
    }
    let pools = Pools::waiting(config.pools.keys().cloned(), config.default_pool.clone())?;
    let mut first = Vec::new();
    for (name, pool) in config.pools.iter().filter(|(_, pool)| !pool.request_secrets) {
        let (tried, is_tried) = oneshot::channel();
        first.push(is_tried);
        tokio::spawn(keep_opening(pools.clone(), name.clone(), pool.clone(), tried, stop.clone()));
    }
    Ok(Opening { pools, first })
}

async fn keep_opening(
    pools: Pools,
    name: String,
    pool: PoolConfig,
    tried: oneshot::Sender<()>,
    stop: CancellationToken,
) {
    let (mut backoff, mut tried) = (Backoff::new(RETRY_MIN, RETRY_MAX), Some(tried));
    loop {
        let opened = tokio::select! {
            () = stop.cancelled() => return,
            opened = pool.open(Missing::Refuse) => opened,
        };
        let folder = pool.url.folder().map(Path::to_owned);
        let taken = opened
            .and_then(|catalog| Ok(pools.opened(Pool { name: name.clone(), catalog, folder })?));
        let why = taken.err().map(|error| format!("{error:#}"));
        if let Some(why) = &why {
            pools.not_yet(&name, why.clone());
        }
        // The start may have stopped waiting.
        let _ = tried.take().map(|tried| tried.send(()));
        let Some(why) = why else {
            tracing::info!(pool = name, "opened the pool");
            return;
        };
        let wait = backoff.pause();
        tracing::warn!(
            pool = name,
            why,
            retry_secs = wait.as_secs_f32(),
            "cannot open the pool; retrying; its volumes wait"
        );
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Checks for each pool, some time after the start and for as long as its store refuses, that
/// objects of the size of packs are accepted: a proxy's limit, which would block writes for ever,
/// is reported.
pub async fn watch_refusals(pools: Pools, stop: CancellationToken) {
    let (mut tried, mut refusing) = (BTreeSet::new(), BTreeSet::new());
    let begun = Instant::now();
    loop {
        for pool in pools.iter() {
            let bucket = pool.catalog.bucket();
            let is_refused = bucket.refusal().is_some() || refusing.contains(&pool.name);
            let is_due =
                is_refused || begun.elapsed() >= FIRST_CHECK && !tried.contains(&pool.name);
            if !is_due {
                continue;
            }
            tried.insert(pool.name.clone());
            // Transient failures are retried where they matter; the bucket remembers a refusal.
            let checked = tokio::select! {
                () = stop.cancelled() => return,
                checked = pool.catalog.check_size() => checked,
            };
            if let Some(why) = bucket.refusal() {
                if refusing.insert(pool.name.clone()) {
                    tracing::error!(
                        pool = pool.name,
                        why,
                        "cannot write to the pool; retrying; its volumes keep their data in memory"
                    );
                }
            } else if checked.is_ok() && refusing.remove(&pool.name) {
                tracing::info!(pool = pool.name, "the pool is writable again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REFUSED_AGAIN) => {}
        }
    }
}

/// The error for a file with unusable content.
fn unusable(why: String) -> anyhow::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why).into()
}

fn read_limited(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let size = std::fs::metadata(path).with_context(|| format!("secret {}", path.display()))?.len();
    if size > SECRET_BYTES_MAX {
        return Err(unusable(format!(
            "secret {}: {size} bytes is too large for a secret",
            path.display()
        )));
    }
    Ok(Zeroizing::new(
        std::fs::read_to_string(path).with_context(|| format!("secret {}", path.display()))?,
    ))
}

/// Reads the secret of a pool: a passphrase, or else a key.
pub fn secret_in(passphrase: Option<&Path>, key: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    match (passphrase, key) {
        (Some(path), _) => read_secret(path).map(Some),
        (None, Some(path)) => read_key(path).map(Some),
        (None, None) => Ok(None),
    }
}

fn read_secret(path: &Path) -> anyhow::Result<Secret> {
    let text = read_limited(path)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(unusable(format!(
            "secret {}: its first line is empty: it must hold the passphrase",
            path.display()
        )));
    }
    Ok(Secret(Zeroizing::new(line.to_owned())))
}

/// Reads a key, which must have exactly this form: anything else would silently become a
/// passphrase.
fn read_key(path: &Path) -> anyhow::Result<Secret> {
    let secret = read_secret(path)?;
    let bytes = data_encoding::BASE64.decode(secret.0.as_bytes()).map(Zeroizing::new);
    if !bytes.is_ok_and(|bytes| bytes.len() == KEY_BYTES) {
        return Err(unusable(format!(
            "key {}: its first line is not {KEY_BYTES} bytes in base 64: create one with `openssl \
             rand -base64 {KEY_BYTES}`",
            path.display()
        )));
    }
    Ok(secret)
}

/// A configured pool, which is opened with the secrets of requests.
struct ConfiguredPool {
    name: String,
    config: PoolConfig,
}

impl OpenPool for ConfiguredPool {
    fn open<'a>(&'a self, secrets: &'a RequestSecrets) -> BoxFuture<'a, Result<Pool, PoolRefused>> {
        Box::pin(async move {
            let opened = self.config.open_with(Missing::Refuse, Some(secrets)).await;
            let catalog = opened.map_err(|error| PoolRefused {
                class: refusal_class(&error),
                why: format!("{error:#}"),
            })?;
            let folder = self.config.url.folder().map(Path::to_owned);
            Ok(Pool { name: self.name.clone(), catalog, folder })
        })
    }
}

/// The class of an error of opening a pool.
fn refusal_class(error: &anyhow::Error) -> Class {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<CatalogError>())
        .map_or(Class::Invalid, Classify::class)
}

/// The pools that take their secrets from requests.
pub(super) async fn unlocker(
    config: &Config,
    pools: Pools,
    run_dir: Option<&Path>,
) -> anyhow::Result<Arc<Unlocker>> {
    let opener = |(name, pool): (&String, &PoolConfig)| {
        let opener = ConfiguredPool { name: name.clone(), config: pool.clone() };
        (name.clone(), Box::new(opener) as Box<dyn OpenPool>)
    };
    let openers =
        config.pools.iter().filter(|(_, pool)| pool.request_secrets).map(opener).collect();
    let only = config.pools.keys().next().filter(|_| config.pools.len() == 1).cloned();
    let default = config.default_pool.clone().or(only);
    Ok(Arc::new(Unlocker::start(openers, default, pools, run_dir).await?))
}

/// A folder with a file for each credential, or a YAML file of them.
pub(super) fn read_credentials(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    if !path.is_dir() {
        let text = read_limited(path)?;
        let map: std::collections::BTreeMap<String, String> = serde_saphyr::from_str(&text)
            .map_err(|_| {
                anyhow::anyhow!("credentials {}: not a YAML map of names to values", path.display())
            })?;
        return Ok(map.into_iter().collect());
    }
    let mut found = Vec::new();
    for entry in
        std::fs::read_dir(path).with_context(|| format!("credentials {}", path.display()))?
    {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Kubernetes keeps its own `..data` links beside the keys.
        if !name.starts_with('.') && entry.path().is_file() {
            found.push((
                name,
                read_limited(&entry.path())?.trim_end_matches(['\n', '\r']).to_owned(),
            ));
        }
    }
    Ok(found)
}
