//! Plans the range requests for a set of chunks. Pure.

use super::{CHUNK_BYTES_MAX, ChunkRef};
use std::ops::Range;

/// One request takes at most this much, as stored and as data: small enough that several run side
/// by side, large enough that the cost of the request itself is negligible. A step of read-ahead
/// (4 MiB) and what sealing adds to its chunks fit.
pub(super) const RANGE_BYTES_MAX: u64 = (4 << 20) + (64 << 10);
/// Bytes between two chunks that are fetched and thrown away rather than asked for separately: less
/// than the latency of a request costs.
pub(super) const GAP_BYTES_MAX: u64 = 64 << 10;

/// Chunks of one pack that are fetched with one request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fetch {
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) range: Range<u64>,
    /// Sum of the chunks' data.
    pub(super) raw_bytes: u64,
}

pub(super) fn range_of(chunk: &ChunkRef) -> Range<u64> {
    let start = u64::from(chunk.offset);
    start..start + u64::from(chunk.stored_len)
}

pub(super) fn plan(mut chunks: Vec<ChunkRef>) -> Vec<Fetch> {
    chunks.sort_unstable_by_key(|chunk| (chunk.pack, chunk.offset));
    let mut fetches: Vec<Fetch> = Vec::new();
    for chunk in chunks {
        let range = range_of(&chunk);
        // Untrusted: a length beyond that of any chunk is refused when it is decoded, and must not
        // make a caller wait for memory.
        let raw_bytes = u64::from(chunk.raw_len).min(CHUNK_BYTES_MAX as u64);
        if let Some(fetch) = fetches.last_mut()
            && fetch.chunks.first().is_some_and(|first| first.pack == chunk.pack)
            && range.start <= fetch.range.end + GAP_BYTES_MAX
            && range.end.max(fetch.range.end) - fetch.range.start <= RANGE_BYTES_MAX
            && fetch.raw_bytes + raw_bytes <= RANGE_BYTES_MAX
        {
            fetch.range.end = fetch.range.end.max(range.end);
            fetch.raw_bytes += raw_bytes;
            fetch.chunks.push(chunk);
        } else {
            fetches.push(Fetch { chunks: vec![chunk], range, raw_bytes });
        }
    }
    fetches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Codec;
    use crate::types::{ChunkHash, Epoch, Incarnation, PackId};
    use proptest::prelude::*;

    fn chunk(seq: u64, offset: u32, stored_len: u32, raw_len: u32) -> ChunkRef {
        let pack = PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq };
        ChunkRef { hash: ChunkHash([0; 32]), pack, offset, stored_len, raw_len, codec: Codec::None }
    }

    #[test]
    fn neighbours_share_a_request_and_far_ones_do_not() {
        let near = [chunk(1, 8, 1000, 1000), chunk(1, 1008 + GAP_BYTES_MAX as u32, 10, 10)];
        let fetches = plan(vec![near[1], near[0], chunk(2, 8, 5, 5), chunk(1, 1 << 20, 5, 5)]);
        let ranges: Vec<_> = fetches.iter().map(|f| (f.chunks.len(), f.range.clone())).collect();
        assert_eq!(ranges, [(2, 8..1018 + GAP_BYTES_MAX), (1, 1 << 20..(1 << 20) + 5), (1, 8..13)]);
    }

    #[test]
    fn what_decompresses_to_much_is_split() {
        let tiny: Vec<_> = (0..32).map(|n| chunk(1, 8 + n * 100, 100, 1 << 20)).collect();
        assert_eq!(plan(tiny).len(), 8);
    }

    proptest! {
        #[test]
        fn every_chunk_is_fetched_once_within_the_limits(
            wild in proptest::collection::vec(
                (1u64..4, any::<u32>(), 0u32..2 << 20, any::<u32>()), 0..80
            )
        ) {
            let chunk = |&(seq, offset, stored, raw): &_| chunk(seq, offset, stored, raw);
            let mut chunks: Vec<_> = wild.iter().map(chunk).collect();
            let fetches = plan(chunks.clone());
            for fetch in &fetches {
                prop_assert!(fetch.range.end - fetch.range.start <= RANGE_BYTES_MAX);
                for chunk in &fetch.chunks {
                    prop_assert_eq!(chunk.pack, fetch.chunks[0].pack);
                    let range = range_of(chunk);
                    prop_assert!(fetch.range.start <= range.start && range.end <= fetch.range.end);
                }
            }
            let key =
                |chunk: &ChunkRef| (chunk.pack, chunk.offset, chunk.stored_len, chunk.raw_len);
            let mut planned: Vec<_> = fetches.into_iter().flat_map(|f| f.chunks).collect();
            planned.sort_by_key(key);
            chunks.sort_by_key(key);
            prop_assert_eq!(planned, chunks);
        }
    }
}
