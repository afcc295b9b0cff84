//! The chunks of one family: stored through a [`Packer`], read back verified.

use super::cache::count;
use super::coder::Coder;
use super::pack::{HEADER_BYTES, PackError, TRAILER_BYTES, Trailer};
use super::pack_writer::PackWriter;
use super::reader::{Reader, reading};
use super::relocated::{self, Generation, PackLocation};
use super::{ChunkCache, ChunkError, ChunkRef, Codec, Packer};
use crate::bucket::{Bucket, BucketError};
use crate::crypto::Keyring;
use crate::types::{ChunkHash, Epoch, FamilyId, Incarnation, PackId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes that one request for a footer reads: nearly always all of it.
const TAIL_BYTES: u64 = 32 << 10;

/// The chunks of one family. Cheap to clone; all clones share requests in flight.
#[derive(Clone)]
pub struct ChunkStore(pub(super) Arc<Reader>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackSummary {
    pub pack: PackId,
    /// 0: as the packer wrote it (R12).
    pub generation: Generation,
    pub bytes: u64,
}

fn prefix(family: FamilyId) -> String {
    format!("packs/{family}/")
}

impl ChunkStore {
    /// Makes no request.
    pub fn new(bucket: Bucket, family: FamilyId, keyring: &Keyring, cache: ChunkCache) -> Self {
        let coder = Arc::new(Coder::new(keyring, family));
        Self(Arc::new(Reader {
            family,
            bucket,
            coder,
            cache,
            in_flight_reads: Mutex::new(HashMap::new()),
            locations: Mutex::default(),
            blocks: Mutex::default(),
        }))
    }

    /// The name that `raw` would be stored under.
    pub fn hash(&self, raw: &[u8]) -> ChunkHash {
        self.0.coder.hash(raw)
    }

    /// The chunks' data, verified, in the order asked for. Adjacent ones are fetched with one
    /// request.
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

    /// Part of a chunk, verified, if that is possible without waiting and for less than reading all
    /// of it.
    pub fn part(&self, chunk: &ChunkRef, from: u32, len: u32) -> Option<Bytes> {
        self.0.read_part(chunk, from, len)
    }

    /// Starts fetching chunks that will be read soon into the cache. Bounded: returns whether there
    /// was room for all of them. Errors show at the read.
    pub async fn prefetch(&self, chunks: Vec<ChunkRef>) -> bool {
        self.0.prefetch(chunks).await
    }

    /// A packer for one writable open of a dataset. `codec`: for new chunks.
    pub fn packer(&self, creator: Incarnation, epoch: Epoch, codec: Codec) -> Packer {
        let reader = &self.0;
        Packer(PackWriter::new(
            reader.family,
            creator,
            epoch,
            codec,
            reader.bucket.clone(),
            reader.coder.clone(),
            reader.cache.clone(),
        ))
    }

    /// Every object of the family's packs, by LIST.
    pub async fn list(&self) -> Result<Vec<PackSummary>, ChunkError> {
        let prefix = prefix(self.0.family);
        let (mut listed, mut packs) = (self.0.bucket.pages(&prefix), Vec::new());
        while let Some(page) =
            listed.next().await.map_err(|source| self.failed("listing", source))?
        {
            for object in page {
                match object.key.strip_prefix(&prefix).and_then(relocated::parse) {
                    Some((pack, generation)) => {
                        packs.push(PackSummary { pack, generation, bytes: object.bytes });
                    }
                    None => {
                        tracing::warn!(
                            key = object.key,
                            "ignoring an object that is not a pack; delete it if it is not needed"
                        );
                    }
                }
            }
        }
        packs.sort_unstable_by_key(|found| (found.pack, found.generation));
        Ok(packs)
    }

    /// The chunks in a pack, from the footer of its newest generation.
    pub async fn contents(&self, pack: PackId) -> Result<Vec<ChunkRef>, ChunkError> {
        let generation = self.newest_generation(pack).await?.unwrap_or(0);
        self.contents_of(pack, generation).await.map(|(chunks, _)| chunks)
    }

    /// The newest generation of a pack that was rewritten (R12).
    pub(super) async fn newest_generation(
        &self,
        pack: PackId,
    ) -> Result<Option<Generation>, ChunkError> {
        self.0.newest_generation(pack).await
    }

    /// The footer of one generation, and the bytes of its object.
    pub async fn contents_of(
        &self,
        pack: PackId,
        generation: Generation,
    ) -> Result<(Vec<ChunkRef>, u64), ChunkError> {
        self.0.contents(pack, generation).await
    }

    /// Removes packs, all generations of each. Absent ones count as removed.
    pub async fn delete(&self, packs: &[PackId]) -> Result<(), ChunkError> {
        let mut keys = Vec::with_capacity(packs.len());
        for pack in packs {
            let newest = self.newest_generation(*pack).await?.unwrap_or(0);
            keys.extend(
                (0..=newest).map(|generation| relocated::key(self.0.family, *pack, generation)),
            );
        }
        let failpoints = self.0.bucket.failpoints();
        let failed = |source| self.failed("deleting", source);
        failpoints.step("chunk.before-pack-delete").await.map_err(|error| failed(error.into()))?;
        self.0.bucket.delete(&keys).await.map_err(failed)?;
        failpoints.step("chunk.after-pack-delete").await.map_err(|error| failed(error.into()))
    }

    fn failed(&self, doing: &'static str, source: BucketError) -> ChunkError {
        ChunkError::Family { doing, family: self.0.family, source }
    }
}

impl Reader {
    pub(super) async fn newest_generation(
        &self,
        pack: PackId,
    ) -> Result<Option<Generation>, ChunkError> {
        let listed = self
            .bucket
            .list(&relocated::folder(self.family, pack))
            .await
            .map_err(|source| reading(pack, source))?;
        let generations = listed.iter().filter_map(|object| {
            let name = object.key.strip_prefix(&prefix(self.family))?;
            relocated::parse(name).map(|(_, generation)| generation)
        });
        Ok(generations.max())
    }

    /// The location of a pack's chunks after its first object was removed; `None` if no generation
    /// is left.
    pub(super) async fn find_location(
        &self,
        pack: PackId,
    ) -> Result<Option<PackLocation>, ChunkError> {
        let Some(generation) = self.newest_generation(pack).await? else { return Ok(None) };
        let (chunks, _) = self.contents(pack, generation).await?;
        Ok(Some(PackLocation::new(generation, &chunks)))
    }

    pub(super) async fn contents(
        &self,
        pack: PackId,
        generation: Generation,
    ) -> Result<(Vec<ChunkRef>, u64), ChunkError> {
        let key = relocated::key(self.family, pack, generation);
        let broken = |error: PackError| self.corrupt(pack, error.to_string());
        let (mut tail, size) =
            self.bucket.get_tail(&key, TAIL_BYTES).await.map_err(|source| reading(pack, source))?;
        let trailer = Trailer::decode(&tail).map_err(broken)?;
        let footer_len = trailer.footer_len as usize;
        let end_bytes = footer_len + TRAILER_BYTES;
        if size < (HEADER_BYTES as usize + end_bytes) as u64 {
            return Err(broken(PackError::FooterLength { bytes: footer_len as u64 }));
        }
        let footer_at = size - end_bytes as u64;
        if tail.len() < end_bytes {
            tail = self
                .bucket
                .get_range(&key, footer_at..size)
                .await
                .map_err(|source| reading(pack, source))?;
        }
        let footer = tail.len().checked_sub(end_bytes).map(|at| tail.slice(at..at + footer_len));
        let footer = footer.ok_or_else(|| broken(PackError::Short { bytes: tail.len() as u64 }))?;
        trailer.check(&footer).map_err(broken)?;
        let entries = self
            .coder
            .decode_footer(pack, trailer.sealing, &footer)
            .map_err(|why| self.corrupt(pack, why))?;
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
        Ok((located.collect(), size))
    }

    fn corrupt(&self, pack: PackId, why: String) -> ChunkError {
        count(&self.cache.0.counts.bucket_corrupt);
        ChunkError::CorruptPack { pack, why }
    }
}
