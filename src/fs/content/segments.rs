//! Operations on an extent: a list of segments, in order, without overlap; ranges between them are
//! holes.

use crate::fs::FsError;
use crate::fs::row::{Extent, Segment, Source};
use crate::types::PackId;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// Most segments of an extent; one more and the extent is rewritten.
pub const SEGMENTS_MAX: usize = 16;
/// Most bytes an extent carries inside the database; more and they move to a pack.
pub const INLINE_BYTES_MAX: usize = 16 << 10;

pub fn end(segment: &Segment) -> u32 {
    segment.start + segment.len
}

/// Bytes `from..to` of an extent as far as this segment has them. The caller guarantees that they
/// overlap.
fn part(segment: &Segment, from: u32, to: u32) -> Segment {
    let (from, to) = (from.max(segment.start), to.min(end(segment)));
    let skip = from - segment.start;
    let source = match &segment.source {
        Source::Inline(bytes) => {
            Source::Inline(bytes.slice(skip as usize..(to - segment.start) as usize))
        }
        Source::Chunk { chunk, from } => Source::Chunk { chunk: *chunk, from: from + skip },
    };
    Segment { start: from, len: to - from, source }
}

/// Makes a hole at `from..to`.
pub fn punch(segments: &mut Vec<Segment>, from: u32, to: u32) {
    if from >= to {
        return;
    }
    let first = segments.partition_point(|s| end(s) <= from);
    let last = segments.partition_point(|s| s.start < to);
    if first >= last {
        return;
    }
    let head =
        (segments[first].start < from).then(|| part(&segments[first], segments[first].start, from));
    let tail = (end(&segments[last - 1]) > to)
        .then(|| part(&segments[last - 1], to, end(&segments[last - 1])));
    segments.splice(first..last, head.into_iter().chain(tail));
}

/// Puts a segment over the existing ones.
pub fn put(segments: &mut Vec<Segment>, segment: Segment) {
    punch(segments, segment.start, end(&segment));
    let at = segments.partition_point(|s| s.start < segment.start);
    segments.insert(at, segment);
}

/// Joins inline segments that touch, so that a log appended in small steps stays one segment.
pub fn join_inline(segments: &mut Vec<Segment>) {
    join(segments, |a, b| match (&a.source, &b.source) {
        (Source::Inline(x), Source::Inline(y)) if end(a) == b.start => {
            let mut bytes = BytesMut::with_capacity(x.len() + y.len());
            bytes.extend_from_slice(x);
            bytes.extend_from_slice(y);
            Some(Segment {
                start: a.start,
                len: a.len + b.len,
                source: Source::Inline(bytes.freeze()),
            })
        }
        (Source::Chunk { chunk, from }, Source::Chunk { chunk: other, from: next })
            if end(a) == b.start && chunk == other && from + a.len == *next =>
        {
            Some(Segment { start: a.start, len: a.len + b.len, source: a.source.clone() })
        }
        _ => None,
    });
}

fn join(segments: &mut Vec<Segment>, joined: impl Fn(&Segment, &Segment) -> Option<Segment>) {
    let mut out: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments.drain(..) {
        match out.last().and_then(|last| joined(last, &segment)) {
            Some(both) => *out.last_mut().expect("just seen") = both,
            None => out.push(segment),
        }
    }
    *segments = out;
}

/// Bytes that the extent accounts for: the sum of its segments' lengths.
pub fn bytes(extent: &Extent) -> u64 {
    extent.segments.iter().map(|s| u64::from(s.len)).sum()
}

pub fn inline_bytes(segments: &[Segment]) -> usize {
    segments
        .iter()
        .map(|s| if matches!(s.source, Source::Inline(_)) { s.len as usize } else { 0 })
        .sum()
}

/// Change of references and of accounted bytes, summed over the extents of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Delta {
    refs: BTreeMap<PackId, i64>,
    /// Chunks, by pack and offset, of extents that went and that came.
    gone: Vec<(PackId, u32)>,
    come: Vec<(PackId, u32)>,
    pub allocated: i64,
}

impl Delta {
    pub fn gone(&mut self, extent: &Extent) {
        self.count(extent, -1);
        self.gone.extend(chunks(extent));
    }

    pub fn come(&mut self, extent: &Extent) {
        self.count(extent, 1);
        self.come.extend(chunks(extent));
    }

