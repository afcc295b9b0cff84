//! Pools that take their credentials from requests.
//!
//! A restarted node plugin is sent no stage secrets again (R29): it keeps those that opened a pool
//! in its run folder, which must be in memory, never on a disk, readable by its own user alone. A
//! controller keeps none: the pool waits for the next request.

use super::config::{Config, PoolConfig};
use super::pools::{Missing, retry_refused};
use crate::catalog::Catalog;
use crate::control::secrets::{PoolOf, RequestSecrets, Unlock};
use crate::control::{ControlError, Pool, Pools};
use crate::types::Class;
use anyhow::{Context, bail};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Secrets that are known to open one pool: the new and the old ones of a rotation, of several
/// classes.
const KNOWN_MAX: usize = 16;

/// Every such pool of the process.
pub struct Unlocker {
    pools: Pools,
    configs: BTreeMap<String, PoolConfig>,
    default: Option<String>,
    run_dir: Option<RunDir>,
    /// Digests of secrets that opened a pool, the newest last.
    known: Mutex<BTreeMap<String, VecDeque<[u8; 32]>>>,
}

impl Unlocker {
    /// Opens what an earlier run on this machine kept secrets of.
    pub async fn start(
        config: &Config,
        pools: Pools,
        run_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let configs: BTreeMap<_, _> =
            config.pools.iter().filter(|(_, pool)| pool.request_secrets).map(clone_pair).collect();
        let only = config.pools.keys().next().filter(|_| config.pools.len() == 1).cloned();
        let run_dir = match run_dir.filter(|_| !configs.is_empty()) {
            Some(path) => Some(RunDir::open(path)?),
            None => None,
        };
        let unlocker = Self {
            pools,
            configs,
            default: config.default_pool.clone().or(only),
            run_dir,
            known: Mutex::default(),
        };
        for name in unlocker.configs.keys() {
            unlocker.pools.not_yet(
                name,
                "its credentials come with requests, and none has come yet".to_owned(),
            );
            if let Some(kept) = unlocker.run_dir.as_ref().and_then(|dir| dir.read(name))
                && let Err(error) = unlocker.open(name, &kept).await
            {
                tracing::warn!(
                    pool = name,
                    %error,
                    "the secrets kept from the last run do not open the pool: the next request may"
                );
            }
        }
        Ok(unlocker)
    }

    fn names(&self, of: &PoolOf) -> Vec<String> {
        match of {
            PoolOf::Name(name) => {
                name.clone().or_else(|| self.default.clone()).into_iter().collect()
            }
            PoolOf::Id(id) => match self.pools.iter().find(|pool| pool.id() == *id) {
                Some(pool) => vec![pool.name.clone()],
                // The request may be about any pool that is not open.
                None => self.pools.not_open().into_iter().map(|(name, _)| name).collect(),
            },
        }
    }

    async fn judge(&self, of: PoolOf, secrets: RequestSecrets) -> Result<(), ControlError> {
        let names: Vec<String> =
            self.names(&of).into_iter().filter(|name| self.configs.contains_key(name)).collect();
        let mut refused = Ok(());
        for name in names {
            match self.check(&name, &secrets).await {
                // No harm if it is not the pool that was meant: the secrets opened it.
                Ok(()) => return Ok(()),
                Err(error) => refused = Err(error),
            }
        }
        refused
    }

    async fn check(&self, name: &str, secrets: &RequestSecrets) -> Result<(), ControlError> {
        if secrets.is_empty() {
            return Err(ControlError::Precondition(format!(
                "pool {name} takes its credentials from requests, and this one carries none: name \
                 a Secret in the \
                 csi.storage.k8s.io/…-secret-name parameters of the class"
            )));
        }
        let open = self.pools.get(Some(name)).is_ok();
        if open
            && self.known.lock().get(name).is_some_and(|known| known.contains(&secrets.digest()))
        {
            return Ok(());
        }
        self.open(name, secrets).await
    }

    /// Opens the pool with these, and keeps it if it was waiting.
    async fn open(&self, name: &str, secrets: &RequestSecrets) -> Result<(), ControlError> {
        let Some(config) = self.configs.get(name) else {
            return Err(ControlError::Internal(format!("pool {name} has no configuration")));
        };
        let catalog = config
            .open_with(Missing::Refuse, Some(secrets))
            .await
            .map_err(|error| refusal(name, &error))?;
        self.accept(name, config, catalog)?;
        if let Some(dir) = &self.run_dir
            && let Err(error) = dir.write(name, secrets)
        {
            tracing::warn!(
                pool = name,
                error = %format!("{error:#}"),
                "after a restart the pool's volumes wait for a request with secrets"
            );
        }
        let mut known = self.known.lock();
        let digests = known.entry(name.to_owned()).or_default();
        if digests.len() >= KNOWN_MAX {
            digests.pop_front();
        }
        digests.push_back(secrets.digest());
        Ok(())
    }

    fn accept(
        &self,
        name: &str,
        config: &PoolConfig,
        catalog: Catalog,
    ) -> Result<(), ControlError> {
        if let Ok(open) = self.pools.get(Some(name)) {
            return if open.id() == catalog.pool().id {
                Ok(())
            } else {
                Err(ControlError::Precondition(format!(
                    "pool {name} has another id than when it was opened: restart the driver"
                )))
            };
        }
        let folder = config.url.folder().map(Path::to_owned);
        self.pools.opened(Pool { name: name.to_owned(), catalog, folder }).or_else(|error| {
            // Another request was faster.
            if self.pools.get(Some(name)).is_ok() { Ok(()) } else { Err(error) }
        })
    }
}

impl Unlock for Unlocker {
    fn unlock(
        &self,
        pool: PoolOf,
        secrets: RequestSecrets,
    ) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(self.judge(pool, secrets))
    }
}

