//! The master key as it is stored in the pool's record.

use super::{CryptoError, Key, Keyring, Sealer};
use crate::types::PoolId;
use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroizing;

/// Argon2id's parameters for new pools: the second recommendation of RFC 9106 §4, 64 MiB and 3
/// passes.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// The most that a record may ask for: a writer of the bucket must not be able to exhaust the
/// node's memory.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 32;
const LANES_MAX: u32 = 16;
/// The shortest passphrase for a new pool, in bytes.
const PASSPHRASE_BYTES_MIN: usize = 8;

const RAW_CONTEXT: &str = "zerofs-csi 2026-11 wrap by a key";

/// The passphrase of an encrypted pool, or 32 bytes in base 64 that are used as the key themselves.
#[derive(Clone)]
pub struct Secret(pub Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// Files and Secrets tend to end in an unintended line feed.
    fn text(&self) -> &str {
        self.0.trim_end_matches(['\n', '\r'])
    }

    fn raw(&self) -> Option<Key> {
        let bytes = Zeroizing::new(BASE64.decode(self.text().as_bytes()).ok()?);
        Some(Zeroizing::new(<[u8; 32]>::try_from(bytes.as_slice()).ok()?))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The derivation of the wrapping key from the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kdf", rename_all = "lowercase")]
enum Kdf {
    Argon2id {
        memory_kib: u32,
        passes: u32,
        lanes: u32,
    },
    /// The secret is a key already.
    Blake3,
}

/// A pool's master key, sealed under its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    #[serde(flatten)]
    kdf: Kdf,
    #[serde(with = "base64")]
    salt: Vec<u8>,
    #[serde(with = "base64")]
    wrapped: Vec<u8>,
}

/// Bytes as base 64 (RFC 4648 §4) in JSON.
mod base64 {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

impl WrappedKey {
    /// A fresh master key, wrapped. Slow on purpose (Argon2id): not on a thread that serves others.
    pub fn create(pool: PoolId, secret: &Secret) -> Result<(Self, Keyring), CryptoError> {
        let keyring = Keyring::sealed(Zeroizing::new(rand::random()));
        Ok((Self::wrap(pool, secret, &keyring, rand::random())?, keyring))
    }

    /// The same master key under another secret: the pool's data stays as it is.
    pub fn rewrap(pool: PoolId, secret: &Secret, keyring: &Keyring) -> Result<Self, CryptoError> {
        if !keyring.is_encrypted() {
            return Err(CryptoError::NotEncrypted);
        }
        Self::wrap(pool, secret, keyring, rand::random())
    }

    fn wrap(
        pool: PoolId,
        secret: &Secret,
        keyring: &Keyring,
        salt: [u8; 16],
    ) -> Result<Self, CryptoError> {
        let kdf = match secret.raw() {
            Some(_) => Kdf::Blake3,
            None if secret.text().len() < PASSPHRASE_BYTES_MIN => {
                let why = format!("it is shorter than {PASSPHRASE_BYTES_MIN} bytes");
                return Err(CryptoError::Unusable { why });
            }
            None => Kdf::Argon2id { memory_kib: MEMORY_KIB, passes: PASSES, lanes: LANES },
        };
        let sealer = Sealer::new(&kdf.wrapping_key(&salt, secret)?);
        let wrapped = sealer.seal(pool.as_bytes(), &keyring.master()[..]);
        Ok(Self { kdf, salt: salt.to_vec(), wrapped })
    }

    /// Opens it. Slow on purpose, like [`Self::create`].
    pub fn open(&self, pool: PoolId, secret: &Secret) -> Result<Keyring, CryptoError> {
        let sealer = Sealer::new(&self.kdf.wrapping_key(&self.salt, secret)?);
        // The record's checksum is right, so a seal that does not open means another key.
        let master =
            sealer.open(pool.as_bytes(), &self.wrapped).map_err(|_| CryptoError::WrongKey)?;
        let master = Zeroizing::new(master);
        let master = <[u8; 32]>::try_from(master.as_slice())
            .map_err(|_| broken("its length is not that of a key"))?;
        Ok(Keyring::sealed(Zeroizing::new(master)))
    }
}

fn broken(why: &str) -> CryptoError {
    CryptoError::Broken { what: format!("the pool's wrapped key: {why}") }
}

impl Kdf {
    fn wrapping_key(&self, salt: &[u8], secret: &Secret) -> Result<Key, CryptoError> {
        match self {
            Self::Blake3 => {
                let raw = secret.raw().ok_or(CryptoError::WrongKey)?;
                let mut hasher = blake3::Hasher::new_derive_key(RAW_CONTEXT);
                hasher.update(&raw[..]).update(salt);
                Ok(Zeroizing::new(*hasher.finalize().as_bytes()))
            }
            Self::Argon2id { memory_kib, passes, lanes } => {
                if *memory_kib > MEMORY_KIB_MAX || *passes > PASSES_MAX || *lanes > LANES_MAX {
                    return Err(broken(
                        "its Argon2id parameters are beyond what this program accepts",
                    ));
                }
                let params = Params::new(*memory_kib, *passes, *lanes, Some(32))
                    .map_err(|e| broken(&e.to_string()))?;
                let mut key = Key::default();
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(secret.text().as_bytes(), salt, &mut key[..])
                    .map_err(|e| broken(&e.to_string()))?;
                Ok(key)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::FamilyId;

    fn pool(n: u8) -> PoolId {
        PoolId::from_bytes([n; 16])
    }

    fn same(a: &Keyring, b: &Keyring) -> bool {
        let family = FamilyId::from_bytes([3; 16]);
        a.chunk_hash_key(family) == b.chunk_hash_key(family)
    }

    #[test]
    fn a_passphrase_opens_what_it_wrapped_and_nothing_else() {
        let (wrapped, keyring) =
            WrappedKey::create(pool(1), &Secret::new("correct horse")).unwrap();
        assert!(same(&wrapped.open(pool(1), &Secret::new("correct horse\n")).unwrap(), &keyring));
        assert_eq!(
            wrapped.open(pool(1), &Secret::new("correct horsf")).unwrap_err(),
            CryptoError::WrongKey
        );
        assert_eq!(
            wrapped.open(pool(2), &Secret::new("correct horse")).unwrap_err(),
            CryptoError::WrongKey
        );
        let json = serde_json::to_string(&wrapped).unwrap();
        assert_eq!(serde_json::from_str::<WrappedKey>(&json).unwrap(), wrapped);
    }

    #[test]
    fn a_key_needs_no_slow_function() {
        let key = Secret::new(BASE64.encode(&[9; 32]));
        let (wrapped, keyring) = WrappedKey::create(pool(1), &key).unwrap();
        assert_eq!(wrapped.kdf, Kdf::Blake3);
        assert!(same(&wrapped.open(pool(1), &key).unwrap(), &keyring));
        for other in [BASE64.encode(&[8; 32]), "a passphrase".to_owned()] {
            assert_eq!(
                wrapped.open(pool(1), &Secret::new(other)).unwrap_err(),
                CryptoError::WrongKey
            );
        }
    }

    #[test]
    fn another_secret_wraps_the_same_master_key() {
        let key = |n| Secret::new(BASE64.encode(&[n; 32]));
        let (_, keyring) = WrappedKey::create(pool(1), &key(1)).unwrap();
        let again = WrappedKey::rewrap(pool(1), &key(2), &keyring).unwrap();
        assert!(same(&again.open(pool(1), &key(2)).unwrap(), &keyring));
        assert_eq!(again.open(pool(1), &key(1)).unwrap_err(), CryptoError::WrongKey);
        assert!(WrappedKey::rewrap(pool(1), &key(2), &Keyring::plain(pool(1))).is_err());
    }

    #[test]
    fn hostile_parameters_are_refused() {
        let (mut wrapped, _) =
            WrappedKey::create(pool(1), &Secret::new(BASE64.encode(&[9; 32]))).unwrap();
        for (memory_kib, passes, lanes) in
            [(u32::MAX, 1, 1), (1 << 16, u32::MAX, 1), (1 << 16, 1, u32::MAX), (0, 0, 0)]
        {
            wrapped.kdf = Kdf::Argon2id { memory_kib, passes, lanes };
            assert!(matches!(
                wrapped.open(pool(1), &Secret::new("passphrase")),
                Err(CryptoError::Broken { .. })
            ));
        }
        wrapped.kdf = Kdf::Argon2id { memory_kib: 64, passes: 1, lanes: 1 };
        wrapped.salt.clear();
        assert!(matches!(
            wrapped.open(pool(1), &Secret::new("passphrase")),
            Err(CryptoError::Broken { .. })
        ));
    }

    #[test]
    fn a_short_passphrase_is_refused_for_a_new_pool() {
        for short in ["", "1234567", "\n\n\n\n\n\n\n\n\n"] {
            assert!(matches!(
                WrappedKey::create(pool(1), &Secret::new(short)),
                Err(CryptoError::Unusable { .. })
            ));
        }
    }
}
