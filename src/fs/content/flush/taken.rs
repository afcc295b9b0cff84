//! The dirty data that one step of a flush takes.

use crate::chunk::PACK_BYTES;
use crate::fs::content::segments::{INLINE_BYTES_MAX, SEGMENTS_MAX};
use crate::fs::inode::Node;
use crate::fs::inode::{Buffer, Pieces};
use crate::fs::row::Inode;

/// Most bytes of rows in one batch: more is flushed in several, because the committer refuses a
/// batch that its queue cannot hold. It always holds a batch of this size, beside what
/// [`Committer::ready`](crate::fs::committer::Committer::ready) lets others queue before; so does a
/// replay.
pub(super) const BATCH_ROWS_MAX: usize = 32 << 20;

/// Bytes that a segment takes in its row beside inline data: a chunk's reference.
const SEGMENT_BYTES_MAX: usize = 96;

/// Which of the dirty extents a flush takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs::content) enum Select {
    All,
    /// Only extents written from end to end, if they are most of the data: the last extent of a
    /// file that is being appended to waits until it is full.
    Whole,
}

/// The dirty data that a flush works on.
pub(super) struct Taken {
    pub(super) buffer: Buffer,
    pub(super) row: Inode,
    pub(super) version: u64,
    /// Extents from this one on are not in the database.
    pub(super) absent_from: u64,
}

pub(super) fn take(node: &Node, select: Select) -> Option<Box<Taken>> {
    // Read together with the version: a row from before a truncation would bring back the data that
    // was cut off.
    let shown = node.row.read();
    let mut state = node.content.state();
    let row = shown.clone();
    let size = 1_u64 << row.record_bits;
    let whole = |pieces: &Pieces| pieces.is_whole(1 << row.record_bits);
    let mostly_whole = select == Select::Whole && {
        let (all, full) = state
            .dirty()
            .extents()
            .fold((0_u64, 0_u64), |(all, full), (_, p)| (all + 1, full + u64::from(whole(p))));
        full * 2 >= all
    };
    // Take only whole packs of a long write: a remainder would be a small pack of its own, or have
    // to wait.
    let most = if mostly_whole { whole_packs(state.dirty().charge()) } else { u64::MAX };
    let (mut bytes, mut rows) = (0, 0);
    let buffer = state.take(|_, pieces| {
        let wanted = rows < BATCH_ROWS_MAX && (!mostly_whole || (whole(pieces) && bytes < most));
        if wanted {
            bytes += pieces.bytes();
            rows += row_max(whole(pieces), row.record_bits);
        }
        wanted
    });
    let buffer = buffer.clone();
    if buffer.is_empty() {
        return None;
    }
    let known = state.known(&row);
    // An extent past the end is in the database only where a truncation left a mask.
    let absent_from = if row.masks.is_empty() { known.size.div_ceil(size) } else { u64::MAX };
    let version = state.version;
    Some(Box::new(Taken { buffer, row, version, absent_from }))
}

/// Most bytes that an extent's row takes in a batch: an extent written from end to end goes to
/// packs.
fn row_max(whole: bool, bits: u8) -> usize {
    let inline = if whole { 0 } else { INLINE_BYTES_MAX.min(1 << bits) };
    inline + SEGMENTS_MAX * SEGMENT_BYTES_MAX
}

/// The bytes that fill whole packs; all of them when they do not fill one.
fn whole_packs(bytes: u64) -> u64 {
    let pack = u64::from(PACK_BYTES);
    if bytes < pack { u64::MAX } else { bytes - bytes % pack }
}
