//! A pool: created once, opened by every process.

use super::CatalogError;
use super::chain::{Cache, Chain, END_AGE_MIN, Newest, Versioned, parts_of};
use super::record::PoolRecord;
use crate::bucket::{Bucket, BucketError, Listed, PutNew};
use crate::chunk::OBJECT_BYTES_MAX;
use crate::crypto::{CryptoError, Keyring, Secret, WrappedKey};
use crate::types::{Class, Classify, DatasetId, PoolId, Timestamp};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde::de::{DeserializeOwned, IgnoredAny};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pool features that this program supports.
const FEATURES: &[&str] = &[];
/// Concurrent writers of the put-if-absent probe.
const RIVALS: usize = 4;
/// Records read at once for a listing.
const READS: usize = 32;

/// A pool, opened. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    bucket: Bucket,
    pool: PoolRecord,
    keyring: Keyring,
    cache: Cache,
}

fn pool_chain<'a>(bucket: &'a Bucket, cache: &'a Cache) -> Chain<'a> {
    Chain {
        bucket,
        cache,
        prefix: "pool".to_owned(),
        what: format!("the pool at {}", bucket.url()),
    }
}

impl Catalog {
    /// Checks that the store supports put-if-absent (R3) and writes the pool record. An existing
    /// pool is [`CatalogError::PoolExists`].
    pub async fn create(bucket: Bucket, secret: Option<&Secret>) -> Result<Self, CatalogError> {
        let cache = Cache::default();
        let newest = pool_chain(&bucket, &cache).newest::<PoolRecord>().await;
        match newest {
            Ok(Newest::Absent) => {}
            Ok(_) => return Err(CatalogError::PoolExists),
            Err(error) => return Err(error),
        }
        let id = PoolId::random();
        let (encryption, keyring) = match secret.cloned() {
            None => (None, Keyring::plain(id)),
            Some(secret) => {
                let (wrapped, keyring) = slowly(move || WrappedKey::create(id, &secret)).await?;
                (Some(wrapped), keyring)
            }
        };
        check_store(&bucket).await?;
        let pool = PoolRecord {
            id,
            created: Timestamp::now(),
            features: Vec::new(),
            encryption,
            default_dataset: None,
        };
        let pool = pool_chain(&bucket, &cache)
            .insert(pool, |_| Err(CatalogError::PoolExists))
            .await?
            .record;
        Ok(Self { inner: Arc::new(Inner { bucket, pool, keyring, cache }) })
    }

