//! The chunks of one family: stored through a [`Packer`], read back verified.

use super::cache::count;
use super::coder::Coder;
use super::filling::Filling;
use super::pack::{HEADER_BYTES, PackError, TRAILER_BYTES, Trailer};
use super::reader::{Reader, reading};
use super::{ChunkCache, ChunkError, ChunkRef, Codec, Packer};
use crate::bucket::{Bucket, BucketError};
use crate::crypto::Keyring;
use crate::types::{ChunkHash, Epoch, FamilyId, Incarnation, PackId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// What one request for a footer brings: nearly always all of it.
const TAIL_BYTES: u64 = 32 << 10;

/// The chunks of one family. Cheap to clone; all clones share requests on their way.
#[derive(Clone)]
pub struct ChunkStore(Arc<Reader>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackSummary {
    pub pack: PackId,
    pub bytes: u64,
}

fn prefix(family: FamilyId) -> String {
    format!("packs/{family}/")
}

pub(super) fn key(family: FamilyId, pack: PackId) -> String {
    format!("packs/{family}/{pack}")
}

impl ChunkStore {
    /// Does no request.
    pub fn new(bucket: Bucket, family: FamilyId, keyring: &Keyring, cache: ChunkCache) -> Self {
        let coder = Arc::new(Coder::new(keyring, family));
        Self(Arc::new(Reader { family, bucket, coder, cache, flights: Mutex::new(HashMap::new()) }))
    }

    /// The name that `raw` would be stored under.
    pub fn hash(&self, raw: &[u8]) -> ChunkHash {
        self.0.coder.hash(raw)
    }

    /// The chunks' data, verified, in the order asked for. Adjacent ones are fetched with one request.
    pub async fn read(&self, chunks: &[ChunkRef]) -> Result<Vec<Bytes>, ChunkError> {
        self.0.read(chunks).await
    }

    /// One chunk if it is in the memory cache: no request, no waiting, no copy.
    pub fn cached(&self, hash: &ChunkHash) -> Option<Bytes> {
        let hit = self.0.cache.0.get(hash);
        let counts = &self.0.cache.0.counts;
        count(if hit.is_some() { &counts.memory_hits } else { &counts.memory_misses });
        hit
    }

    /// Starts fetching chunks that will be read soon into the cache. Bounded: what finds no room is dropped; errors show at the read.
    pub fn prefetch(&self, chunks: Vec<ChunkRef>) {
        self.0.prefetch(chunks);
    }

    /// A packer for one writable open of a dataset. `codec`: for new chunks.
    pub fn packer(&self, creator: Incarnation, epoch: Epoch, codec: Codec) -> Packer {
        let reader = &self.0;
        Packer(Filling::new(
            reader.family,
            creator,
            epoch,
            codec,
            reader.bucket.clone(),
            reader.coder.clone(),
            reader.cache.clone(),
        ))
    }

    /// Every pack of the family, by LIST.
    pub async fn list(&self) -> Result<Vec<PackSummary>, ChunkError> {
        let prefix = prefix(self.0.family);
        let listed = self.0.bucket.list(&prefix).await.map_err(|source| self.failed("listing", source))?;
        let packs =
            listed.into_iter().filter_map(|object| match object.key.strip_prefix(&prefix).and_then(|name| name.parse().ok()) {
                Some(pack) => Some(PackSummary { pack, bytes: object.bytes }),
                None => {
                    tracing::warn!(key = object.key, "this object is no pack and is left alone; remove it if it is not needed");
                    None
                }
            });
        Ok(packs.collect())
    }

    /// The footer of a pack: what chunks it holds.
    pub async fn contents(&self, pack: PackId) -> Result<Vec<ChunkRef>, ChunkError> {
        let key = key(self.0.family, pack);
        let broken = |error: PackError| self.corrupt(pack, error.to_string());
        let (mut tail, size) = self.0.bucket.get_tail(&key, TAIL_BYTES).await.map_err(|source| reading(pack, source))?;
        let trailer = Trailer::decode(&tail).map_err(broken)?;
        let footer_len = trailer.footer_len as usize;
        let end_bytes = footer_len + TRAILER_BYTES;
        if size < (HEADER_BYTES as usize + end_bytes) as u64 {
            return Err(broken(PackError::FooterLength { bytes: footer_len as u64 }));
        }
        let footer_at = size - end_bytes as u64;
        if tail.len() < end_bytes {
            tail = self.0.bucket.get_range(&key, footer_at..size).await.map_err(|source| reading(pack, source))?;
        }
        let footer = tail.len().checked_sub(end_bytes).map(|at| tail.slice(at..at + footer_len));
        let footer = footer.ok_or_else(|| broken(PackError::Short { bytes: tail.len() as u64 }))?;
        trailer.check(&footer).map_err(broken)?;
        let entries = self.0.coder.decode_footer(pack, trailer.sealing, &footer).map_err(|why| self.corrupt(pack, why))?;
        let chunks = entries.last().map_or(HEADER_BYTES, |last| last.offset + last.stored_len);
        if u64::from(chunks) != footer_at {
            return Err(broken(PackError::Gap { chunks, footer: footer_at }));
        }
        let located = entries.into_iter().map(|entry| ChunkRef {
            hash: entry.hash,
            pack,
            offset: entry.offset,
            stored_len: entry.stored_len,
            raw_len: entry.raw_len,
            codec: entry.codec,
        });
        Ok(located.collect())
    }

    /// Removes packs. Absent ones count as removed.
    pub async fn delete(&self, packs: &[PackId]) -> Result<(), ChunkError> {
        let keys: Vec<_> = packs.iter().map(|pack| key(self.0.family, *pack)).collect();
        let failpoints = self.0.bucket.failpoints();
        let failed = |source| self.failed("deleting", source);
        failpoints.step("chunk.before-pack-delete").await.map_err(|error| failed(error.into()))?;
        self.0.bucket.delete(&keys).await.map_err(failed)?;
        failpoints.step("chunk.after-pack-delete").await.map_err(|error| failed(error.into()))
    }

    fn failed(&self, doing: &'static str, source: BucketError) -> ChunkError {
        ChunkError::Family { doing, family: self.0.family, source }
    }

    fn corrupt(&self, pack: PackId, why: String) -> ChunkError {
        count(&self.0.cache.0.counts.bucket_corrupt);
        ChunkError::CorruptPack { pack, why }
    }
}
