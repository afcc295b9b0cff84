//! The object store: one pool's bucket and prefix, with limits on every request.
//!
//! Nouns: a [`Bucket`] is a pool's place in a store, a **key** an object's name relative to the
//! pool's prefix, an **attempt** one request on the wire.
//!
//! Invariants:
//! - Every request ends: each attempt has a time limit, and all attempts of a request together have
//!   one ([`Limits`]).
//! - Only temporary errors (time-outs, 5xx, throttling, broken connections; [`error`] decides) are
//!   retried, with exponential, jittered backoff.
//! - A put-if-absent whose outcome is in doubt (no answer, 409) is settled by reading the object
//!   back, for SlateDB too (R35): [`Bucket::put_new`] returns [`PutNew::Created`] for an object
//!   that this call wrote. The bytes must therefore differ between writers (R1's nonce).
//! - Keys are relative to the pool's prefix, which is prepended unchanged: no other layer sees it.
//! - A read returns all bytes asked for or an error. The layers above verify the bytes.
//!
//! A crash may leave a staged file `<name>#<n>` beside an object of a folder store (where
//! [`folder`] stages any); listings do not show it, and the object itself is whole or absent. A
//! cancelled put may still take effect.
//!
//! This module does not cache, and knows nothing of the objects' meaning.

mod credentials;
mod error;
mod folder;
mod guarded;
mod http;
pub mod in_place;
mod limits;
mod pages;
mod rate;
mod refusal;
mod replaceable;
mod url;

pub use credentials::{Credentials, Folder};
pub use error::BucketError;
pub use limits::{Limits, Requests};
pub use url::PoolUrl;

use crate::telemetry::Failpoints;
use bytes::Bytes;
use error::of_store;
use guarded::Guarded;
use limits::Puts;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
};
use replaceable::Replaceable;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

/// The outcome of a put-if-absent.
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
    /// Reached over HTTP, perhaps through proxies and gateways.
    remote: bool,
    /// The folder of a pool that is in one.
    folder: Option<Arc<std::path::Path>>,
    store: Arc<Guarded>,
    /// Below all limits: the client of the store, with its credentials.
    client: Arc<Replaceable>,
    failpoints: Failpoints,
}

impl Bucket {
    /// Opens the bucket at a URL. Makes no request to a remote store yet.
    ///
    /// # Errors
    /// [`BucketError::Options`] for credentials that the store cannot use, [`BucketError::Missing`]
    /// for an absent folder.
    pub fn open(
        url: &PoolUrl,
        credentials: &Credentials,
        folder: Folder,
        limits: Limits,
    ) -> Result<Self, BucketError> {
        let failpoints = Failpoints::default();
        let store = credentials::open(url, credentials, folder, &failpoints)?;
        // A put waits for the disk, however long it takes: an abandoned put would take effect all
        // the same (R35).
        let puts = if url.folder().is_some() { Puts::Unlimited } else { Puts::Limited };
        let client = Arc::new(Replaceable::new(below(store, url.prefix().clone())));
        let store = Arc::new(Guarded::new(client.clone(), limits, puts));
        Ok(Self {
            url: url.as_str().into(),
            remote: url.is_remote(),
            folder: url.folder().map(Arc::from),
            store,
            client,
            failpoints,
        })
    }

    /// A new, empty bucket in this process's memory.
    pub fn memory() -> Self {
        Self::on(Arc::new(object_store::memory::InMemory::new()), Path::default())
    }

    /// A bucket on any store; `prefix` is the pool's.
    pub fn on(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        let url = format!("{store}").into();
        let client = Arc::new(Replaceable::new(below(store, prefix)));
        let store = Arc::new(Guarded::new(client.clone(), Limits::default(), Puts::Limited));
        Self { url, remote: false, folder: None, store, client, failpoints: Failpoints::default() }
    }

    /// Uses the credentials of another opening of the same place from now on, in every clone of
    /// this bucket and in all that was opened on it. Whether they are any good is the caller's to
    /// find out first.
    pub fn take_credentials_of(&self, other: &Self) {
        self.client.replace(other.client.now());
    }

