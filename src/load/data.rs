//! Incompressible data, every 4 KiB of it unlike any other ever written.

use bytes::{Bytes, BytesMut};

/// The unit that is unlike any other.
pub const BLOCK_BYTES: usize = 4 << 10;
const BASE_BYTES: usize = 1 << 20;

/// Random bytes, stamped again for each use: as good as fresh ones to a server, and much cheaper.
#[derive(Clone, Debug)]
pub struct Source {
    base: Bytes,
    run: u64,
    stamp: u64,
}

impl Default for Source {
    fn default() -> Self {
        let mut base = vec![0; BASE_BYTES];
        rand::fill(&mut base[..]);
        Self { base: base.into(), run: rand::random(), stamp: 0 }
    }
}

impl Source {
    /// `len` bytes, at most 1 MiB.
    pub fn take(&mut self, len: usize) -> Bytes {
        let mut data = BytesMut::from(self.base.get(..len).unwrap_or(&self.base));
        for block in data.chunks_mut(BLOCK_BYTES) {
            self.stamp += 1;
            let stamps = self.run.to_le_bytes().into_iter().chain(self.stamp.to_le_bytes());
            for (byte, stamp) in block.iter_mut().zip(stamps) {
                *byte = stamp;
            }
        }
        data.freeze()
    }

    /// Returns whether `data` could have come from this run, at the same place in a piece of
    /// `take`.
    pub fn made(&self, data: &[u8]) -> bool {
        data.chunks(BLOCK_BYTES).enumerate().all(|(i, block)| {
            let base = self.base.get(i * BLOCK_BYTES + 16..).unwrap_or(&[]);
            let rest = block.get(16..).unwrap_or(&[]);
            block.starts_with(&self.run.to_le_bytes()) && base.starts_with(rest)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_comes_twice_and_all_are_recognised() {
        let mut source = Source::default();
        let data = [source.take(3 * BLOCK_BYTES), source.take(1 << 20), source.take(10)];
        let mut blocks: Vec<&[u8]> = data.iter().flat_map(|d| d.chunks(BLOCK_BYTES)).collect();
        let all = blocks.len();
        blocks.sort_unstable();
        blocks.dedup();
        assert_eq!((all, blocks.len()), (260, 260));
        assert!(data.iter().all(|data| source.made(data)));
        assert!(!source.made(&Source::default().take(BLOCK_BYTES)));
        assert!(!source.made(&[0; 32]));
    }
}