    fn count(&mut self, extent: &Extent, sign: i64) {
        self.allocated += sign * i64::try_from(bytes(extent)).expect("an extent is at most 1 MiB");
        for (pack, _) in chunks(extent) {
            *self.refs.entry(pack).or_default() += sign;
        }
    }

    pub fn refs(&self) -> Vec<(PackId, i64)> {
        self.refs.iter().filter(|(_, n)| **n != 0).map(|(pack, n)| (*pack, *n)).collect()
    }

    /// Packs with a chunk that none of the replaced extents referred to.
    pub fn fresh(mut self) -> Vec<PackId> {
        self.gone.sort_unstable();
        let fresh = self.come.into_iter().filter(|chunk| self.gone.binary_search(chunk).is_err());
        let mut fresh: Vec<PackId> = fresh.map(|(pack, _)| pack).collect();
        fresh.sort_unstable();
        fresh.dedup();
        fresh
    }
}

fn chunks(extent: &Extent) -> impl Iterator<Item = (PackId, u32)> {
    extent.segments.iter().filter_map(|segment| match &segment.source {
        Source::Chunk { chunk, .. } => Some((chunk.pack, chunk.offset)),
        Source::Inline(_) => None,
    })
}

/// A piece of the answer to a read of an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span<'a> {
    Hole(u32),
    /// Bytes `skip..skip + len` of the segment.
    Part {
        segment: &'a Segment,
        skip: u32,
        len: u32,
    },
}

/// Bytes `from..to` of an extent, in order.
pub fn spans<'a>(segments: &'a [Segment], from: u32, to: u32) -> Vec<Span<'a>> {
    let mut out = Vec::new();
    let mut at = from;
    let first = segments.partition_point(|s| end(s) <= from);
    for segment in segments[first..].iter().take_while(|s| s.start < to) {
        if segment.start > at {
            out.push(Span::Hole(segment.start - at));
            at = segment.start;
        }
        let stop = end(segment).min(to);
        out.push(Span::Part { segment, skip: at - segment.start, len: stop - at });
        at = stop;
    }
    if at < to {
        out.push(Span::Hole(to - at));
    }
    out
}

/// Checks an extent that came from the bucket: everything else here trusts it.
pub fn check(extent: &Extent, record_bytes: u32) -> Result<(), FsError> {
    let mut at = 0_u64;
    for segment in &extent.segments {
        let (start, len) = (u64::from(segment.start), u64::from(segment.len));
        if len == 0 || start < at || start + len > u64::from(record_bytes) {
            return Err(FsError::Corrupt(format!(
                "extent with a segment {start}+{len} after {at}"
            )));
        }
        let fits = match &segment.source {
            Source::Inline(bytes) => bytes.len() as u64 == len,
            Source::Chunk { chunk, from } => u64::from(*from) + len <= u64::from(chunk.raw_len),
        };
        if !fits {
            return Err(FsError::Corrupt(format!(
                "extent with a segment {start}+{len} that its source does not fill"
            )));
        }
        at = start + len;
    }
    if extent.segments.len() > SEGMENTS_MAX {
        return Err(FsError::Corrupt(format!("extent of {} segments", extent.segments.len())));
    }
    Ok(())
}

/// Returns whether the data is all zeros: such data is a hole.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Folded by blocks, which the compiler turns into wide loads; data that is not zero stops at
    // its first block.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Bytes that are all zero, at most `len` of them, without an allocation.
