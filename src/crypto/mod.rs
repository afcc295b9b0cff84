//! Keys and sealing: what a pool's passphrase becomes, and the one AEAD that everything on the bucket is sealed with.

use crate::types::{Class, Classify, FamilyId, Incarnation, PoolId};

#[derive(Debug, Clone, thiserror::Error)]
pub enum CryptoError {
    #[error("the pool is encrypted: give its passphrase or key")]
    KeyMissing,
    #[error("the passphrase or key given is not this pool's")]
    WrongKey,
    #[error("the pool is not encrypted, but a passphrase or key was given: leave it out")]
    NotEncrypted,
    #[error("sealed bytes do not open: {what}")]
    Broken { what: String },
}

impl Classify for CryptoError {
    fn class(&self) -> Class {
        match self {
            Self::KeyMissing | Self::NotEncrypted => Class::Precondition,
            Self::WrongKey => Class::Denied,
            Self::Broken { .. } => Class::Corrupt,
        }
    }
}

/// The keys of one pool. Separate KDF outputs for hashing, sealing and handles; a pool without encryption still hashes
/// with a key of its own (derived from the pool id), and seals nothing.
#[derive(Clone)]
pub struct Keyring {}

impl Keyring {
    /// The keys of a pool that is not encrypted.
    pub fn plain(_pool: PoolId) -> Self {
        todo!()
    }

    /// The key that chunk hashes of a family are made with.
    pub fn chunk_hash_key(&self, _family: FamilyId) -> [u8; 32] {
        todo!()
    }

    /// Seals chunks of a family; `None`: the pool is not encrypted.
    pub fn chunk_sealer(&self, _family: FamilyId) -> Option<Sealer> {
        todo!()
    }

    /// Seals the database blocks of a family (clones read their ancestors' blocks); `None`: the pool is not encrypted.
    pub fn database_sealer(&self, _family: FamilyId) -> Option<Sealer> {
        todo!()
    }

    /// The key that the file handles of a dataset are authenticated with, from the dataset's own random secret (R7).
    pub fn handle_key(&self, _dataset: Incarnation, _secret: &[u8; 16]) -> [u8; 16] {
        todo!()
    }
}

/// An AEAD with a random 192-bit nonce in front of what it seals.
#[derive(Clone)]
pub struct Sealer {}

impl Sealer {
    /// Bytes that sealing adds.
    pub const OVERHEAD: usize = 24 + 16;

    pub fn seal(&self, _associated: &[u8], _plain: &[u8]) -> Vec<u8> {
        todo!()
    }

    pub fn open(&self, _associated: &[u8], _sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        todo!()
    }
}
