//! Content-addressed chunks in packs.
//!
//! A **chunk** is at most 1 MiB of file data, named by its keyed BLAKE3 hash ([`ChunkRef::hash`]).
//! A **pack** is an immutable object `packs/<family>/<creator>/<epoch>-<seq>` of many chunks;
//! `pack` gives its bytes, `relocated` the names of its later generations, `rewrite_pending` the
//! markers of a rewrite. A [`Packer`] belongs to one writable open of a dataset and writes packs; a
//! [`ChunkStore`] reads, lists and deletes those of a family; the [`ChunkCache`] and its memory
//! limits are the process's.
//!
//! # Invariants
//! - Data that a read returns has the hash that was asked for, whether it came from the bucket or
//!   from the cache on disk: never wrong bytes, never zeros. The memory cache holds verified data
//!   only.
//! - A pack's name is given once (R9) and the bytes of an object never change; a pack that was
//!   rewritten is another object (R12).
//! - No reference is handed out as [`Stored`] before its pack's PUT was answered (R10).
//! - `settled` never passes a pack that a batch may still refer to (`ledger`, R9). A pack above it
//!   may be referred to freely; any other only if the dataset says so, at the hit and again at the
//!   commit (R10): see [`Packer::deduplicate_into`] and [`Packer::is_unsettled`].
//!
//! # What a crash may leave
//! Packs that nothing refers to: they were stored, or a lost PUT arrived later, and no batch was
//! committed. The collector finds them below `settled` or below a later epoch. Never a reference
//! without its pack.
//!
//! # Memory
//! [`ChunkLimits`], for all stores of the process: the cache, packs being filled and stored,
//! requests in flight, the index of deduplication. A caller waits for room; read-ahead is dropped
//! instead.
//!
//! # What this does not do
//! This module does not know which packs are in use: the file system counts (`U`), the collector
//! decides. Nor does it retry: the bucket does.

mod ahead;
mod blocks;
mod cache;
mod coder;
mod cpu;
mod dedup;
mod disk;
mod error;
mod groups;
mod in_place;
mod ledger;
mod neighbours;
mod pack;
mod pack_writer;
mod packer;
mod plan;
mod reader;
mod relocated;
mod rewrite;
mod rewrite_pending;
mod store;
mod verify;
mod write_budget;

pub use cache::{CacheStats, ChunkCache, ChunkLimits};
pub use disk::DiskSize;
pub use error::ChunkError;
pub use pack::{
    OBJECT_BYTES_MAX, PACK_BYTES, PackEntry, PackError, Sealing, Trailer, decode_footer,
};
pub use packer::{Packer, Packing, Stored};
pub use relocated::{Generation, key as object_key, parse as parse_object};
pub use rewrite::Rewritten;
pub use rewrite_pending::RewritePending;
pub use store::{ChunkStore, PackSummary};
pub use verify::Verified;

use crate::types::{ChunkHash, PackId};
use serde::{Deserialize, Serialize};

/// The largest chunk, in bytes of data: the largest record.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// A chunk's name, location and encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    pub hash: ChunkHash,
    pub pack: PackId,
    /// Offset of the stored bytes in the pack.
    pub offset: u32,
    /// Bytes as stored: compressed and sealed.
    pub stored_len: u32,
    /// Bytes of data.
    pub raw_len: u32,
    pub codec: Codec,
}

/// The compression of a chunk's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    None,
    #[default]
    Lz4,
    Zstd,
}

impl Codec {
    pub const ALL: [Self; 3] = [Self::None, Self::Lz4, Self::Zstd];

    /// The name by which people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use none, lz4 or zstd")]
pub struct CodecError;

impl std::str::FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Self, CodecError> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or(CodecError)
    }
}
