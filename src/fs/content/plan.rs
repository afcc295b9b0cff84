//! Plans a flush of dirty data over an extent: which bytes are inlined in the batch, which go to a
//! pack, and when the extent is rewritten as a whole. Pure, except that a rewrite asks for the data
//! of old chunks.

use super::segments::{self, INLINE_BYTES_MAX, SEGMENTS_MAX, Span};
use crate::chunk::ChunkRef;
use crate::fs::row::{Segment, Source};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;

/// The urgency of a flush. It decides where small data goes, and how long packs wait for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A caller waits for this file: small data goes into the batch, so that a lone fsync is one
    /// PUT, and packs are closed at once.
    Now,
    /// A caller waits for every file, or writers wait for the memory: small data goes as in the
    /// background, but no pack waits for more than the data in flight.
    Soon,
    /// No caller waits: only data too small for a chunk of its own stays in the database, and packs
    /// wait a short while to be filled.
    Background,
}

/// The bytes that may be inlined in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inline {
    Small,
    /// Only those that are not worth a chunk.
    Tiny,
    /// None: inline data moves to a pack.
    Nothing,
}

/// A shorter run always stays inside the database: the overhead of a chunk would be a good part of
/// its size.
pub const CHUNK_BYTES_MIN: usize = 4 << 10;
/// Most bytes that one flush inlines when a caller waits: beyond that, the PUT of a pack costs less
/// than sending the bytes through log and compaction.
const WAITED_INLINE_MAX: usize = 64 << 10;
const BACKGROUND_INLINE_MAX: usize = 256 << 10;

/// The bytes that a flush may still inline in its batch.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    inline: Inline,
    left: usize,
}

impl Allowance {
    /// `dirty`: all bytes that the flush takes.
    pub fn new(urgency: Urgency, dirty: u64) -> Self {
        if urgency == Urgency::Now && dirty <= WAITED_INLINE_MAX as u64 {
            Self { inline: Inline::Small, left: WAITED_INLINE_MAX }
        } else {
            Self { inline: Inline::Tiny, left: BACKGROUND_INLINE_MAX }
        }
    }

    /// For the migration of inline data.
    pub fn nothing() -> Self {
        Self { inline: Inline::Nothing, left: 0 }
    }

    fn inline(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.left && (self.inline == Inline::Small || bytes < CHUNK_BYTES_MIN);
        if fits {
            self.left -= bytes;
        }
        fits
    }
}

/// A part of the new extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentPart {
    Ready(Segment),
    /// Bytes that go to a pack first.
    Pack {
        start: u32,
        bytes: Bytes,
    },
}

impl ExtentPart {
    fn start(&self) -> u32 {
        match self {
            Self::Ready(segment) => segment.start,
            Self::Pack { start, .. } => *start,
        }
    }
}

/// The plan for a new extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    Parts(Vec<ExtentPart>),
    /// Too many parts: rewrite these segments as a whole. The chunks they need are read first.
    Rewrite(Vec<Segment>),
}

fn inline(start: u32, bytes: Bytes) -> Segment {
    Segment {
        start,
        len: u32::try_from(bytes.len()).expect("an extent is at most 1 MiB"),
        source: Source::Inline(bytes),
    }
}

/// Puts `runs` over `old`.
pub fn overlay(old: &[Segment], runs: Vec<(u32, Bytes)>, allowance: &mut Allowance) -> Plan {
    let mut merged = old.to_vec();
    let mut fresh = Vec::new();
    for (start, bytes) in runs {
        let stop = start + u32::try_from(bytes.len()).expect("an extent is at most 1 MiB");
        if segments::is_zero(&bytes) {
            segments::punch(&mut merged, start, stop);
        } else {
            if !allowance.inline(bytes.len()) {
                fresh.push((start, stop));
            }
            // New bytes are inline segments until it is decided which of them go to a pack.
            segments::put(&mut merged, inline(start, bytes));
        }
    }
    decide(merged, &fresh, allowance)
}

/// Which inline segments go to a pack: those in `fresh`, and all when there are too many bytes of
/// them.
fn decide(mut merged: Vec<Segment>, fresh: &[(u32, u32)], allowance: &Allowance) -> Plan {
    let is_fresh =
        |s: &Segment| fresh.iter().any(|(from, to)| s.start >= *from && segments::end(s) <= *to);
    let kept: usize = merged
        .iter()
        .filter(|s| {
            matches!(s.source, Source::Inline(_))
                && (allowance.inline == Inline::Nothing || !is_fresh(s))
        })
        .map(|s| s.len as usize)
        .sum();
    if kept > INLINE_BYTES_MAX || allowance.inline == Inline::Nothing {
        segments::join_inline(&mut merged);
        let migrates = |s: &Segment| {
            kept > INLINE_BYTES_MAX || s.len as usize >= CHUNK_BYTES_MIN || is_fresh(s)
        };
        return limit(parts(merged, migrates));
    }
    // Fresh segments and old ones that touch stay separate: joining them would copy much data to
    // save one small segment.
    let mut parts = parts(merged, is_fresh);
    join_ready(&mut parts);
    limit(parts)
}

