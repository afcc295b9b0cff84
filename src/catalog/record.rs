//! The records.

use crate::bucket::{Bucket, BucketError};
use crate::chunk::Codec;
use crate::crypto::{CryptoError, Keyring};
use crate::types::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    #[error("{what} exists and differs: {why}")]
    Exists { what: String, why: String },
    #[error("{what}: {why}")]
    Precondition { what: String, why: String },
    #[error("{key} is corrupt: {why}")]
    Corrupt { key: String, why: String },
    #[error("{key} has format version {version}, this program knows up to {known}: use a newer one")]
    Version { key: String, version: u32, known: u32 },
    #[error("the store at {url} cannot hold a pool: {why}")]
    Unfit { url: String, why: String },
    #[error("{what} changed {tries} times while it was being changed; repeat")]
    Contended { what: String, tries: u32 },
}

impl Classify for CatalogError {
    fn class(&self) -> Class {
        match self {
            Self::Bucket { source, .. } => source.class(),
            Self::Crypto(error) => error.class(),
            Self::NotFound { .. } => Class::NotFound,
            Self::Exists { .. } => Class::Exists,
            Self::Precondition { .. } => Class::Precondition,
            Self::Corrupt { .. } => Class::Corrupt,
            Self::Version { .. } => Class::Precondition,
            Self::Unfit { .. } => Class::Unsupported,
            Self::Contended { .. } => Class::InProgress,
        }
    }
}

/// The pool's own record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    pub id: PoolId,
    pub created: Timestamp,
    /// Features that a program must know to open the pool.
    pub features: Vec<String>,
    /// The wrapped master key and the KDF's parameters; absent: the pool is not encrypted.
    pub encryption: Option<serde_json::Value>,
}

/// What can be chosen for a dataset, at creation (StorageClass parameters, CLI options) or later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// `standard`, `always` or `disabled`; `None`: by access modes.
    pub sync: Option<String>,
    pub record_bytes: u32,
    pub codec: Codec,
    pub quota_inodes: Option<u64>,
    pub root_uid: u32,
    pub root_gid: u32,
    pub root_mode: u32,
}

impl Default for Properties {
    fn default() -> Self {
        Self {
            sync: None,
            record_bytes: 64 << 10,
            codec: Codec::Lz4,
            quota_inodes: None,
            root_uid: 0,
            root_gid: 0,
            root_mode: 0o755,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The intent is written; the effect may or may not have happened (R3).
    Creating,
    Ready,
    /// Deletion was acknowledged; what depends on it may keep it.
    Deleting,
    /// Nothing depends any more; a cleaner is removing the effect (R3).
    Dead,
}

/// Who has a dataset open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub node: String,
    pub session: SessionId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    pub name: DatasetName,
    pub incarnation: Incarnation,
    pub family: FamilyId,
    /// The snapshot that a clone started from.
    pub origin: Option<SnapshotId>,
    pub state: State,
    pub created: Timestamp,
    /// Byte quota.
    pub size: Option<u64>,
    pub properties: Properties,
    /// Every CSI access mode asked for at creation.
    pub access_modes: Vec<String>,
    /// `None`: released, cleanly closed (R16).
    pub owner: Option<Owner>,
    /// Secret that handle keys are made from, fresh for each clone (R7).
    pub handle_secret: [u8; 16],
    /// Parameters as the CSI caller gave them, to tell a repeat from a conflict.
    pub parameters: BTreeMap<String, String>,
}

impl Dataset {
    pub fn id(&self) -> DatasetId {
        DatasetId { key: NameKey::of("dataset", self.name.as_str()), incarnation: self.incarnation }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: SnapshotName,
    pub incarnation: Incarnation,
    /// The dataset it is of.
    pub dataset: DatasetId,
    pub family: FamilyId,
    pub state: State,
    pub created: Timestamp,
    /// SlateDB's checkpoint, known once `ready`. Its name is the snapshot's incarnation.
    pub checkpoint: Option<[u8; 16]>,
    /// The dataset's quota at the snapshot.
    pub size: Option<u64>,
    /// Bytes accounted at the snapshot.
    pub referenced: Option<u64>,
    pub properties: Properties,
    /// Clones made from it that still need it, and other dependants (R14).
    pub dependants: Vec<Incarnation>,
    /// Unique, never reused within the dataset: the upper bits of fileids below `.snapshots`.
    pub serial: u32,
    /// Made implicitly for a clone of a volume: goes away with its last use.
    pub implied: bool,
}

impl Snapshot {
    pub fn id(&self) -> SnapshotId {
        let key = NameKey::of("snapshot", self.name.as_str());
        SnapshotId { dataset: self.dataset.incarnation, snapshot: DatasetId { key, incarnation: self.incarnation } }
    }
}

/// A record with the version it was read at: a change succeeds only if that is still the newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    pub version: u64,
    pub record: T,
}

/// A pool, opened. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {}

/// The passphrase or key of an encrypted pool.
#[derive(Clone)]
pub struct Secret(pub zeroize::Zeroizing<String>);

impl Catalog {
    /// Checks that the store keeps put-if-absent (R3) and writes the pool record. An existing pool is [`CatalogError::Exists`].
    pub async fn create(_bucket: Bucket, _secret: Option<&Secret>) -> Result<Self, CatalogError> {
        todo!()
    }

