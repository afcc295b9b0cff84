//! Pools that take their credentials from requests.
//!
//! A restarted node plugin is sent no stage secrets again (R29): it stores those that opened a pool
//! in its run folder, which must be in memory, never on a disk, readable by its own user alone. A
//! controller stores none: the pool waits for the next request.
//!
//! Secrets that are new replace those of the open pool, once they were seen to work.

use super::secrets::{PoolOf, RequestSecrets, Unlock};
use super::{ControlError, Pool, Pools};
use crate::bucket::Credentials;
use crate::types::Class;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The reason why a pool cannot be opened with the secrets of a request.
#[derive(Clone, Debug)]
pub struct PoolRefused {
    pub class: Class,
    pub why: String,
}

/// Opens one configured pool with the secrets of a request. The composition implements it.
pub trait OpenPool: Send + Sync {
    fn open<'a>(&'a self, secrets: &'a RequestSecrets) -> BoxFuture<'a, Result<Pool, PoolRefused>>;
}

/// Options of a store, by name.
type Options = BTreeMap<String, String>;

/// Configured pools that take their secrets from requests, by name.
pub type PoolOpeners = BTreeMap<String, Box<dyn OpenPool>>;

/// Secrets that are known to open one pool: the new and the old ones of a rotation, of several
/// classes.
const KNOWN_MAX: usize = 16;

/// All pools of the process that take their secrets from requests.
pub struct Unlocker {
    pools: Pools,
    openers: PoolOpeners,
    default: Option<String>,
    run_dir: Option<RunDir>,
    /// Digests of secrets that have opened a pool, the newest last.
    known: Mutex<BTreeMap<String, VecDeque<[u8; 32]>>>,
    /// The options, but for the credentials, with which a pool was opened: where its store is.
    places: Mutex<BTreeMap<String, Options>>,
}