fn parts(merged: Vec<Segment>, packs: impl Fn(&Segment) -> bool) -> Vec<ExtentPart> {
    let part = |segment: Segment| match segment.source {
        Source::Inline(ref bytes) if packs(&segment) => {
            ExtentPart::Pack { start: segment.start, bytes: bytes.clone() }
        }
        _ => ExtentPart::Ready(segment),
    };
    merged.into_iter().map(part).collect()
}

/// Joins inline segments that touch, between the parts that go to packs.
fn join_ready(parts: &mut Vec<ExtentPart>) {
    let mut out = Vec::with_capacity(parts.len());
    let mut ready: Vec<Segment> = Vec::new();
    for part in parts.drain(..) {
        match part {
            ExtentPart::Ready(segment) => ready.push(segment),
            pack @ ExtentPart::Pack { .. } => {
                segments::join_inline(&mut ready);
                out.extend(ready.drain(..).map(ExtentPart::Ready));
                out.push(pack);
            }
        }
    }
    segments::join_inline(&mut ready);
    out.extend(ready.into_iter().map(ExtentPart::Ready));
    *parts = out;
}

fn limit(parts: Vec<ExtentPart>) -> Plan {
    if parts.len() <= SEGMENTS_MAX {
        return Plan::Parts(parts);
    }
    let segment = |part| match part {
        ExtentPart::Ready(segment) => segment,
        ExtentPart::Pack { start, bytes } => inline(start, bytes),
    };
    Plan::Rewrite(parts.into_iter().map(segment).collect())
}

/// The chunks that a rewrite reads.
pub fn chunks_of(segments: &[Segment]) -> Vec<ChunkRef> {
    let chunk = |s: &Segment| match &s.source {
        Source::Chunk { chunk, .. } => Some(*chunk),
        Source::Inline(_) => None,
    };
    let mut chunks: Vec<_> = segments.iter().filter_map(chunk).collect();
    chunks.dedup_by_key(|c| c.hash);
    chunks
}

/// Segments as few whole pieces of data; `None` when a chunk is not among `data`.
pub fn rewrite(
    segments: &[Segment],
    data: &HashMap<crate::types::ChunkHash, Bytes>,
) -> Option<Vec<ExtentPart>> {
    let (from, to) = (segments.first()?.start, segments::end(segments.last()?));
    let mut runs: Vec<(u32, BytesMut)> = Vec::new();
    let mut at = from;
    for span in segments::spans(segments, from, to) {
        match span {
            Span::Hole(len) => at += len,
            Span::Part { segment, skip, len } => {
                let bytes = match &segment.source {
                    Source::Inline(bytes) => bytes.get(skip as usize..(skip + len) as usize)?,
                    Source::Chunk { chunk, from } => data
                        .get(&chunk.hash)?
                        .get((from + skip) as usize..(from + skip + len) as usize)?,
                };
                match runs.last_mut() {
                    Some((start, run)) if *start as usize + run.len() == at as usize => {
                        run.extend_from_slice(bytes);
                    }
                    _ => runs.push((at, BytesMut::from(bytes))),
                }
                at += len;
            }
        }
    }
    if runs.len() > SEGMENTS_MAX {
        runs = vec![fill(runs, from, to)];
    }
    Some(
        runs.into_iter()
            .map(|(start, bytes)| ExtentPart::Pack { start, bytes: bytes.freeze() })
            .collect(),
    )
}

