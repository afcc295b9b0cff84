//! Errors of the use cases.

use crate::bucket::BucketError;
use crate::catalog::CatalogError;
use crate::chunk::ChunkError;
use crate::fs::{FsError, RestoreError};
use crate::mount::MountError;
use crate::types::{Class, Classify, Timestamp};
use crate::volume::VolumeError;

#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    OutOfRange(String),
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error("{what} exists and differs: {why}")]
    Exists { what: String, why: String },
    #[error("{0}")]
    Precondition(String),
    #[error("another operation on {what} is in progress; retry")]
    InProgress { what: String },
    /// The previous object of the name is deleted, but not yet removed.
    #[error("the name of {what} is not free yet: an earlier one is deleted, but {why}")]
    NameInUse { what: String, why: &'static str },
    #[error("{0}")]
    Exhausted(String),
    #[error("{0}")]
    Unavailable(String),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Endpoint(#[from] super::node::EndpointError),
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// An answer with a text of its own: that of another process, or of a search by name.
    #[error("{why}")]
    Refused { class: Class, why: String },
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("{0}")]
    Internal(String),
}

impl ControlError {
    /// The name was given before, to an object of that age.
    pub(in crate::control) fn already_exists(name: &str, since: Timestamp) -> Self {
        let since = since.rfc3339();
        let why =
            format!("{name} already exists (created {since}): delete it, or choose another name");
        Self::Refused { class: Class::Exists, why }
    }
}

impl Classify for ControlError {
    fn class(&self) -> Class {
        match self {
            Self::Invalid(_) => Class::Invalid,
            Self::OutOfRange(_) => Class::OutOfRange,
            Self::NotFound { .. } => Class::NotFound,
            Self::Exists { .. } => Class::Exists,
            Self::Precondition(_) => Class::Precondition,
            Self::InProgress { .. } | Self::NameInUse { .. } => Class::InProgress,
            Self::Exhausted(_) => Class::Exhausted,
            Self::Unavailable(_) => Class::Unavailable,
            Self::Catalog(error) => error.class(),
            Self::Volume(error) => error.class(),
            Self::Mount(error) => error.class(),
            Self::Endpoint(error) => error.class(),
            Self::Fs(error) => error.class(),
            Self::Restore(error) => error.class(),
            Self::Refused { class, .. } => *class,
            Self::Chunk(error) => error.class(),
            Self::Bucket(error) => error.class(),
            Self::Internal(_) => Class::Internal,
        }
    }
}
