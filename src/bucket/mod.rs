//! The object store: one pool's bucket and prefix, with limits on every request.

use crate::telemetry::Failpoints;
use crate::types::{Class, Classify};
use bytes::Bytes;
use object_store::{ObjectStore, path::Path};
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug, Clone, thiserror::Error)]
pub enum BucketError {
    #[error("{url}: {why}")]
    Url { url: String, why: String },
    #[error("{key}: not found")]
    NotFound { key: String },
    #[error("{key}: access denied: {why}")]
    Denied { key: String, why: String },
    /// After all retries.
    #[error("{key}: the object store does not answer: {why}")]
    Unavailable { key: String, why: String },
    #[error("{key}: {why}")]
    Unsupported { key: String, why: String },
    #[error("{key}: object of {bytes} bytes is larger than the {max} allowed")]
    TooLarge { key: String, bytes: u64, max: u64 },
    #[error("{0}")]
    Injected(#[from] crate::telemetry::Injected),
}

impl Classify for BucketError {
    fn class(&self) -> Class {
        match self {
            Self::Url { .. } => Class::Invalid,
            Self::NotFound { .. } => Class::NotFound,
            Self::Denied { .. } => Class::Denied,
            Self::Unavailable { .. } | Self::Injected(_) => Class::Unavailable,
            Self::Unsupported { .. } => Class::Unsupported,
            Self::TooLarge { .. } => Class::Corrupt,
        }
    }
}

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
}

/// A pool's place in an object store. Cheap to clone. Keys are relative to the pool's prefix.
#[derive(Clone)]
pub struct Bucket {}

impl Bucket {
    /// A new, empty bucket in this process's memory.
    pub fn memory() -> Self {
        todo!()
    }

    /// A bucket on any store; `prefix` is the pool's.
    pub fn on(_store: Arc<dyn ObjectStore>, _prefix: Path) -> Self {
        todo!()
    }

    /// The store without the prefix, with retries, time limits and counting: for SlateDB, whose clones hold literal paths.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        todo!()
    }

    /// The literal path of a key in [`Self::store`].
    pub fn path(&self, _key: &str) -> Path {
        todo!()
    }

    pub fn failpoints(&self) -> &Failpoints {
        todo!()
    }

    /// The whole object, at most `max` bytes; `None` when it is absent.
    pub async fn get(&self, _key: &str, _max: u64) -> Result<Option<Bytes>, BucketError> {
        todo!()
    }

    pub async fn get_range(&self, _key: &str, _range: Range<u64>) -> Result<Bytes, BucketError> {
        todo!()
    }

    /// The last `bytes` of an object (all of a smaller one) and the object's size.
    pub async fn get_tail(&self, _key: &str, _bytes: u64) -> Result<(Bytes, u64), BucketError> {
        todo!()
    }

    pub async fn put_new(&self, _key: &str, _bytes: Bytes) -> Result<PutNew, BucketError> {
        todo!()
    }

    /// For objects whose name is written once by one writer: a repeat writes the same bytes.
    pub async fn put(&self, _key: &str, _bytes: Bytes) -> Result<(), BucketError> {
        todo!()
    }

    /// Absent ones count as deleted.
    pub async fn delete(&self, _keys: &[String]) -> Result<(), BucketError> {
        todo!()
    }

    /// Every object below a prefix, in the order of keys.
    pub async fn list(&self, _prefix: &str) -> Result<Vec<Listed>, BucketError> {
        todo!()
    }

    /// Requests made so far, SlateDB's included.
    pub fn requests(&self) -> Requests {
        todo!()
    }
}

/// Counts of requests to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub get: u64,
    pub put: u64,
    pub list: u64,
    pub delete: u64,
    pub head: u64,
}
