//! Encrypts SlateDB's blocks. Its indexes keep first and last keys readable: keys hold no names
//! (see `fs::key`).

use crate::crypto::Sealer;
use bytes::Bytes;
use slatedb::{BlockTransformer, Error};
use std::sync::Arc;

/// A block does not know its place, so this is all that can be associated with it; SlateDB's own
/// structure and the rows' keys show whether a block belongs where it was found.
const ASSOCIATED: &[u8] = b"zerofs-csi database block";

struct SealedBlocks {
    sealer: Sealer,
}

pub(super) fn transformer(sealer: Sealer) -> Arc<dyn BlockTransformer> {
    Arc::new(SealedBlocks { sealer })
}

#[async_trait::async_trait]
impl BlockTransformer for SealedBlocks {
    async fn encode(&self, data: Bytes) -> Result<Bytes, Error> {
        Ok(self.sealer.seal(ASSOCIATED, &data).into())
    }

    async fn decode(&self, data: Bytes) -> Result<Bytes, Error> {
        match self.sealer.open(ASSOCIATED, &data) {
            Ok(plain) => Ok(plain.into()),
            Err(error) => Err(Error::data(format!("database block: {error}"))),
        }
    }

    fn encoded_overhead(&self) -> usize {
        Sealer::OVERHEAD
    }
}
