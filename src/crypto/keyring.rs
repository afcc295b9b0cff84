//! All keys of one pool.

use super::{Key, Sealer};
use crate::types::{FamilyId, Incarnation, PoolId};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The keys of one pool. Separate KDF outputs for hashing, sealing and handles; a pool without
/// encryption still hashes with a key of its own (derived from the pool id), and seals nothing.
/// Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    root: Arc<Key>,
    sealing: Sealing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sealing {
    Off,
    On,
}

/// Contexts are part of the format: a changed one is another key (BLAKE3 §2.3).
mod context {
    pub const PLAIN: &str = "zerofs-csi 2026-11 keys of a pool that is not encrypted";
    pub const CHUNK_HASH: &str = "zerofs-csi 2026-11 chunk hash";
    pub const CHUNK_SEAL: &str = "zerofs-csi 2026-11 chunk seal";
    pub const DATABASE_SEAL: &str = "zerofs-csi 2026-11 database seal";
    pub const HANDLE: &str = "zerofs-csi 2026-11 file handle";
}

impl Keyring {
    /// The keys of a pool that is not encrypted.
    pub fn plain(pool: PoolId) -> Self {
        let root = Zeroizing::new(blake3::derive_key(context::PLAIN, pool.as_bytes()));
        Self { root: Arc::new(root), sealing: Sealing::Off }
    }

    /// The keys of an encrypted pool.
    pub(super) fn sealed(master: Key) -> Self {
        Self { root: Arc::new(master), sealing: Sealing::On }
    }

    pub(super) fn master(&self) -> &Key {
        &self.root
    }

    pub fn is_encrypted(&self) -> bool {
        self.sealing == Sealing::On
    }

    fn derive(&self, context: &str, parts: &[&[u8]]) -> Key {
        // Every part has a fixed length, so that no two lists of parts give the same input.
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.root[..]);
        for part in parts {
            hasher.update(part);
        }
        Zeroizing::new(*hasher.finalize().as_bytes())
    }

    fn sealer(&self, context: &str, family: FamilyId) -> Option<Sealer> {
        self.is_encrypted().then(|| Sealer::new(&self.derive(context, &[family.as_bytes()])))
    }

    /// The key that chunk hashes of a family are made with.
    pub fn chunk_hash_key(&self, family: FamilyId) -> [u8; 32] {
        *self.derive(context::CHUNK_HASH, &[family.as_bytes()])
    }

    /// Seals chunks of a family; `None`: the pool is not encrypted.
    pub fn chunk_sealer(&self, family: FamilyId) -> Option<Sealer> {
        self.sealer(context::CHUNK_SEAL, family)
    }

    /// Seals the database blocks of a family (clones read their ancestors' blocks); `None`: the
    /// pool is not encrypted.
    pub fn database_sealer(&self, family: FamilyId) -> Option<Sealer> {
        self.sealer(context::DATABASE_SEAL, family)
    }

    /// The key that the file handles of a dataset are authenticated with, from the dataset's own
    /// random secret (R7).
    pub fn handle_key(&self, dataset: Incarnation, secret: &[u8; 16]) -> [u8; 16] {
        let key = self.derive(context::HANDLE, &[dataset.as_bytes(), secret]);
        let mut half = [0; 16];
        half.copy_from_slice(&key[..16]);
        half
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring(sealing {:?})", self.sealing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_uses_share_a_key() {
        let family = |n| FamilyId::from_bytes([n; 16]);
        let dataset = |n| Incarnation::from_bytes([n; 16]);
        let mut seen = std::collections::HashSet::new();
        for ring in
            [Keyring::sealed(Zeroizing::new([1; 32])), Keyring::plain(PoolId::from_bytes([1; 16]))]
        {
            for n in [1, 2] {
                assert!(seen.insert(ring.chunk_hash_key(family(n)).to_vec()));
                assert!(seen.insert(ring.handle_key(dataset(n), &[7; 16]).to_vec()));
                assert!(seen.insert(ring.handle_key(dataset(n), &[8; 16]).to_vec()));
            }
        }
        let ring = Keyring::sealed(Zeroizing::new([1; 32]));
        let sealed = ring.chunk_sealer(family(1)).unwrap().seal(b"", b"data");
        for other in [ring.database_sealer(family(1)), ring.chunk_sealer(family(2))] {
            assert!(other.unwrap().open(b"", &sealed).is_err());
        }
        assert!(Keyring::plain(PoolId::from_bytes([1; 16])).chunk_sealer(family(1)).is_none());
    }

    #[test]
    fn debug_shows_no_key() {
        let ring = Keyring::sealed(Zeroizing::new([0xab; 32]));
        let shown = format!("{ring:?} {:?}", ring.chunk_sealer(FamilyId::from_bytes([1; 16])));
        assert!(!shown.contains("171") && !shown.to_lowercase().contains("abab"), "{shown}");
    }
}
