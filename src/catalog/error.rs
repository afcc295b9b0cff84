//! Errors of a pool's records.

use crate::bucket::BucketError;
use crate::crypto::CryptoError;
use crate::types::{Class, Classify};

#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    #[error("{what}: {source}")]
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
        "no pool exists there: correct the URL, or mount the folder; `zerofs-csi pool create \
         --pool \
         {url}` creates one"
    )]
    NoPool { url: String },
    #[error("a pool exists there already: use it, or choose another bucket or prefix")]
    PoolExists,
    /// The whole pool is missing: the folder is not mounted, or the bucket was emptied or replaced.
    /// Says nothing about the existence of a record.
    #[error(
        "the pool at {url} is missing: mount or restore it; until then its datasets and snapshots \
         are unknown"
    )]
    PoolGone { url: String },
    #[error("{what} exists and differs: {why}")]
    Exists { what: String, why: String },
    #[error("{what} is still in progress; retry")]
    InProgress { what: String },
    #[error("{what}: {why}")]
    Precondition { what: String, why: String },
    #[error("{key} is corrupt: {why}")]
    Corrupt { key: String, why: String },
    #[error(
        "{key} has format version {version}, this program supports up to {known}: use a newer one"
    )]
    Version { key: String, version: u32, known: u32 },
    #[error("the store at {url} cannot hold a pool: {why}")]
    Unfit { url: String, why: String },
    #[error("{what} was changed by others {tries} times during the update; retry")]
    Contended { what: String, tries: u32 },
    #[error("{what}: timed out or interrupted; retry")]
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