/// Joins runs into one: the holes between become zeros.
fn fill(runs: Vec<(u32, BytesMut)>, from: u32, to: u32) -> (u32, BytesMut) {
    let mut all = BytesMut::zeroed((to - from) as usize);
    for (start, bytes) in runs {
        let at = (start - from) as usize;
        all[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    (from, all)
}

/// Returns the segments once the packed parts have their chunks, given in the order of the parts.
/// `None` when there are too few.
pub fn finish(
    parts: Vec<ExtentPart>,
    chunks: &mut impl Iterator<Item = ChunkRef>,
) -> Option<Vec<Segment>> {
    debug_assert!(parts.is_sorted_by_key(ExtentPart::start));
    parts
        .into_iter()
        .map(|part| match part {
            ExtentPart::Ready(segment) => Some(segment),
            ExtentPart::Pack { start, bytes } => {
                let chunk = chunks.next()?;
                Some(Segment {
                    start,
                    len: u32::try_from(bytes.len()).ok()?,
                    source: Source::Chunk { chunk, from: 0 },
                })
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Codec;
    use crate::fs::row::Extent;
    use crate::types::{ChunkHash, Epoch, Incarnation, PackId};
    use proptest::prelude::*;

    const SIZE: u32 = 64 << 10;

    #[derive(Default)]
    struct Packs {
        data: HashMap<ChunkHash, Bytes>,
    }

    impl Packs {
        fn store(&mut self, bytes: &Bytes) -> ChunkRef {
            let hash = ChunkHash(*blake3::hash(bytes).as_bytes());
            self.data.insert(hash, bytes.clone());
            let pack =
                PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(1), seq: 1 };
            ChunkRef {
                hash,
                pack,
                offset: 0,
                stored_len: 1,
                raw_len: bytes.len() as u32,
                codec: Codec::None,
            }
        }

        fn apply(
            &mut self,
            old: &[Segment],
            runs: Vec<(u32, Bytes)>,
            urgency: Option<Urgency>,
        ) -> Vec<Segment> {
            let dirty = runs.iter().map(|(_, b)| b.len() as u64).sum();
            let mut allowance =
                urgency.map_or(Allowance::nothing(), |urgency| Allowance::new(urgency, dirty));
            let parts = match overlay(old, runs, &mut allowance) {
                Plan::Parts(parts) => parts,
                Plan::Rewrite(segments) => rewrite(&segments, &self.data).unwrap(),
            };
            let mut chunks = vec![];
            for part in &parts {
                if let ExtentPart::Pack { bytes, .. } = part {
                    chunks.push(self.store(bytes));
                }
            }
            finish(parts, &mut chunks.into_iter()).unwrap()
        }

        fn render(&self, extent: &[Segment]) -> Vec<u8> {
            let mut out = vec![];
            for span in segments::spans(extent, 0, SIZE) {
                match span {
                    Span::Hole(len) => out.extend(vec![0; len as usize]),
                    Span::Part { segment, skip, len } => out.extend_from_slice(&match &segment
                        .source
                    {
                        Source::Inline(bytes) => bytes.slice(skip as usize..(skip + len) as usize),
                        Source::Chunk { chunk, from } => self.data[&chunk.hash]
                            .slice((from + skip) as usize..(from + skip + len) as usize),
                    }),
                }
            }
            out
        }
    }

    fn write() -> impl Strategy<Value = (u32, Vec<u8>)> {
        let len = prop_oneof![1..64_u32, 4000..4200_u32, 1..20_000_u32];
        (0..SIZE, len, any::<u8>())
            .prop_map(|(at, len, byte)| (at, vec![byte % 4; len.min(SIZE - at) as usize]))
    }

    fn is_inline(segment: &Segment) -> bool {
        matches!(segment.source, Source::Inline(_))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
        #[test]
        fn a_record_keeps_its_limits_and_its_bytes(
            writes in prop::collection::vec((write(), 0..3_u8), 1..80)
        ) {
            let mut packs = Packs::default();
            let (mut extent, mut model) = (vec![], vec![0; SIZE as usize]);
            for ((at, bytes), urgency) in writes {
                let urgency =
                    [Some(Urgency::Now), Some(Urgency::Background), None][urgency as usize];
                model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                extent = packs.apply(&extent, vec![(at, bytes.into())], urgency);
                let checked = Extent { truncations: 0, segments: extent.clone() };
                segments::check(&checked, SIZE).unwrap();
                prop_assert!(segments::inline_bytes(&extent) <= INLINE_BYTES_MAX);
                prop_assert!(packs.render(&extent) == model);
            }
            let moved = packs.apply(&extent, vec![], None);
            prop_assert!(packs.render(&moved) == model);
            let large = |s: &&Segment| s.len as usize >= CHUNK_BYTES_MIN && is_inline(s);
            prop_assert_eq!(moved.iter().filter(large).count(), 0);
        }
    }

    #[test]
    fn a_lone_small_write_stays_inside_the_batch_and_a_large_one_does_not() {
        let data = |n: usize| vec![(0, Bytes::from(vec![1; n]))];
        let is_inline = |plan| match plan {
            Plan::Parts(parts) => matches!(&parts[..], [ExtentPart::Ready(s)] if is_inline(s)),
            _ => false,
        };
        assert!(is_inline(overlay(&[], data(4096), &mut Allowance::new(Urgency::Now, 4096))));
        assert!(!is_inline(overlay(&[], data(20_000), &mut Allowance::new(Urgency::Now, 20_000))));
        assert!(!is_inline(overlay(&[], data(4096), &mut Allowance::new(Urgency::Now, 1 << 20))));
        assert!(!is_inline(overlay(
            &[],
            data(4096),
            &mut Allowance::new(Urgency::Background, 4096)
        )));
        assert!(is_inline(overlay(
            &[],
            data(4095),
            &mut Allowance::new(Urgency::Background, 4095)
        )));
    }

    #[test]
    fn a_whole_new_record_is_not_copied_and_zeros_are_a_hole() {
        let bytes = Bytes::from(vec![3; SIZE as usize]);
        let plan = overlay(
            &[],
            vec![(0, bytes.clone())],
            &mut Allowance::new(Urgency::Background, 1 << 20),
        );
        let Plan::Parts(parts) = plan else { panic!() };
        let [ExtentPart::Pack { start: 0, bytes: packed }] = &parts[..] else {
            panic!("{parts:?}")
        };
        assert_eq!(packed.as_ptr(), bytes.as_ptr());
        let old = [inline(10, Bytes::from_static(b"abc"))];
        let zero = vec![(0, Bytes::from(vec![0; SIZE as usize]))];
        assert_eq!(overlay(&old, zero, &mut Allowance::new(Urgency::Now, 1)), Plan::Parts(vec![]));
    }
}
