//! Errors of storing, finding and reading chunks.

use crate::bucket::BucketError;
use crate::types::{ChunkHash, Class, Classify, FamilyId, PackId};

#[derive(Debug, Clone, thiserror::Error)]
pub enum ChunkError {
    #[error("{doing} pack {pack}: {source}")]
    Bucket {
        doing: &'static str,
        pack: PackId,
        #[source]
        source: BucketError,
    },
    #[error("{doing} packs of family {family}: {source}")]
    Family {
        doing: &'static str,
        family: FamilyId,
        #[source]
        source: BucketError,
    },
    /// The reference to the chunk is intact, its bytes are not.
    #[error("chunk {hash} in pack {pack} is corrupt: {why}")]
    Corrupt { hash: ChunkHash, pack: PackId, why: String },
    #[error("pack {pack} is corrupt: {why}")]
    CorruptPack { pack: PackId, why: String },
    /// The pack's object is not in the bucket.
    #[error(
        "pack {pack} is not in the bucket: something outside this program removed it; restore the \
         object from a backup"
    )]
    Missing { pack: PackId },
    #[error("a chunk of {bytes} bytes is larger than the {max} allowed")]
    TooLarge { bytes: usize, max: usize },
    /// The work was cut off because the runtime is shutting down.
    #[error("{doing} was cut off: the program is shutting down")]
    CutOff { doing: &'static str },
}

impl Classify for ChunkError {
    fn class(&self) -> Class {
        match self {
            Self::Bucket { source, .. } | Self::Family { source, .. } => source.class(),
            // Not NotFound: what was asked for exists, its bytes are lost.
            Self::Corrupt { .. } | Self::CorruptPack { .. } | Self::Missing { .. } => {
                Class::Corrupt
            }
            Self::TooLarge { .. } => Class::Internal,
            Self::CutOff { .. } => Class::Unavailable,
        }
    }
}
