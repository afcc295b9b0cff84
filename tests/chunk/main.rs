//! Packs, the packer and verified reads, on a bucket in memory that is damaged, slow or failing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod caches;
mod damage;
mod format;
mod local;
mod packing;
mod reads;
mod rewriting;
mod settling;

use bytes::Bytes;
use std::sync::LazyLock;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::chunk::{ChunkCache, ChunkRef, ChunkStore, Codec, Packer};
use zerofs_csi::crypto::{Keyring, Secret, WrappedKey};
use zerofs_csi::types::{Epoch, FamilyId, Incarnation, PackId, PoolId};

const POOL: PoolId = PoolId::from_bytes([1; 16]);
const FAMILY: FamilyId = FamilyId::from_bytes([2; 16]);
const CREATOR: Incarnation = Incarnation::from_bytes([3; 16]);

fn plain() -> Keyring {
    Keyring::plain(POOL)
}

/// The keys of an encrypted pool; deriving them is slow, so they are made once.
fn encrypted() -> Keyring {
    static KEYRING: LazyLock<Keyring> = LazyLock::new(|| {
        WrappedKey::create(POOL, &Secret::new("correct horse battery staple")).unwrap().1
    });
    KEYRING.clone()
}

/// A store with a cold cache of its own.
fn store(bucket: &Bucket, keyring: &Keyring) -> ChunkStore {
    ChunkStore::new(bucket.clone(), FAMILY, keyring, ChunkCache::memory(64 << 20))
}

fn packer(store: &ChunkStore) -> Packer {
    store.packer(CREATOR, Epoch(1), Codec::Lz4)
}

fn pack(seq: u64) -> PackId {
    PackId { creator: CREATOR, epoch: Epoch(1), seq }
}

fn key(pack: PackId) -> String {
    format!("packs/{FAMILY}/{pack}")
}

/// Incompressible.
fn noise(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Compressible.
fn text(seed: u64, len: usize) -> Bytes {
    format!("line {seed} of a text that repeats itself\n")
        .into_bytes()
        .into_iter()
        .cycle()
        .take(len)
        .collect()
}

/// Adds, stores and settles.
async fn save(packer: &Packer, raw: Vec<Bytes>) -> Vec<ChunkRef> {
    let stored = packer.add(raw).await.unwrap().stored().await.unwrap();
    let refs = stored.refs().to_vec();
    stored.settle();
    refs
}
