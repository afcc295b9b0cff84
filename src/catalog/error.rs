//! Errors of operations on a pool's records.

use crate::bucket::BucketError;
use crate::crypto::CryptoError;
use crate::types::{Class, Classify};

#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    #[error("{what}")]
    Bucket {
        what: String,
        #[source]
        source: BucketError,
    },
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error(
        "no pool is there: correct the URL, or mount the folder; `zerofs-csi pool create --pool \
         {url}` makes a new one"
    )]
    NoPool { url: String },
    #[error("a pool is there already: use it as it is, or choose another place")]
    PoolExists,
    /// Everything is gone at once: a folder that is not mounted, a bucket that was emptied or is
    /// another one. Not an answer about a record.
    #[error(
        "the pool at {url} is not there any more: mount or restore it; until then nothing is known \
         of what was in it"
    )]
    PoolGone { url: String },
    #[error("{what} exists and differs: {why}")]
    Exists { what: String, why: String },
    #[error("{what} is not done yet: repeat")]
    InProgress { what: String },
    #[error("{what}: {why}")]
    Precondition { what: String, why: String },
    #[error("{key} is corrupt: {why}")]
    Corrupt { key: String, why: String },
    #[error(
        "{key} has format version {version}, this program knows up to {known}: use a newer one"
    )]
    Version { key: String, version: u32, known: u32 },
    #[error("the store at {url} cannot hold a pool: {why}")]
    Unfit { url: String, why: String },
    #[error("{what} changed {tries} times while it was being changed; repeat")]
    Contended { what: String, tries: u32 },
    #[error("{what}: the work was stopped before its end; repeat")]
    Stopped { what: String },
}

impl Classify for CatalogError {
    fn class(&self) -> Class {
        match self {
            Self::Bucket { source, .. } => source.class(),
            Self::Crypto(error) => error.class(),
            Self::NotFound { .. } | Self::NoPool { .. } => Class::NotFound,
            Self::PoolGone { .. } => Class::Unavailable,
            Self::Exists { .. } | Self::PoolExists => Class::Exists,
            Self::Precondition { .. } => Class::Precondition,
            Self::Corrupt { .. } => Class::Corrupt,
            Self::Version { .. } => Class::Precondition,
            Self::Unfit { .. } => Class::Unsupported,
            Self::InProgress { .. } | Self::Contended { .. } => Class::InProgress,
            Self::Stopped { .. } => Class::Unavailable,
        }
    }
}

impl CatalogError {
    pub(super) fn bucket(what: impl Into<String>, source: impl Into<BucketError>) -> Self {
        Self::Bucket { what: what.into(), source: source.into() }
    }
}