fn clone_pair((name, pool): (&String, &PoolConfig)) -> (String, PoolConfig) {
    (name.clone(), pool.clone())
}

/// Maps an error of opening a pool: an unreachable store is not the caller's fault; everything else
/// is caused by its secrets.
fn refusal(name: &str, error: &anyhow::Error) -> ControlError {
    match retry_refused(error) {
        Class::Unavailable => ControlError::Unavailable(format!("pool {name}: {error:#}")),
        _ => ControlError::Precondition(format!(
            "pool {name} cannot be opened with the secrets of this request: {error:#}"
        )),
    }
}

/// A folder in memory.
struct RunDir(PathBuf);

impl RunDir {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let dir = path.join("secrets");
        let at = || format!("run folder {}", dir.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(at)?;
        let kind = rustix::fs::statfs(&dir).with_context(at)?.f_type;
        if u64::try_from(kind).ok() != Some(TMPFS_MAGIC) {
            bail!(
                "{}: it is not in memory (a tmpfs), and secrets are never written to a disk: give \
                 another --run-dir",
                at()
            );
        }
        Ok(Self(dir))
    }

    /// Pool names of the configuration may hold anything.
    fn path(&self, pool: &str) -> PathBuf {
        self.0.join(blake3::hash(pool.as_bytes()).to_hex().as_str())
    }

    fn read(&self, pool: &str) -> Option<RequestSecrets> {
        let text = Zeroizing::new(std::fs::read_to_string(self.path(pool)).ok()?);
        let values: BTreeMap<String, String> = serde_json::from_str(&text).ok()?;
        RequestSecrets::new(values).ok()
    }

    fn write(&self, pool: &str, secrets: &RequestSecrets) -> anyhow::Result<()> {
        let path = self.path(pool);
        let new = path.with_extension("new");
        let values: BTreeMap<&str, &str> = secrets.all().collect();
        let text = Zeroizing::new(serde_json::to_vec(&values)?);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("an old file");
            }
            _ => {}
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        std::fs::rename(&new, &path)?;
        Ok(())
    }
}

/// statfs(2): TMPFS_MAGIC.
const TMPFS_MAGIC: u64 = 0x0102_1994;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{Bucket, Credentials, Folder, Limits};
    use crate::catalog::Secret;
    use crate::types::Classify;
    use std::os::unix::fs::PermissionsExt;

    fn given(values: &[(&str, &str)]) -> RequestSecrets {
        RequestSecrets::new(values.iter().map(|(k, v)| (k.to_string(), v.to_string()))).unwrap()
    }

    async fn pool(dir: &Path) -> Config {
        let url = format!("file://{}/pool", dir.display());
        let config =
            Config::parse(&format!("pools:\n  p:\n    url: {url}\n    requestSecrets: true\n"))
                .unwrap();
        let bucket = Bucket::open(
            &url.parse().unwrap(),
            &Credentials::none(),
            Folder::Create,
            Limits::default(),
        )
        .unwrap();
        Catalog::create(bucket, Some(&Secret::new("correct horse"))).await.unwrap();
        config
    }

    #[tokio::test]
    async fn a_pool_opens_with_the_secrets_of_a_request_and_asks_for_them_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = pool(dir.path()).await;
        let pools = Pools::waiting(["p".to_owned()], None).unwrap();
        let unlocker = Unlocker::start(&config, pools.clone(), None).await.unwrap();
        let named = PoolOf::Name(None);
        assert!(pools.get(None).unwrap_err().to_string().contains("come with requests"));
        let right = given(&[("passphrase", "correct horse")]);
        for wrong in [
            given(&[]),
            given(&[("passphrase", "battery staple")]),
            given(&[("unknown_option", "x")]),
        ] {
            let refused = unlocker.unlock(named.clone(), wrong).await.unwrap_err();
            assert_eq!(refused.class(), Class::Precondition, "{refused}");
            assert!(!refused.to_string().contains("staple"), "{refused}");
        }
        // By an id that is not known yet.
        unlocker.unlock(PoolOf::Id(crate::types::PoolId::random()), right.clone()).await.unwrap();
        let id = pools.get(None).unwrap().id();
        unlocker.unlock(PoolOf::Id(id), right).await.unwrap();
        for wrong in [given(&[]), given(&[("passphrase", "battery staple")])] {
            assert!(
                unlocker.unlock(PoolOf::Id(id), wrong).await.is_err(),
                "open, and still another's"
            );
        }
    }

    /// A tmpfs holds the secrets, and no other file system does (R29).
    #[tokio::test]
    async fn a_restarted_node_finds_its_secrets_in_memory_only() {
        let dir = tempfile::tempdir().unwrap();
        let config = pool(dir.path()).await;
        let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
        let start = async |pools: &Pools| {
            Unlocker::start(&config, pools.clone(), Some(memory.path())).await
        };
        let first = Pools::waiting(["p".to_owned()], None).unwrap();
        let unlocker = start(&first).await.unwrap();
        unlocker
            .unlock(PoolOf::Name(None), given(&[("passphrase", "correct horse")]))
            .await
            .unwrap();
        let kept: Vec<_> =
            std::fs::read_dir(memory.path().join("secrets")).unwrap().map(Result::unwrap).collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let second = Pools::waiting(["p".to_owned()], None).unwrap();
        start(&second).await.unwrap();
        assert!(second.get(None).is_ok());
        if u64::try_from(rustix::fs::statfs(dir.path()).unwrap().f_type) != Ok(TMPFS_MAGIC) {
            assert!(
                Unlocker::start(&config, second, Some(dir.path())).await.is_err(),
                "never on a disk"
            );
        }
    }
}
