//! The object store: one pool's bucket and prefix, with limits on every request.
//!
//! Nouns: a [`Bucket`] is a pool's place in a store, a **key** an object's name relative to the pool's prefix, an
//! **attempt** one request on the wire.
//!
//! Invariants:
//! - Every request ends: each attempt has a time limit, and all attempts of a request together have one ([`Limits`]).
//! - Only what may pass (time-outs, 5xx, throttling, broken connections) is tried again, with growing, jittered pauses.
//! - [`Bucket::put_new`] answers [`PutNew::Created`] for what this call wrote even when the acknowledgement was lost: the
//!   object's bytes are compared. What is written must therefore differ between writers (R1's nonce).
//! - A read answers all bytes asked for or an error. What the bytes mean is for the layers above to verify.
//!
//! A crash may leave a staged file `<name>#<n>` beside an object of a folder store (where [`folder`] stages any); listings do not show it, and the object
//! itself is whole or absent. A cancelled put may still take effect.
//!
//! It does not cache, and knows nothing of what is stored.

mod credentials;
mod error;
mod folder;
mod guarded;
mod limits;
mod pages;
mod rate;
mod url;

pub use credentials::{Credentials, Folder};
pub use error::BucketError;
pub use limits::{Limits, Requests};
pub use url::PoolUrl;

use crate::telemetry::Failpoints;
use bytes::Bytes;
use error::of_store;
use guarded::Guarded;
use limits::{Earlier, Puts};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

/// What became of a put-if-absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutNew {
    Created,
    Exists,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the pool's prefix.
    pub key: String,
    pub bytes: u64,
    /// By the store's clock.
    pub modified: SystemTime,
    /// Changes when the object does; not every store has one.
    pub tag: Option<String>,
}

/// A pool's place in an object store. Cheap to clone. Keys are relative to the pool's prefix.
#[derive(Clone)]
pub struct Bucket {
    url: Arc<str>,
    prefix: Path,
    store: Arc<Guarded>,
    failpoints: Failpoints,
}

impl Bucket {
    /// The bucket at a URL. Nothing is asked of a remote store yet.
    ///
    /// # Errors
    /// [`BucketError::Options`] for credentials that the store cannot use, [`BucketError::Missing`] for an absent folder.
    pub fn open(url: &PoolUrl, credentials: &Credentials, folder: Folder, limits: Limits) -> Result<Self, BucketError> {
        let failpoints = Failpoints::default();
        let store = credentials::open(url, credentials, folder, &failpoints)?;
        // A put waits for the disk, however long it takes: given up, it would take effect all the same (R35).
        let puts = if url.folder().is_some() { Puts::Unlimited } else { Puts::Limited };
        let store = Arc::new(Guarded::new(store, limits, puts));
        Ok(Self { url: url.as_str().into(), prefix: url.prefix().clone(), store, failpoints })
    }

    /// A new, empty bucket in this process's memory.
    pub fn memory() -> Self {
        Self::on(Arc::new(object_store::memory::InMemory::new()), Path::default())
    }

    /// A bucket on any store; `prefix` is the pool's.
    pub fn on(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        let url = format!("{store}").into();
        let store = Arc::new(Guarded::new(store, Limits::default(), Puts::Limited));
        Self { url, prefix, store, failpoints: Failpoints::default() }
    }

