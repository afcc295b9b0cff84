//! Reads a whole pack to verify every chunk in it: scrubbing.

use super::coder::Backing;
use super::pack::HEADER_BYTES;
use super::reader::reading;
use super::relocated;
use super::store::ChunkStore;
use super::{ChunkError, ChunkRef, cpu};
use crate::types::{ChunkHash, PackId};

/// The result of verifying one pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub bytes: u64,
    pub whole: Vec<ChunkHash>,
    /// Chunks in the footer whose bytes do not match, with the reason.
    pub damaged: Vec<(ChunkHash, String)>,
}

impl ChunkStore {
    /// Reads a pack past all caches and verifies its chunks. One request for the data, two to find
    /// it.
    ///
    /// # Errors
    /// [`ChunkError::Missing`], [`ChunkError::CorruptPack`] when its footer is not readable; other
    /// errors may be temporary.
    pub async fn verify(&self, pack: PackId) -> Result<Verified, ChunkError> {
        let generation = self.newest_generation(pack).await?.unwrap_or(0);
        let (chunks, _) = self.contents_of(pack, generation).await?;
        let end = chunks
            .iter()
            .map(|chunk| chunk.offset + chunk.stored_len)
            .max()
            .unwrap_or(HEADER_BYTES);
        let key = relocated::key(self.0.family, pack, generation);
        let bytes = self
            .0
            .bucket
            .get_range(&key, 0..u64::from(end))
            .await
            .map_err(|source| reading(pack, source))?;
        let coder = self.0.coder.clone();
        let verified = cpu::run(bytes.len(), move || {
            let mut verified = Verified { bytes: bytes.len() as u64, ..Verified::default() };
            for chunk in chunks {
                match stored(&bytes, &chunk)
                    .and_then(|stored| coder.decode(&chunk, stored, Backing::Part))
                {
                    Ok(_) => verified.whole.push(chunk.hash),
                    Err(why) => verified.damaged.push((chunk.hash, why)),
                }
            }
            verified
        });
        verified.await.ok_or(ChunkError::CutOff { doing: "verifying a pack" })
    }
}

/// Returns the bytes of a chunk within its pack.
pub(super) fn stored(pack: &bytes::Bytes, chunk: &ChunkRef) -> Result<bytes::Bytes, String> {
    let range = chunk.offset as usize..chunk.offset as usize + chunk.stored_len as usize;
    if range.end > pack.len() {
        return Err("the pack ends before it".to_owned());
    }
    Ok(pack.slice(range))
}
