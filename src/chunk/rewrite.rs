//! Rewrites a pack that is mostly dead (R12): chunks in use are copied into the pack's next
//! generation, then the older ones are deleted.
//!
//! The caller has marked which chunks are in use, after no head could make another of them live
//! again. Garbage stays garbage from then on, so that any generation holds every chunk that any
//! later mark finds: two collectors, even one that was delayed for a day, do no harm to each other.

use super::coder::Backing;
use super::pack::{self, HEADER_BYTES, PackEntry, Trailer};
use super::reader::reading;
use super::relocated::{self, Generation};
use super::store::ChunkStore;
use super::verify::stored;
use super::{ChunkError, ChunkRef, cpu};
use crate::bucket::PutNew;
use crate::types::{ChunkHash, PackId};
use bytes::{Bytes, BytesMut};
use std::collections::HashSet;

/// The rewrite threshold: a pack is rewritten when at most this percentage of its bytes is in use.
const LIVE_MAX: u64 = 60;

/// The outcome of rewriting a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// Bytes of its object before and after.
    Done { before: u64, after: u64 },
    /// Too much of it is in use.
    Kept,
}

impl ChunkStore {
    /// Copies the chunks in use into the next generation of a pack, and removes the older ones.
    /// `live`: every chunk that may ever be referred to.
    ///
    /// # Errors
    /// [`ChunkError::Corrupt`] when a chunk in use is not in the pack, or has the wrong hash: then
    /// nothing was changed.
    pub async fn rewrite(
        &self,
        pack: PackId,
        live: &HashSet<ChunkHash>,
    ) -> Result<Rewritten, ChunkError> {
        let generation = self.newest_generation(pack).await?.unwrap_or(0);
        let (chunks, before) = self.contents_of(pack, generation).await?;
        let kept: Vec<ChunkRef> =
            chunks.iter().filter(|chunk| live.contains(&chunk.hash)).copied().collect();
        let there: HashSet<&ChunkHash> = kept.iter().map(|chunk| &chunk.hash).collect();
        if let Some(hash) = live.iter().find(|hash| !there.contains(hash)) {
            return Err(ChunkError::Corrupt {
                hash: *hash,
                pack,
                why: "it is in use, but is not in the pack's footer".to_owned(),
            });
        }
        let bytes: u64 = kept.iter().map(|chunk| u64::from(chunk.stored_len)).sum();
        if bytes * 100 > before * LIVE_MAX {
            return Ok(Rewritten::Kept);
        }
        let next = generation.checked_add(1).ok_or_else(|| ChunkError::CorruptPack {
            pack,
            why: "it was rewritten too often".to_owned(),
        })?;
        let object = self.copy(pack, generation, kept).await?;
        let after = object.len() as u64;
        let family = self.0.family;
        let failpoints = self.0.bucket.failpoints().clone();
        let storing = |source| ChunkError::Bucket { doing: "rewriting", pack, source };
        failpoints.step("chunk.before-rewrite").await.map_err(|error| storing(error.into()))?;
        match self
            .0
            .bucket
            .put_new(&relocated::key(family, pack, next), object)
            .await
            .map_err(storing)?
        {
            // The object of another collector contains every chunk in use, too.
            PutNew::Created | PutNew::Exists => {}
        }
        failpoints.step("chunk.rewritten").await.map_err(|error| storing(error.into()))?;
        let older: Vec<String> =
            (0..=generation).rev().map(|n| relocated::key(family, pack, n)).collect();
        self.0.bucket.delete(&older).await.map_err(storing)?;
        Ok(Rewritten::Done { before, after })
    }

    /// Builds the object of a next generation: the chunks as they are stored, each verified while
    /// it is copied.
    async fn copy(
        &self,
        pack: PackId,
        generation: Generation,
        kept: Vec<ChunkRef>,
    ) -> Result<Bytes, ChunkError> {
        let end =
            kept.iter().map(|chunk| chunk.offset + chunk.stored_len).max().unwrap_or(HEADER_BYTES);
        let key = relocated::key(self.0.family, pack, generation);
        let old = self
            .0
            .bucket
            .get_range(&key, 0..u64::from(end))
            .await
            .map_err(|source| reading(pack, source))?;
        let coder = self.0.coder.clone();
        let copied = cpu::run(old.len(), move || {
            let mut object = BytesMut::with_capacity(old.len());
            object.extend_from_slice(&pack::header(coder.sealing()));
            let mut entries = Vec::with_capacity(kept.len());
            for chunk in kept {
                let corrupt = |why| ChunkError::Corrupt { hash: chunk.hash, pack, why };
                let stored = stored(&old, &chunk).map_err(corrupt)?;
                coder.decode(&chunk, stored.clone(), Backing::Part).map_err(corrupt)?;
                // Smaller than the pack it comes from.
                let offset = object.len() as u32;
                entries.push(PackEntry {
                    hash: chunk.hash,
                    offset,
                    stored_len: chunk.stored_len,
                    raw_len: chunk.raw_len,
                    codec: chunk.codec,
                });
                object.extend_from_slice(&stored);
            }
            let footer = coder.encode_footer(pack, &entries);
            let trailer = Trailer::new(&footer, coder.sealing());
            object.extend_from_slice(&footer);
            object.extend_from_slice(&trailer.encode());
            Ok(object.freeze())
        });
        copied.await.unwrap_or(Err(ChunkError::CutOff { doing: "rewriting a pack" }))
    }
}
