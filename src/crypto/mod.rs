//! Keys and sealing: the keys derived from a pool's passphrase, and the one AEAD that seals
//! everything on the bucket.
//!
//! Nouns: a pool's **master key** is random, made once, and stored only **wrapped**, that is sealed
//! under a key derived from the passphrase by Argon2id (RFC 9106), or one that was given directly.
//! A [`Keyring`] holds the master key and derives all others from it, each by BLAKE3's key
//! derivation with a context of its own; a [`Sealer`] is one of them in use.
//!
//! Invariants:
//! - No two uses share a key: chunk hashing, chunk sealing and database sealing have one for each
//!   family, file handles one for each dataset. Changing a passphrase wraps the same master key
//!   again and touches nothing else.
//! - A nonce is random and 192 bits long, so that any number of writers may seal without
//!   coordination.
//! - A wrong passphrase is detected before anything else is done with the pool.
//! - Keys are wiped when they are dropped, and never appear in `Debug`.
//!
//! This module stores nothing, so a crash leaves nothing behind. It does not hide the lengths or
//! the number of objects.

mod keyring;
mod sealer;
mod wrap;

pub use keyring::Keyring;
pub use sealer::Sealer;
pub use wrap::{Secret, WrappedKey};

use crate::types::{Class, Classify};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    #[error("the pool is encrypted: give its passphrase or key")]
    KeyMissing,
    #[error("the passphrase or key given is not this pool's")]
    WrongKey,
    #[error("the pool is not encrypted, but a passphrase or key was given: leave it out")]
    NotEncrypted,
    #[error("the passphrase is not usable: {why}")]
    Unusable { why: String },
    #[error("decryption failed: {what}")]
    Broken { what: String },
}

impl Classify for CryptoError {
    fn class(&self) -> Class {
        match self {
            Self::KeyMissing | Self::NotEncrypted => Class::Precondition,
            Self::WrongKey => Class::Denied,
            Self::Unusable { .. } => Class::Invalid,
            Self::Broken { .. } => Class::Corrupt,
        }
    }
}

/// A key, wiped when it is dropped.
pub(crate) type Key = zeroize::Zeroizing<[u8; 32]>;