    /// Opens an existing pool; checks format, features and key before anything is touched.
    pub async fn open(_bucket: Bucket, _secret: Option<&Secret>) -> Result<Self, CatalogError> {
        todo!()
    }

    pub fn pool(&self) -> &PoolRecord {
        todo!()
    }

    pub fn bucket(&self) -> &Bucket {
        todo!()
    }

    pub fn keyring(&self) -> &Keyring {
        todo!()
    }

    /// The record found by a dataset's name, whatever its state (`Dead` and absent are `None`).
    pub async fn dataset(&self, _name: &DatasetName) -> Result<Option<Versioned<Dataset>>, CatalogError> {
        todo!()
    }

    /// The record of exactly this life; `None` when it is gone.
    pub async fn dataset_by_id(&self, _id: DatasetId) -> Result<Option<Versioned<Dataset>>, CatalogError> {
        todo!()
    }

    /// In the order of keys; every state but absent.
    pub async fn datasets(&self) -> Result<Vec<Versioned<Dataset>>, CatalogError> {
        todo!()
    }

    /// Writes the first version of a dataset's record (or the next after a `Dead` one). [`CatalogError::Exists`] when a live one is there.
    pub async fn insert_dataset(&self, _dataset: Dataset) -> Result<Versioned<Dataset>, CatalogError> {
        todo!()
    }

    /// Compare-and-swap: fails with `Contended` when it is not the newest any more. On success `at` is the new version.
    pub async fn swap_dataset(&self, _at: &mut Versioned<Dataset>, _next: Dataset) -> Result<(), CatalogError> {
        todo!()
    }

    /// Read, change, swap; repeated a bounded number of times while others change it. `change` may refuse.
    pub async fn update_dataset(
        &self,
        _id: DatasetId,
        _change: impl FnMut(&mut Dataset) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<Dataset>, CatalogError> {
        todo!()
    }

    /// Forgets a `Dead` record: the name is free.
    pub async fn remove_dataset(&self, _id: DatasetId) -> Result<(), CatalogError> {
        todo!()
    }

    pub async fn snapshot(&self, _dataset: DatasetId, _name: &SnapshotName) -> Result<Option<Versioned<Snapshot>>, CatalogError> {
        todo!()
    }

    pub async fn snapshot_by_id(&self, _id: SnapshotId) -> Result<Option<Versioned<Snapshot>>, CatalogError> {
        todo!()
    }

    /// Of one dataset life, or of the whole pool.
    pub async fn snapshots(&self, _of: Option<Incarnation>) -> Result<Vec<Versioned<Snapshot>>, CatalogError> {
        todo!()
    }

    pub async fn insert_snapshot(&self, _snapshot: Snapshot) -> Result<Versioned<Snapshot>, CatalogError> {
        todo!()
    }

    pub async fn swap_snapshot(&self, _at: &mut Versioned<Snapshot>, _next: Snapshot) -> Result<(), CatalogError> {
        todo!()
    }

    pub async fn update_snapshot(
        &self,
        _id: SnapshotId,
        _change: impl FnMut(&mut Snapshot) -> Result<(), CatalogError> + Send,
    ) -> Result<Versioned<Snapshot>, CatalogError> {
        todo!()
    }

    pub async fn remove_snapshot(&self, _id: SnapshotId) -> Result<(), CatalogError> {
        todo!()
    }

    /// CSI snapshot names are unique in the whole pool, ours only in a dataset: reserves a CSI name for a snapshot, or answers which snapshot has it.
    pub async fn claim_csi_snapshot_name(&self, _name: &str, _snapshot: SnapshotId) -> Result<SnapshotId, CatalogError> {
        todo!()
    }

    /// Gives a reserved name back, if it is still this snapshot's.
    pub async fn release_csi_snapshot_name(&self, _name: &str, _snapshot: SnapshotId) -> Result<(), CatalogError> {
        todo!()
    }
}