    /// The same bucket with other limits; counts start anew.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.store = Arc::new(self.store.with_limits(limits));
        self
    }

    /// The pool's URL, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The store without the prefix, with retries, time limits and counting: for SlateDB, whose clones hold literal paths.
    /// Of a conditional put it makes one attempt: SlateDB marks its own, and recognises them by the mark.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    /// The literal path of a key in [`Self::store`].
    pub fn path(&self, key: &str) -> Path {
        Path::from_iter(self.prefix.parts().chain(Path::from(key).parts()))
    }

    pub fn failpoints(&self) -> &Failpoints {
        &self.failpoints
    }

    fn error(&self, key: &str, error: &object_store::Error) -> BucketError {
        of_store(&self.url, key, error)
    }

    /// The whole object, at most `max` bytes; `None` when it is absent.
    pub async fn get(&self, key: &str, max: u64) -> Result<Option<Bytes>, BucketError> {
        let options = GetOptions::default();
        let found = match self.store.get_opts(&self.path(key), options).await {
            Ok(found) => found,
            Err(error) if error::meaning(&error) == error::Meaning::Absent => return Ok(None),
            Err(error) => return Err(self.error(key, &error)),
        };
        if found.meta.size > max {
            return Err(BucketError::TooLarge { key: key.to_owned(), bytes: found.meta.size, max });
        }
        found.bytes().await.map(Some).map_err(|e| self.error(key, &e))
    }

    /// Exactly these bytes of an object; [`BucketError::Short`] when it does not have them.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.store.range(&self.path(key), &range).await.map_err(|error| match error::source::<error::TooShort>(&error) {
            Some(short) => BucketError::Short { key: key.to_owned(), bytes: short.bytes, wanted: range.end },
            None => self.error(key, &error),
        })
    }

    /// The last `bytes` of an object (all of a smaller one) and the object's size.
    pub async fn get_tail(&self, key: &str, bytes: u64) -> Result<(Bytes, u64), BucketError> {
        let path = self.path(key);
        let options = GetOptions { range: Some(GetRange::Suffix(bytes)), ..GetOptions::default() };
        let found = match self.store.get_opts(&path, options).await {
            Ok(found) => found,
            // An empty object has no range at all (RFC 9110 §14.1.2): 416 from most stores.
            Err(error) if error::meaning(&error) != error::Meaning::Absent => match self.store.head(&path).await {
                Ok(meta) if meta.size == 0 => return Ok((Bytes::new(), 0)),
                _ => return Err(self.error(key, &error)),
            },
            Err(error) => return Err(self.error(key, &error)),
        };
        let size = found.meta.size;
        let tail = found.bytes().await.map_err(|e| self.error(key, &e))?;
        Ok((tail, size))
    }

    /// Creates the object unless it exists. What is written must differ from what any other writer would write there: by
    /// its bytes a write is recognised whose acknowledgement was lost (R1).
    pub async fn put_new(&self, key: &str, bytes: Bytes) -> Result<PutNew, BucketError> {
        let path = self.path(key);
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_attempts(&path, bytes.clone().into(), options).await {
            (Ok(_), _) => Ok(PutNew::Created),
            (Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }), Earlier::None) => {
                Ok(PutNew::Exists)
            }
            (Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }), Earlier::Unknown) => {
                let ours = self.get(key, bytes.len() as u64).await;
                match ours {
                    Ok(Some(found)) if found == bytes => Ok(PutNew::Created),
                    Ok(_) | Err(BucketError::TooLarge { .. }) => Ok(PutNew::Exists),
                    Err(error) => Err(error),
                }
            }
            (Err(error), _) => Err(self.error(key, &error)),
        }
    }

    /// For objects whose name is written once by one writer: a repeat writes the same bytes.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), BucketError> {
        let put = self.store.put_attempts(&self.path(key), bytes.into(), PutOptions::default()).await.0;
        put.map(drop).map_err(|e| self.error(key, &e))
    }

    /// As [`Self::put`], of a body in parts, which are not copied into one.
    pub async fn put_parts(&self, key: &str, parts: Vec<Bytes>) -> Result<(), BucketError> {
        let put = self.store.put_attempts(&self.path(key), parts.into_iter().collect(), PutOptions::default()).await.0;
        put.map(drop).map_err(|e| self.error(key, &e))
    }

    /// Absent ones count as deleted.
    pub async fn delete(&self, keys: &[String]) -> Result<(), BucketError> {
        let paths: Vec<Path> = keys.iter().map(|key| self.path(key)).collect();
        let about = keys.first().map_or("", String::as_str);
        self.store.delete_all(&paths).await.map_err(|e| self.error(about, &e))
    }

    /// Every object below a prefix (whole segments: `a/b` is not above `a/bc`), in the order of keys: for prefixes that hold thousands at most.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        let found = self.store.pages(Some(&self.path(prefix)), None).collect().await;
        let found = found.map_err(|error| self.listing_error(prefix, &error))?;
        Ok(found.into_iter().filter_map(|meta| self.listed(meta)).collect())
    }

    /// The same, some at a time and in no order, for prefixes that may hold millions.
    pub fn pages(&self, prefix: &str) -> Pages {
        Pages { pages: self.store.pages(Some(&self.path(prefix)), None), prefix: prefix.to_owned(), bucket: self.clone() }
    }

    fn listing_error(&self, prefix: &str, error: &object_store::Error) -> BucketError {
        match error::meaning(error) {
            // A prefix without objects is an empty listing: only the bucket itself can be absent.
            error::Meaning::Absent => BucketError::Missing { url: self.url.to_string(), why: error::text(error) },
            _ => self.error(prefix, error),
        }
    }

    fn listed(&self, meta: object_store::ObjectMeta) -> Option<Listed> {
        let key = Path::from_iter(meta.location.prefix_match(&self.prefix)?).to_string();
        Some(Listed { key, bytes: meta.size, modified: meta.last_modified.into(), tag: meta.e_tag })
    }

    /// Requests made so far, SlateDB's included.
    pub fn requests(&self) -> Requests {
        self.store.requests()
    }
}

/// See [`Bucket::pages`].
pub struct Pages {
    pages: pages::Pages,
    prefix: String,
    bucket: Bucket,
}

impl Pages {
    /// The next objects; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<Listed>>, BucketError> {
        let page = self.pages.next().await.map_err(|error| self.bucket.listing_error(&self.prefix, &error))?;
        Ok(page.map(|page| page.into_iter().filter_map(|meta| self.bucket.listed(meta)).collect()))
    }
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.url)
    }
}
