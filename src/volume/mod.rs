//! One open file system and its life: who owns a dataset, opening, closing.

use crate::catalog::{Catalog, CatalogError, Dataset};
use crate::fs::{Fs, FsError};
use crate::types::{Class, Classify, DatasetId};
use std::sync::Arc;

#[derive(Debug, Clone, thiserror::Error)]
pub enum VolumeError {
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error("dataset {dataset} is open on node {node}: unmount it there first, or wait for its lease to end")]
    Owned { dataset: String, node: String },
    #[error("dataset {dataset} is being deleted")]
    Deleting { dataset: String },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("dataset {dataset}")]
    Fs {
        dataset: String,
        #[source]
        source: FsError,
    },
    #[error("{0}")]
    Io(String),
}

impl Classify for VolumeError {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
            Self::Owned { .. } | Self::Deleting { .. } => Class::Precondition,
            Self::Catalog(error) => error.class(),
            Self::Fs { source, .. } => source.class(),
            Self::Io(_) => Class::Internal,
        }
    }
}

/// A dataset opened by its owner, this process.
pub struct Volume {
    pub dataset: Dataset,
    pub fs: Fs,
    /// What file handles are authenticated with (R7).
    pub handle_key: [u8; 16],
}

/// The volumes that this process has open, over all its pools.
pub struct Volumes {}

impl Volumes {
    /// Opens a volume, or answers the open one. Concurrent calls share one opening.
    pub async fn open(&self, _pool: &Catalog, _dataset: DatasetId) -> Result<Arc<Volume>, VolumeError> {
        todo!()
    }

    /// The volume if it is open.
    pub fn get(&self, _dataset: DatasetId) -> Option<Arc<Volume>> {
        todo!()
    }

    /// Flushes, closes and releases the ownership. Not open counts as closed.
    pub async fn close(&self, _dataset: DatasetId) -> Result<(), VolumeError> {
        todo!()
    }

    pub async fn close_all(&self) -> Result<(), VolumeError> {
        todo!()
    }
}