    /// Opens an existing pool; checks format, features and key before anything is read or written.
    pub async fn open(bucket: Bucket, secret: Option<&Secret>) -> Result<Self, CatalogError> {
        let cache = Cache::default();
        let newest = pool_chain(&bucket, &cache).newest::<PoolRecord>().await?;
        let Newest::Live(Versioned { record: pool, .. }) = newest else {
            return Err(CatalogError::NoPool { url: bucket.url().to_owned() });
        };
        let unknown: Vec<_> = pool
            .features
            .iter()
            .filter(|f| !FEATURES.contains(&f.as_str()))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            let why = format!(
                "it has features that this program does not know ({}): use a newer one",
                unknown.join(", ")
            );
            return Err(CatalogError::Precondition {
                what: format!("the pool at {}", bucket.url()),
                why,
            });
        }
        let keyring = match (pool.encryption.clone(), secret.cloned()) {
            (None, None) => Keyring::plain(pool.id),
            (None, Some(_)) => return Err(CryptoError::NotEncrypted.into()),
            (Some(_), None) => return Err(CryptoError::KeyMissing.into()),
            (Some(wrapped), Some(secret)) => {
                let id = pool.id;
                slowly(move || wrapped.open(id, &secret)).await?
            }
        };
        Ok(Self { inner: Arc::new(Inner { bucket, pool, keyring, cache }) })
    }

    /// Wraps the master key under another secret, which alone opens the pool from then on. Data is
    /// not rewritten.
    pub async fn change_secret(&self, secret: &Secret) -> Result<(), CatalogError> {
        let (id, keyring, secret) =
            (self.inner.pool.id, self.inner.keyring.clone(), secret.clone());
        let wrapped = slowly(move || WrappedKey::rewrap(id, &secret, &keyring)).await?;
        let opened = &self.inner.pool.encryption;
        let chain = pool_chain(&self.inner.bucket, &self.inner.cache);
        let changed = chain.update(|pool: &mut PoolRecord| {
            if pool.id != id {
                return Err(CatalogError::PoolGone { url: self.inner.bucket.url().to_owned() });
            }
            // The last one was this call, of which the answer was lost.
            if pool.encryption != *opened && pool.encryption.as_ref() != Some(&wrapped) {
                return Err(CatalogError::Precondition {
                    what: "pool".to_owned(),
                    why: "its passphrase or key has been changed meanwhile: use the new one"
                        .to_owned(),
                });
            }
            pool.encryption = Some(wrapped.clone());
            Ok(())
        });
        changed.await.map(drop)
    }

    /// The dataset of commands and mounts that name none; it may be deleted.
    pub async fn default_dataset(&self) -> Result<Option<DatasetId>, CatalogError> {
        let chain = pool_chain(&self.inner.bucket, &self.inner.cache);
        match chain.newest::<PoolRecord>().await? {
            Newest::Live(at) if at.record.id == self.inner.pool.id => Ok(at.record.default_dataset),
            _ => Err(CatalogError::PoolGone { url: self.inner.bucket.url().to_owned() }),
        }
    }

    pub async fn set_default_dataset(
        &self,
        dataset: Option<DatasetId>,
    ) -> Result<(), CatalogError> {
        let chain = pool_chain(&self.inner.bucket, &self.inner.cache);
        let set = |pool: &mut PoolRecord| {
            pool.default_dataset = dataset;
            Ok(())
        };
        chain.update(set).await.map(drop)
    }

    /// Checks that the pool itself still exists, and is this one, before the absence of a record is
    /// believed: otherwise an unmounted folder would make volumes look deleted.
    pub(super) async fn confirm(&self) -> Result<(), CatalogError> {
        self.confirm_in(&self.inner.bucket).await
    }

    async fn confirm_in(&self, bucket: &Bucket) -> Result<(), CatalogError> {
        // Not from the cache: the store must have it now.
        let cache = Cache::default();
        match pool_chain(bucket, &cache).newest::<PoolRecord>().await? {
            Newest::Live(at) if at.record.id == self.inner.pool.id => Ok(()),
            _ => Err(CatalogError::PoolGone { url: bucket.url().to_owned() }),
        }
    }

    /// Replaces the credentials of this pool, for all that was opened in it too, by those of
    /// another opening of its bucket, once these were seen to read the pool, and to write and
    /// delete in it.
    ///
    /// # Errors
    /// They cannot: the credentials so far stay in use.
    pub async fn take_credentials_of(&self, other: &Bucket) -> Result<(), CatalogError> {
        const KEY: &str = "probe/credentials";
        self.confirm_in(other).await?;
        // The same bytes from every process, so that neither of two at once fails.
        let put = other.put(KEY, Bytes::from_static(b"zerofs-csi checks new credentials")).await;
        let doing = || format!("writing to {} with new credentials", other.url());
        removing(other, KEY, put.map_err(|error| CatalogError::bucket(doing(), error))).await?;
        self.inner.bucket.take_credentials_of(other);
        Ok(())
    }

    /// Checks that a remote store accepts objects of the size of packs.
    pub async fn check_size(&self) -> Result<(), CatalogError> {
        if self.inner.bucket.is_remote() { check_size(&self.inner.bucket).await } else { Ok(()) }
    }

    pub fn pool(&self) -> &PoolRecord {
        &self.inner.pool
    }

    pub fn bucket(&self) -> &Bucket {
        &self.inner.bucket
    }

    pub fn keyring(&self) -> &Keyring {
        &self.inner.keyring
    }

    pub(super) fn chain(&self, prefix: String, what: String) -> Chain<'_> {
        Chain { bucket: &self.inner.bucket, cache: &self.inner.cache, prefix, what }
    }

    /// The newest version of every chain below a prefix that has not ended, in the order of keys:
    /// one listing, and a read for each version not read before.
    pub(super) async fn all<T: DeserializeOwned + Send>(
        &self,
        prefix: &str,
        kind: &str,
    ) -> Result<Vec<Versioned<T>>, CatalogError> {
        let doing = || format!("listing the {kind}s of the pool at {}", self.inner.bucket.url());
        let listed =
            self.inner.bucket.list(prefix).await.map_err(|e| CatalogError::bucket(doing(), e))?;
        let mut newest = BTreeMap::new();
        for object in listed {
            if let Some((chain, version)) = parts_of(&object.key) {
                // Keys come in order: a later one of a chain is a newer version.
                newest.insert(chain.to_owned(), (version, object));
            }
        }
        let reads = newest.into_iter().map(|(prefix, (version, object))| async move {
            let chain = self.chain(prefix, format!("a {kind} record"));
            match chain.read(version, &object).await? {
                Some(found) => Ok::<_, CatalogError>(found),
                None => chain.newest().await,
            }
        });
        let found: Vec<Newest<T>> =
            futures::stream::iter(reads).buffered(READS).try_collect().await?;
        Ok(found.into_iter().filter_map(Newest::live).collect())
    }

    /// Removes the ends of chains whose records were removed long ago. For the collector; the
    /// number of removed objects.
    pub async fn sweep(&self, now: std::time::SystemTime) -> Result<usize, CatalogError> {
        let mut swept = 0;
        for prefix in ["datasets", "snapshots", "names"] {
            let doing = || format!("listing {prefix} of the pool at {}", self.inner.bucket.url());
            let listed = self
                .inner
                .bucket
                .list(prefix)
                .await
                .map_err(|e| CatalogError::bucket(doing(), e))?;
            let mut chains = BTreeMap::<String, Vec<(u64, Listed)>>::new();
            for object in listed {
                if let Some((chain, version)) = parts_of(&object.key) {
                    let chain = chain.to_owned();
                    chains.entry(chain).or_default().push((version, object));
                }
            }
            for (chain, versions) in chains {
                // Only the old end of a chain is read again: the rest costs no request.
                let [(version, only)] = versions.as_slice() else { continue };
                let age = now.duration_since(only.modified).unwrap_or_default();
                let chain = self.chain(chain.clone(), format!("a record at {chain}"));
                if age >= END_AGE_MIN
                    && matches!(
                        chain.read::<IgnoredAny>(*version, only).await?,
                        Some(Newest::Ended { .. })
                    )
                {
                    swept += usize::from(chain.sweep(now).await?);
                }
            }
        }
        Ok(swept)
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Catalog({})", self.inner.bucket.url())
    }
}

