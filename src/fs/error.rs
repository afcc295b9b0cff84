//! Errors of operations on a file system.

use crate::chunk::ChunkError;
use crate::types::{Class, Classify};

/// Errors with POSIX meaning. Where two apply, operations return the one that POSIX lists for that
/// call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    #[error("no such file or directory")]
    NotFound,
    #[error("file exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("name longer than 255 bytes")]
    NameTooLong,
    #[error("permission denied")]
    Access,
    #[error("operation not permitted")]
    NotOwner,
    #[error("stale file handle")]
    Stale,
    #[error("no space left in the dataset: expand the volume or delete files")]
    NoSpace,
    #[error("no inodes left in the dataset: raise its inode quota or delete files")]
    NoInodes,
    #[error("read-only file system")]
    ReadOnly,
    #[error("file too large")]
    TooBig,
    #[error("too many links")]
    TooManyLinks,
    #[error("cross-device link")]
    CrossDevice,
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error("the object changed since the caller last saw it")]
    NotSync,
    #[error("directory cookie from another directory or another time")]
    BadCookie,
    #[error("operation not supported")]
    NotSupported,
    /// A limit of this program, not caused by the caller; a later retry may succeed.
    #[error("busy: {0}")]
    Busy(&'static str),
    /// The object store does not answer. Never shown for data already accepted (R17).
    #[error("the object store does not answer: {0}")]
    Unavailable(String),
    /// Another owner has the dataset. Nothing may be acknowledged.
    #[error("another owner has taken over the dataset")]
    Fenced,
    /// Stored bytes fail verification. The text names the object.
    #[error("corrupt data: {0}")]
    Corrupt(String),
    #[error("internal error: {0}")]
    Internal(String),
}

impl Classify for FsError {
    fn class(&self) -> Class {
        match self {
            Self::NotFound => Class::NotFound,
            Self::Exists => Class::Exists,
            Self::NotDirectory
            | Self::IsDirectory
            | Self::NameTooLong
            | Self::Invalid(_)
            | Self::BadCookie
            | Self::CrossDevice => Class::Invalid,
            Self::NotEmpty | Self::ReadOnly | Self::NotSync => Class::Precondition,
            Self::Access | Self::NotOwner => Class::Denied,
            Self::Stale => Class::NotFound,
            Self::NoSpace | Self::NoInodes | Self::TooManyLinks => Class::Exhausted,
            Self::TooBig => Class::OutOfRange,
            Self::NotSupported => Class::Unsupported,
            Self::Busy(_) => Class::InProgress,
            Self::Unavailable(_) => Class::Unavailable,
            Self::Fenced => Class::Fenced,
            Self::Corrupt(_) => Class::Corrupt,
            Self::Internal(_) => Class::Internal,
        }
    }
}

impl From<ChunkError> for FsError {
    /// Errors of reading or storing a chunk may be temporary: only wrong bytes stay wrong.
    fn from(error: ChunkError) -> Self {
        match error.class() {
            Class::Corrupt => Self::Corrupt(error.to_string()),
            Class::Internal => Self::Internal(error.to_string()),
            Class::Invalid
            | Class::NotFound
            | Class::Exists
            | Class::InProgress
            | Class::Precondition
            | Class::OutOfRange
            | Class::Exhausted
            | Class::Denied
            | Class::Unavailable
            | Class::Fenced
            | Class::Unsupported => Self::Unavailable(error.to_string()),
        }
    }
}