impl Unlocker {
    /// Opens the pools whose secrets an earlier run on this machine has kept in `run_dir`.
    /// `default` names the pool of requests that name none.
    ///
    /// # Errors
    /// `run_dir` is not in memory, or cannot be used.
    pub async fn start(
        openers: PoolOpeners,
        default: Option<String>,
        pools: Pools,
        run_dir: Option<&Path>,
    ) -> Result<Self, ControlError> {
        let run_dir = match run_dir.filter(|_| !openers.is_empty()) {
            Some(path) => Some(RunDir::open(path)?),
            None => None,
        };
        let unlocker = Self {
            pools,
            openers,
            default,
            run_dir,
            known: Default::default(),
            places: Default::default(),
        };
        for name in unlocker.openers.keys() {
            unlocker.pools.not_yet(
                name,
                "it takes its credentials from requests, and none has arrived yet".to_owned(),
            );
            if let Some(kept) = unlocker.run_dir.as_ref().and_then(|dir| dir.read(name))
                && let Err(error) = unlocker.open(name, &kept).await
            {
                tracing::warn!(
                    pool = name,
                    %error,
                    "the secrets from the last run do not open the pool; waiting for the next \
                     request"
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
                // Any pool that is not open may have this id.
                None => self.pools.not_open().into_iter().map(|(name, _)| name).collect(),
            },
        }
    }

    async fn judge(&self, of: PoolOf, secrets: RequestSecrets) -> Result<(), ControlError> {
        let names: Vec<String> =
            self.names(&of).into_iter().filter(|name| self.openers.contains_key(name)).collect();
        let mut refused = Ok(());
        for name in names {
            match self.check(&name, &secrets).await {
                // If another pool is meant, this does no harm: the secrets open this one.
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
                 a Secret in the class's parameters csi.storage.k8s.io/…-secret-name"
            )));
        }
        // Known ones are tried again when the store refuses those in use.
        let is_well = |pool: &Pool| pool.catalog.bucket().refusal().is_none();
        if self.pools.get(Some(name)).is_ok_and(is_well)
            && self.known.lock().get(name).is_some_and(|known| known.contains(&secrets.digest()))
        {
            return Ok(());
        }
        self.open(name, secrets).await
    }

    /// Opens the pool with these secrets, and makes it available if it was waiting.
    async fn open(&self, name: &str, secrets: &RequestSecrets) -> Result<(), ControlError> {
        let Some(opener) = self.openers.get(name) else {
            return Err(ControlError::Internal(format!("pool {name} has no configuration")));
        };
        let pool = opener.open(secrets).await.map_err(|refused| refusal(name, &refused))?;
        if self.accept(pool, place(secrets)).await? == Accepted::NotInUse {
            return Ok(());
        }
        if let Some(dir) = &self.run_dir
            && let Err(error) = dir.write(name, secrets)
        {
            tracing::warn!(
                pool = name,
                %error,
                "cannot store the secrets; after a restart the pool's volumes wait for a request \
                 that carries them"
            );
        }
        let mut known = self.known.lock();
        let digests = known.entry(name.to_owned()).or_default();
        digests.retain(|digest| *digest != secrets.digest());
        if digests.len() >= KNOWN_MAX {
            digests.pop_front();
        }
        digests.push_back(secrets.digest());
        Ok(())
    }

    /// Makes a pool available; of one that is in use the credentials are replaced, which may be
    /// about to expire.
    async fn accept(&self, pool: Pool, place: Options) -> Result<Accepted, ControlError> {
        let name = pool.name.clone();
        if let Ok(open) = self.pools.get(Some(&name)) {
            if open.id() != pool.id() {
                return Err(ControlError::Precondition(format!(
                    "pool {name} was replaced since it was opened: restart the driver"
                )));
            }
            // A request must not lead the volumes of others to another store.
            if self.places.lock().get(&name).is_some_and(|now| *now != place) {
                tracing::warn!(
                    pool = name,
                    "the secrets of a request name another endpoint, region or other option of \
                     the store than those in use; the pool's volumes keep theirs"
                );
                return Ok(Accepted::NotInUse);
            }
            return Ok(match open.catalog.take_credentials_of(pool.catalog.bucket()).await {
                Ok(()) => Accepted::InUse,
                Err(error) => {
                    tracing::warn!(
                        pool = name,
                        %error,
                        "the credentials of a request read the pool, but cannot write to it; its \
                         volumes keep those that they have"
                    );
                    Accepted::NotInUse
                }
            });
        }
        match self.pools.opened(pool) {
            Ok(()) => {
                self.places.lock().insert(name, place);
                Ok(Accepted::InUse)
            }
            // Another request was faster.
            Err(_) if self.pools.get(Some(&name)).is_ok() => Ok(Accepted::NotInUse),
            Err(error) => Err(error),
        }
    }
}

/// Whether secrets that open a pool are used for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepted {
    InUse,
    NotInUse,
}

