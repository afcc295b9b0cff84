//! Content-addressed chunks in packs.

mod cache;
mod error;
mod packer;
mod store;

pub use cache::ChunkCache;
pub use error::ChunkError;
pub use packer::{Packer, Packing, Stored};
pub use store::{ChunkStore, PackSummary};

use crate::types::{ChunkHash, PackId};
use serde::{Deserialize, Serialize};

/// The largest chunk, in bytes of data: the largest record.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Where a chunk is.
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

/// How a chunk's bytes are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    None,
    #[default]
    Lz4,
    Zstd,
}
