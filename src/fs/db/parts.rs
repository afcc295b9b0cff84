//! Parts of large tables: where a second block is missed near a first one, the part of the table
//! around them comes with one request. Rows of files that were made together lie together, and a
//! block holds only some thirty of them. One miss alone brings no more than its block.
//!
//! Tables never change, so a part is as good as the object; the engine checks each block's sum.

use bytes::Bytes;
use parking_lot::Mutex;
use slatedb::object_store::ObjectMeta;
use slatedb::object_store::path::Path;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

const PART_BYTES: u64 = 128 << 10;
/// A longer read is not for a block: it asks for what it needs.
const SMALL_BYTES: u64 = 32 << 10;
/// Misses that are remembered.
const MISSES_MAX: usize = 64;

/// A table, and the number of the part in it.
pub(super) type PartId = (Path, u64);
type ReadLock = Arc<tokio::sync::Mutex<()>>;

/// The bytes of a part, and of which object.
#[derive(Clone)]
pub(super) struct Part {
    pub meta: ObjectMeta,
    pub start: u64,
    pub bytes: Bytes,
}

/// The way in which a read is answered.
pub(super) enum PartLookup {
    Here(Part),
    /// The part is read by one task at a time.
    Missed(ReadLock),
    /// Read no more than was asked for.
    Alone,
}

/// Parts in memory, shared by all databases of a process.
pub(super) struct Parts {
    bytes_max: usize,
    state: Mutex<PartCache>,
}

#[derive(Default)]
struct PartCache {
    missed: VecDeque<PartId>,
    /// The one used last at the end.
    kept: VecDeque<(PartId, Part)>,
    reading: HashMap<PartId, ReadLock>,
}

impl PartCache {
    fn kept(&mut self, part: &PartId) -> Option<Part> {
        let at = self.kept.iter().position(|(id, _)| id == part)?;
        let used = self.kept.remove(at)?;
        let found = used.1.clone();
        self.kept.push_back(used);
        Some(found)
    }
}

impl Parts {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default() }
    }

    /// The part that a small read is in.
    pub fn id(at: &Path, wanted: &Range<u64>) -> Option<PartId> {
        let number = wanted.start / PART_BYTES;
        let is_one = wanted.end > wanted.start && (wanted.end - 1) / PART_BYTES == number;
        (is_one && wanted.end - wanted.start <= SMALL_BYTES).then(|| (at.clone(), number))
    }

    pub fn range((_, number): &PartId) -> Range<u64> {
        number * PART_BYTES..(number + 1) * PART_BYTES
    }

    pub fn find(&self, part: &PartId) -> PartLookup {
        let mut state = self.state.lock();
        if let Some(found) = state.kept(part) {
            return PartLookup::Here(found);
        }
        if self.bytes_max < PART_BYTES as usize {
            return PartLookup::Alone;
        }
        if state.missed.contains(part) {
            return PartLookup::Missed(state.reading.entry(part.clone()).or_default().clone());
        }
        if state.missed.len() >= MISSES_MAX {
            state.missed.pop_front();
        }
        state.missed.push_back(part.clone());
        PartLookup::Alone
    }

    /// The part, if the task before has read it.
    pub fn again(&self, part: &PartId) -> Option<Part> {
        self.state.lock().kept(part)
    }

    pub fn put(&self, id: PartId, part: Part) {
        let mut state = self.state.lock();
        state.kept.retain(|(kept, _)| *kept != id);
        state.kept.push_back((id, part));
        while state.kept.len() > self.bytes_max / PART_BYTES as usize {
            state.kept.pop_front();
        }
    }

    /// Drops a turn that nobody waits for.
    pub fn done(&self, part: &PartId, turn: ReadLock) {
        let mut state = self.state.lock();
        drop(turn);
        if state.reading.get(part).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            state.reading.remove(part);
        }
    }

    /// Drops the copies of a table's parts: a block of one did not match its sum.
    pub fn forget(&self, at: &Path) {
        self.state.lock().kept.retain(|((path, _), _)| path != at);
    }
}