    /// The same bucket with other limits and counters at zero.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.store = Arc::new(self.store.with_limits(limits));
        self
    }

    /// The pool's URL, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Tells whether the store is reached over HTTP, where a proxy on the path may answer instead.
    pub fn is_remote(&self) -> bool {
        self.remote
    }

    /// Tells whether the objects are files of this machine, which the kernel caches.
    pub fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    /// Exactly these bytes of an object that is a file, each range in a buffer of its own, if the
    /// kernel has all of them in memory.
    pub fn read_in_place(&self, key: &str, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let found = folder::read_in_place(self.folder.as_deref()?, key, ranges)?;
        self.store.count_read();
        Some(found)
    }

    /// Lets the kernel read part of an object that is a file. Bounded by the kernel.
    pub fn will_read(&self, key: &str, range: Range<u64>) {
        if let Some(folder) = &self.folder {
            folder::will_read(folder, key, range);
        }
    }

    /// Returns the reason why the store refuses puts, until one succeeds: an error that another
    /// attempt would meet again.
    pub fn refusal(&self) -> Option<String> {
        self.store.refusal()
    }

    /// Puts an absent object as SlateDB does, then again, as after a lost answer, and then another
    /// one in its place. Returns whether the first is recognised and the other is not (R35).
    pub async fn recognises_own(&self, key: &str) -> Result<bool, BucketError> {
        let first = self.put_marked(key, "one", b"one").await?
            && self.put_marked(key, "one", b"one").await?;
        Ok(first && !self.put_marked(key, "other", b"another").await?)
    }

    async fn put_marked(
        &self,
        key: &str,
        mark: &'static str,
        bytes: &'static [u8],
    ) -> Result<bool, BucketError> {
        let attributes =
            Attributes::from_iter([(Attribute::Metadata("slatedbputid".into()), mark)]);
        let options = PutOptions { attributes, ..PutOptions::from(PutMode::Create) };
        match self.store.put_opts(&self.path(key), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(error) if error::meaning(&error) == error::Meaning::Conflict => Ok(false),
            Err(error) => Err(self.error(key, &error)),
        }
    }

    /// The pool as a store, with retries, time limits and counting: for SlateDB, whose clones hold
    /// the paths of others. These are relative to the pool's prefix, which SlateDB must not see: it
    /// would encode special characters in it, once or twice.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    /// The path of a key in [`Self::store`].
    pub fn path(&self, key: &str) -> Path {
        Path::from(key)
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
        self.store.range(&self.path(key), &range).await.map_err(|error| {
            match error::source::<error::TooShort>(&error) {
                Some(short) => BucketError::Short {
                    key: key.to_owned(),
                    bytes: short.bytes,
                    wanted: range.end,
                },
                None => self.error(key, &error),
            }
        })
    }

    /// These bytes of an object, or as many of them as it has.
    pub async fn get_up_to(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let found = self.store.get_opts(&self.path(key), options).await;
        let found = found.map_err(|error| self.error(key, &error))?;
        found.bytes().await.map_err(|error| self.error(key, &error))
    }

    /// The last `bytes` of an object (all of a smaller one) and the object's size. Two requests:
    /// Azure has no suffix ranges, and some gateways answer them with the whole object.
    pub async fn get_tail(&self, key: &str, bytes: u64) -> Result<(Bytes, u64), BucketError> {
        let size = self.store.head(&self.path(key)).await.map_err(|e| self.error(key, &e))?.size;
        let tail = self.get_range(key, size.saturating_sub(bytes)..size).await?;
        Ok((tail, size))
    }

    /// Creates the object unless it exists. The bytes must not be empty, and must differ from those
    /// of any other writer: they identify a write whose acknowledgement was lost (R1, R35).
    pub async fn put_new(&self, key: &str, bytes: Bytes) -> Result<PutNew, BucketError> {
        self.store.put_new(&self.path(key), bytes.into()).await.map_err(|e| self.error(key, &e))
    }

    /// For objects whose name is written once by one writer: a retry writes the same bytes.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), BucketError> {
        let put =
            self.store.put_attempts(&self.path(key), bytes.into(), PutOptions::default()).await.0;
        put.map(drop).map_err(|e| self.error(key, &e))
    }

    /// As [`Self::put`], with a body in parts, which are not copied into one.
    pub async fn put_parts(&self, key: &str, parts: Vec<Bytes>) -> Result<(), BucketError> {
        let put = self
            .store
            .put_attempts(&self.path(key), parts.into_iter().collect(), PutOptions::default())
            .await
            .0;
        put.map(drop).map_err(|e| self.error(key, &e))
    }

    /// Absent ones count as deleted.
    pub async fn delete(&self, keys: &[String]) -> Result<(), BucketError> {
        let paths: Vec<Path> = keys.iter().map(|key| self.path(key)).collect();
        let about = keys.first().map_or("", String::as_str);
        self.store.delete_all(&paths).await.map_err(|e| self.error(about, &e))
    }

    /// Every object below a prefix (whole segments: `a/b` is not above `a/bc`), in the order of
    /// keys: for prefixes that hold thousands at most.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>, BucketError> {
        let found = self.store.pages(Some(&self.path(prefix)), None).collect().await;
        let found = found.map_err(|error| self.listing_error(prefix, &error))?;
        Ok(found.into_iter().map(listed).collect())
    }

    /// The same, some at a time and in no order, for prefixes that may hold millions.
    pub fn pages(&self, prefix: &str) -> Pages {
        Pages {
            pages: self.store.pages(Some(&self.path(prefix)), None),
            prefix: prefix.to_owned(),
            bucket: self.clone(),
        }
    }

    fn listing_error(&self, prefix: &str, error: &object_store::Error) -> BucketError {
        match error::meaning(error) {
            // A prefix without objects is an empty listing: only the bucket itself can be absent.
            error::Meaning::Absent => {
                BucketError::Missing { url: self.url.to_string(), why: error::text(error) }
            }
            _ => self.error(prefix, error),
        }
    }

    /// Requests made so far, SlateDB's included.
    pub fn requests(&self) -> Requests {
        self.store.requests()
    }
}

/// See [`Bucket::pages`].
pub struct Pages {
    pages: pages::Listing,
    prefix: String,
    bucket: Bucket,
}

impl Pages {
    /// The next objects; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<Listed>>, BucketError> {
        let page = self
            .pages
            .next()
            .await
            .map_err(|error| self.bucket.listing_error(&self.prefix, &error))?;
        Ok(page.map(|page| page.into_iter().map(listed).collect()))
    }
}

/// The objects of a store below a prefix, with their full names.
fn below(store: Arc<dyn ObjectStore>, prefix: Path) -> Arc<dyn ObjectStore> {
    if prefix.is_root() { store } else { Arc::new(PrefixStore::new(store, prefix)) }
}

fn listed(meta: object_store::ObjectMeta) -> Listed {
    Listed {
        key: meta.location.to_string(),
        bytes: meta.size,
        modified: meta.last_modified.into(),
        tag: meta.e_tag,
    }
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.url)
    }
}