/// The options of secrets that are no credentials.
fn place(secrets: &RequestSecrets) -> Options {
    let of_place = secrets.options().filter(|(name, _)| !Credentials::is_secret(name));
    of_place.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect()
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

/// An unavailable store is not the caller's fault; any other cause is in its secrets.
fn refusal(name: &str, refused: &PoolRefused) -> ControlError {
    let why = &refused.why;
    match refused.class {
        Class::Unavailable => ControlError::Unavailable(format!("pool {name}: {why}")),
        _ => ControlError::Precondition(format!(
            "pool {name} cannot be opened with the secrets of this request: {why}"
        )),
    }
}

/// A folder in memory.
struct RunDir(PathBuf);

impl RunDir {
    fn open(path: &Path) -> Result<Self, ControlError> {
        let dir = path.join("secrets");
        let failed =
            |why: String| ControlError::Invalid(format!("run folder {}: {why}", dir.display()));
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|error| failed(error.to_string()))?;
        let kind = rustix::fs::statfs(&dir).map_err(|error| failed(error.to_string()))?.f_type;
        if u64::try_from(kind).ok() != Some(TMPFS_MAGIC) {
            return Err(failed(
                "not a tmpfs, and secrets are never written to a disk: give another --run-dir"
                    .to_owned(),
            ));
        }
        Ok(Self(dir))
    }

    /// The path of a pool's file; a pool's configured name may hold any characters.
    fn path(&self, pool: &str) -> PathBuf {
        self.0.join(blake3::hash(pool.as_bytes()).to_hex().as_str())
    }

    fn read(&self, pool: &str) -> Option<RequestSecrets> {
        let text = Zeroizing::new(std::fs::read_to_string(self.path(pool)).ok()?);
        let values: BTreeMap<String, String> = serde_json::from_str(&text).ok()?;
        RequestSecrets::new(values).ok()
    }

    fn write(&self, pool: &str, secrets: &RequestSecrets) -> io::Result<()> {
        let path = self.path(pool);
        let new = path.with_extension("new");
        let values: BTreeMap<&str, &str> = secrets.all().collect();
        let text = Zeroizing::new(serde_json::to_vec(&values)?);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
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
    use crate::bucket::{Bucket, Folder, Limits};
    use crate::catalog::{Catalog, CatalogError, Secret};
    use crate::types::Classify;
    use std::os::unix::fs::PermissionsExt;

    fn given(values: &[(&str, &str)]) -> RequestSecrets {
        RequestSecrets::new(values.iter().map(|(k, v)| (k.to_string(), v.to_string()))).unwrap()
    }

    /// An encrypted pool in a folder.
    #[derive(Clone)]
    struct Encrypted(String);

    impl Encrypted {
        async fn create(dir: &Path) -> Self {
            let pool = Self(format!("file://{}/pool", dir.display()));
            let bucket = pool.bucket(&given(&[]), Folder::Create).unwrap();
            Catalog::create(bucket, Some(&Secret::new("correct horse"))).await.unwrap();
            pool
        }

        fn bucket(&self, secrets: &RequestSecrets, folder: Folder) -> Result<Bucket, PoolRefused> {
            let credentials = Credentials::none().with(secrets.options());
            Bucket::open(&self.0.parse().unwrap(), &credentials, folder, Limits::default())
                .map_err(|error| PoolRefused { class: Class::Invalid, why: error.to_string() })
        }

        fn openers(&self) -> PoolOpeners {
            let opener: Box<dyn OpenPool> = Box::new(self.clone());
            [("p".to_owned(), opener)].into()
        }
    }

    impl OpenPool for Encrypted {
        fn open<'a>(
            &'a self,
            secrets: &'a RequestSecrets,
        ) -> BoxFuture<'a, Result<Pool, PoolRefused>> {
            Box::pin(async move {
                let bucket = self.bucket(secrets, Folder::MustExist)?;
                let secret = secrets.passphrase().map(Secret::new);
                let refused = |error: CatalogError| PoolRefused {
                    class: error.class(),
                    why: error.to_string(),
                };
                let catalog = Catalog::open(bucket, secret.as_ref()).await.map_err(refused)?;
                Ok(Pool { name: "p".to_owned(), catalog, folder: None })
            })
        }
    }

    async fn start(
        pool: &Encrypted,
        pools: &Pools,
        run_dir: Option<&Path>,
    ) -> Result<Unlocker, ControlError> {
        Unlocker::start(pool.openers(), Some("p".to_owned()), pools.clone(), run_dir).await
    }

    #[tokio::test]
    async fn a_pool_opens_with_the_secrets_of_a_request_and_asks_for_them_again() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Encrypted::create(dir.path()).await;
        let pools = Pools::waiting(["p".to_owned()], None).unwrap();
        let unlocker = start(&pool, &pools, None).await.unwrap();
        let named = PoolOf::Name(None);
        assert!(pools.get(None).unwrap_err().to_string().contains("from requests"));
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
        let pool = Encrypted::create(dir.path()).await;
        let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
        let first = Pools::waiting(["p".to_owned()], None).unwrap();
        let unlocker = start(&pool, &first, Some(memory.path())).await.unwrap();
        unlocker
            .unlock(PoolOf::Name(None), given(&[("passphrase", "correct horse")]))
            .await
            .unwrap();
        let kept: Vec<_> =
            std::fs::read_dir(memory.path().join("secrets")).unwrap().map(Result::unwrap).collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let second = Pools::waiting(["p".to_owned()], None).unwrap();
        start(&pool, &second, Some(memory.path())).await.unwrap();
        assert!(second.get(None).is_ok());
        if u64::try_from(rustix::fs::statfs(dir.path()).unwrap().f_type) != Ok(TMPFS_MAGIC) {
            assert!(start(&pool, &second, Some(dir.path())).await.is_err(), "never on a disk");
        }
    }
}