pub fn zeros(len: usize) -> Bytes {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    Bytes::from_static(&ZEROS[..len.min(ZEROS.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{ChunkRef, Codec};
    use crate::types::{ChunkHash, Epoch, Incarnation};
    use proptest::prelude::*;

    const SIZE: u32 = 64;

    fn pack(n: u8) -> PackId {
        PackId { creator: Incarnation::from_bytes([n; 16]), epoch: Epoch(1), seq: u64::from(n) }
    }

    /// A chunk whose byte at `i` is `n + i`.
    fn chunk(n: u8) -> ChunkRef {
        ChunkRef {
            hash: ChunkHash([n; 32]),
            pack: pack(n),
            offset: 0,
            stored_len: 1,
            raw_len: SIZE,
            codec: Codec::None,
        }
    }

    fn render(segments: &[Segment]) -> Vec<u8> {
        let mut out = vec![];
        for span in spans(segments, 0, SIZE) {
            match span {
                Span::Hole(len) => out.extend(vec![0; len as usize]),
                Span::Part { segment, skip, len } => match &segment.source {
                    Source::Inline(bytes) => {
                        out.extend_from_slice(&bytes[skip as usize..(skip + len) as usize]);
                    }
                    Source::Chunk { chunk, from } => {
                        out.extend(
                            (from + skip..from + skip + len)
                                .map(|i| chunk.hash.0[0].wrapping_add(i as u8)),
                        );
                    }
                },
            }
        }
        out
    }

    #[derive(Clone, Debug)]
    enum Op {
        Inline(u32, Vec<u8>),
        Chunk(u8, u32, u32),
        Punch(u32, u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        let range = (0..SIZE).prop_flat_map(|a| (Just(a), a + 1..=SIZE));
        prop_oneof![
            (range.clone(), any::<u8>())
                .prop_map(|((a, b), n)| Op::Inline(a, vec![n; (b - a) as usize])),
            (range.clone(), 1..9_u8).prop_map(|((a, b), n)| Op::Chunk(n, a, b)),
            range.prop_map(|(a, b)| Op::Punch(a, b)),
        ]
    }

    proptest! {
        #[test]
        fn a_record_is_what_was_put_into_it(
            ops in prop::collection::vec(op(), 0..40), cut in 0..=SIZE
        ) {
            let (mut segments, mut model) = (Vec::new(), vec![0; SIZE as usize]);
            let mut delta = Delta::default();
            for op in ops {
                let before = Extent { truncations: 0, segments: segments.clone() };
                match op {
                    Op::Inline(at, bytes) => {
                        model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                        let (len, source) = (bytes.len() as u32, Source::Inline(bytes.into()));
                        put(&mut segments, Segment { start: at, len, source });
                    }
                    Op::Chunk(n, from, to) => {
                        (from..to).for_each(|i| model[i as usize] = n.wrapping_add(i as u8));
                        let source = Source::Chunk { chunk: chunk(n), from };
                        put(&mut segments, Segment { start: from, len: to - from, source });
                    }
                    Op::Punch(from, to) => {
                        model[from as usize..to as usize].fill(0);
                        punch(&mut segments, from, to);
                    }
                }
                prop_assert_eq!(render(&segments), &model[..]);
                join_inline(&mut segments);
                prop_assert_eq!(render(&segments), &model[..]);
                let after = Extent { truncations: 0, segments: segments.clone() };
                if segments.len() <= SEGMENTS_MAX {
                    check(&after, SIZE).unwrap();
                }
                delta.gone(&before);
                delta.come(&after);
            }
            let mut whole = Delta::default();
            whole.come(&Extent { truncations: 0, segments: segments.clone() });
            prop_assert_eq!(delta.allocated, whole.allocated);
            prop_assert_eq!(delta.refs(), whole.refs());
            punch(&mut segments, cut, SIZE);
            prop_assert!(segments.iter().all(|s| end(s) <= cut));
            let from = cut / 2;
            let part: u32 = spans(&segments, from, SIZE).iter().map(|s| match s {
                Span::Hole(len) | Span::Part { len, .. } => *len,
            }).sum();
            prop_assert_eq!(part, SIZE - from);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            use crate::fs::row::Row;
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = 1; }
            if let Ok(extent) = Extent::decode(&bytes) {
                let _ = check(&extent, 4096);
            }
        }
    }

    #[test]
    fn lying_records_are_corrupt() {
        let inline = |start, len, n: usize| Segment {
            start,
            len,
            source: Source::Inline(vec![1; n].into()),
        };
        let chunked =
            |from| Segment { start: 0, len: 8, source: Source::Chunk { chunk: chunk(1), from } };
        let bad = [
            vec![inline(0, 4, 3)],
            vec![inline(0, 0, 0)],
            vec![inline(4, 4, 4), inline(6, 4, 4)],
            vec![inline(62, 4, 4)],
            vec![chunked(SIZE - 7)],
            vec![chunked(u32::MAX)],
            (0..17).map(|i| inline(i, 1, 1)).collect(),
        ];
        for segments in bad {
            assert!(
                check(&Extent { truncations: 0, segments: segments.clone() }, SIZE).is_err(),
                "{segments:?}"
            );
        }
        check(&Extent { truncations: 0, segments: vec![chunked(SIZE - 8)] }, SIZE).unwrap();
    }

    #[test]
    fn zeros_are_seen_at_any_length() {
        for len in [0, 1, 255, 256, 257, 5000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            if let Some(last) = bytes.last_mut() {
                *last = 1;
                assert!(!is_zero(&bytes));
            }
        }
    }
}