/// Runs a key derivation, which takes a tenth of a second on purpose, off the threads that serve.
async fn slowly<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CryptoError> + Send + 'static,
) -> Result<T, CatalogError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(_) => {
            Err(CatalogError::Stopped { what: "the derivation of the pool's key".to_owned() })
        }
    }
}

/// Checks what the safety of records depends on: put-if-absent, and reading back what was written.
async fn check_store(bucket: &Bucket) -> Result<(), CatalogError> {
    let key = || format!("probe/{}", PoolId::random());
    let at = key();
    removing(bucket, &at, probe(bucket, &at).await).await?;
    if bucket.is_remote() {
        let at = key();
        removing(bucket, &at, probe_own(bucket, &at).await).await?;
        check_size(bucket).await?;
    }
    Ok(())
}

/// Removes the probe's objects whatever it found; a store that cannot delete fails here.
async fn removing(
    bucket: &Bucket,
    key: &str,
    probed: Result<(), CatalogError>,
) -> Result<(), CatalogError> {
    let removed = bucket.delete(&[key.to_owned()]).await;
    probed?;
    removed.map_err(|e| CatalogError::bucket(format!("deleting an object in {}", bucket.url()), e))
}

/// Checks that the store accepts objects of the size of packs: a proxy in front of it may have a
/// limit. The next check replaces and removes the object of an interrupted one.
async fn check_size(bucket: &Bucket) -> Result<(), CatalogError> {
    const PART: Bytes = Bytes::from_static(&[0; 64 << 10]);
    const KEY: &str = "probe/size";
    let doing = || {
        format!(
            "writing an object of {OBJECT_BYTES_MAX} bytes, as large as a volume's may be, to {}",
            bucket.url()
        )
    };
    let put = bucket.put_parts(KEY, vec![PART; OBJECT_BYTES_MAX.div_ceil(PART.len())]).await;
    removing(bucket, KEY, put.map_err(|error| CatalogError::bucket(doing(), error))).await
}

async fn probe_own(bucket: &Bucket, key: &str) -> Result<(), CatalogError> {
    match bucket.recognises_own(key).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(CatalogError::Unfit {
            url: bucket.url().to_owned(),
            why: "a put-if-absent that is repeated, as after a lost answer, cannot be told from \
                somebody else's: use a store that \
                  returns the bytes and metadata that were put"
                .to_owned(),
        }),
        Err(error) => Err(CatalogError::bucket(format!("writing to {}", bucket.url()), error)),
    }
}

async fn probe(bucket: &Bucket, key: &str) -> Result<(), CatalogError> {
    let unfit =
        |why: &str| CatalogError::Unfit { url: bucket.url().to_owned(), why: why.to_owned() };
    let writing = |error: BucketError| match error.class() {
        Class::Unsupported => unfit(
            "it does not support put-if-absent (`If-None-Match: *`), which keeps two writers apart",
        ),
        Class::Denied => CatalogError::bucket(
            format!("{} is read-only for these credentials: a pool must be written", bucket.url()),
            error,
        ),
        _ => CatalogError::bucket(format!("writing to {}", bucket.url()), error),
    };
    let bytes = |n: usize| Bytes::from(format!("zerofs-csi tries this store: {n}"));
    let rivals = (0..RIVALS).map(|n| bucket.put_new(key, bytes(n)));
    let won: Vec<PutNew> = futures::future::try_join_all(rivals).await.map_err(writing)?;
    let late = bucket.put_new(key, bytes(RIVALS)).await.map_err(writing)?;
    if late == PutNew::Created || won.iter().filter(|w| **w == PutNew::Created).count() != 1 {
        return Err(unfit(
            "it ignores the condition of a put-if-absent (`If-None-Match: *`), so that two writers \
             would overwrite each \
             other: use a store, or a version of it, that keeps it",
        ));
    }
    let winner = won.iter().position(|w| *w == PutNew::Created).unwrap_or_default();
    let read = bucket
        .get(key, 1 << 10)
        .await
        .map_err(|e| CatalogError::bucket(format!("reading from {}", bucket.url()), e))?;
    let listed = bucket
        .list("probe")
        .await
        .map_err(|e| CatalogError::bucket(format!("listing {}", bucket.url()), e))?;
    if read != Some(bytes(winner)) || !listed.iter().any(|l| l.key == key) {
        return Err(unfit("an object that was written is not what is read or listed afterwards"));
    }
    Ok(())
}
