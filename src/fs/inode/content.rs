//! The part of a file's content that is in memory: buffered data, and the state in the database.

use super::buffer::{Buffer, Pieces};
use crate::fs::FsError;
use crate::fs::committer::Ticket;
use crate::fs::row::Inode;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;

/// One file's data that is not in the database yet. Its own lock is taken last and never held
/// across an await.
#[derive(Default)]
pub struct Content {
    state: Mutex<ContentState>,
    /// Held by the background task that changes the file's extents: a flush, reclaim or migration.
    /// Taken before the node's lock.
    pub(in crate::fs) turn: Arc<tokio::sync::Mutex<()>>,
}

/// A file's size and allocation in the database while more is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct StoredSize {
    pub size: u64,
    pub allocated: u64,
}

#[derive(Default)]
pub(in crate::fs) struct ContentState {
    /// Set while anything is buffered.
    known: Option<StoredSize>,
    /// Not taken by a flush yet.
    dirty: Buffer,
    /// Taken by the flush in flight; older than `dirty`.
    flushing: Buffer,
    /// Counts changes of the file's extents and truncations: data read before such a change is not
    /// put into a cache after it, and a flush that was prepared before it starts over.
    pub version: u64,
    /// Counts accepted writes, and how many of them the submitted batches hold.
    accepted: u64,
    taken: u64,
    flushed: u64,
    /// The batch that holds the newest flushed data.
    last: Option<Ticket>,
    /// Counts flushes begun, and the outcome of the last that failed.
    attempt: u64,
    failed: Option<(u64, FsError)>,
    /// Set when data was lost for good: reported by the next call that promises its caller the data
    /// (R17).
    lost: Option<FsError>,
    pub read_ahead: ReadAhead,
}

/// Room and reserved space that a change frees (or, if negative, needs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fs) struct Freed {
    pub charge: i64,
    pub reserved: i64,
}

/// A waiter's position: what had been accepted and attempted before it waited for a flush.
#[derive(Clone, Copy, Debug)]
pub(in crate::fs) struct Wanted {
    accepted: u64,
    attempt: u64,
}

impl Content {
    pub(in crate::fs) fn state(&self) -> MutexGuard<'_, ContentState> {
        self.state.lock()
    }

    /// See [`super::Node::stored`].
    pub fn stored(&self, row: &Inode) -> Inode {
        let state = self.state.lock();
        match state.known {
            Some(known) => Inode { size: known.size, allocated: known.allocated, ..row.clone() },
            None => row.clone(),
        }
    }

    /// Returns whether anything is waiting to be flushed (the node must stay in memory).
    pub fn is_dirty(&self) -> bool {
        let state = self.state.lock();
        !state.is_clean() || state.lost.is_some()
    }
}

impl ContentState {
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.flushing.is_empty()
    }

    pub fn dirty(&self) -> &Buffer {
        &self.dirty
    }

    pub fn flushing(&self) -> &Buffer {
        &self.flushing
    }

    /// The database's figures of a file that is presented as `row`.
    pub fn known(&self, row: &Inode) -> StoredSize {
        self.known.unwrap_or(StoredSize { size: row.size, allocated: row.allocated })
    }

    /// Applies `change` to the buffered data and returns what that freed.
    fn change(&mut self, change: impl FnOnce(&mut Self)) -> Freed {
        let sum = |s: &Self| {
            (s.dirty.charge() + s.flushing.charge(), s.dirty.reserved() + s.flushing.reserved())
        };
        let before = sum(self);
        change(self);
        let after = sum(self);
        Freed {
            charge: before.0.cast_signed() - after.0.cast_signed(),
            reserved: before.1.cast_signed() - after.1.cast_signed(),
        }
    }

    /// Takes a write in; `reserved` bytes were reserved for it. Raises `row.size` and
    /// `row.allocated`.
    pub fn write(&mut self, row: &mut Inode, offset: u64, data: &Bytes, reserved: u64) -> Freed {
        self.known.get_or_insert(StoredSize { size: row.size, allocated: row.allocated });
        self.accepted += 1;
        row.size = row.size.max(offset + data.len() as u64);
        row.allocated += reserved;
        let bits = row.record_bits;
        self.change(|s| s.dirty.write(offset, data, bits, reserved))
    }

    /// Takes the data to be flushed. The caller has the turn, so nothing is in flight.
    pub fn take(&mut self, wanted: impl FnMut(u64, &Pieces) -> bool) -> &Buffer {
        debug_assert!(self.flushing.is_empty(), "one flush in flight");
        self.attempt += 1;
        self.flushing = self.dirty.take(wanted);
        if self.dirty.is_empty() {
            self.taken = self.accepted;
        }
        &self.flushing
    }

    /// Puts back the data of a failed flush, below data that was written meanwhile.
    pub fn put_back(&mut self, error: Option<FsError>) -> Freed {
        let freed = self.change(|s| {
            let taken = std::mem::take(&mut s.flushing);
            s.dirty.over(taken);
        });
        self.taken = self.flushed;
        if let Some(error) = error {
            self.failed = Some((self.attempt, error));
        }
        freed
    }

    /// Drops an extent in flight whose data can never be written; the next waiter gets the error.
    pub fn lose(&mut self, extent: u64, error: FsError) -> Freed {
        self.lost.get_or_insert(error);
        self.change(|s| s.flushing.remove(extent))
    }

    /// The database's figures once the flush in flight is submitted with this
    /// change of its allocation.
    pub fn known_after(&self, row: &Inode, allocated: i64) -> Result<StoredSize, FsError> {
        let known = self.known(row);
        let allocated = known.allocated.checked_add_signed(allocated).ok_or_else(|| {
            FsError::Corrupt("a file's allocated bytes would be negative (R4)".to_owned())
        })?;
        let size = if self.dirty.is_empty() {
            row.size
        } else {
            known.size.max(self.flushing.end(row.record_bits)).min(row.size)
        };
        Ok(StoredSize { size, allocated })
    }

    /// Notes that the flush in flight was submitted. Corrects `row.allocated`, which counted the
    /// reservation.
    pub fn submitted(&mut self, row: &mut Inode, known: StoredSize, ticket: Ticket) -> Freed {
        self.version += 1;
        self.flushed = self.flushed.max(self.taken);
        self.last = Some(ticket);
        self.failed = None;
        let freed = self.change(|s| s.flushing = Buffer::default());
        self.set_known(row, known);
        freed
    }

    /// Applies a change of extents by a batch that took no buffered data (reclaim, migration).
    pub fn changed(&mut self, row: &mut Inode, known: StoredSize) {
        self.version += 1;
        self.set_known(row, known);
    }

    fn set_known(&mut self, row: &mut Inode, known: StoredSize) {
        row.allocated = known.allocated + self.dirty.reserved() + self.flushing.reserved();
        self.known = (!self.is_clean()).then_some(known);
    }

    /// Returns whether anything before `size` is still to be flushed.
    pub fn buffers_below(&self, size: u64, bits: u8) -> bool {
        self.dirty.begins_below(size, bits) || self.flushing.begins_below(size, bits)
    }

    /// Applies an explicit change of size whose batch is submitted: data buffered past it is gone.
    /// Sets `row`'s size and allocation.
    pub fn resize(&mut self, row: &mut Inode, size: u64, known: StoredSize) -> Freed {
        self.version += 1;
        let bits = row.record_bits;
        let freed = self.change(|s| {
            s.dirty.truncate(size, bits);
            s.flushing.truncate(size, bits);
        });
        row.size = size;
        self.set_known(row, known);
        if self.is_clean() {
            self.flushed = self.accepted;
            self.taken = self.accepted;
        }
        freed
    }

    /// The position that a flush must cover for a caller that asks now.
    pub fn wanted(&self) -> Wanted {
        Wanted { accepted: self.accepted, attempt: self.attempt }
    }

    /// Returns whether submitted batches hold everything accepted up to `wanted`.
    pub fn has_flushed(&self, wanted: Wanted) -> bool {
        self.flushed >= wanted.accepted
    }

    /// The result of another caller's flush that began after the waiter came, if there is one.
    pub fn answered(&self, wanted: Wanted) -> Option<Result<Option<Ticket>, FsError>> {
        if self.has_flushed(wanted) {
            return Some(Ok(self.last));
        }
        match &self.failed {
            Some((attempt, error)) if *attempt > wanted.attempt => Some(Err(error.clone())),
            _ => None,
        }
    }

    /// The batch whose durability covers what was flushed.
    pub fn last(&self) -> Option<Ticket> {
        self.last
    }

    /// Takes the error about lost data, for the one call that reports it.
    pub fn take_lost(&mut self) -> Option<FsError> {
        self.lost.take()
    }
}

/// Detects sequential reads of a file.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::fs) struct ReadAhead {
    /// Offset at which the next read is expected.
    next: u64,
    /// Read-ahead window in bytes; 0: the file is not read sequentially.
    window: u64,
    /// Fetched, or being fetched, up to here.
    ahead: u64,
}

const WINDOW_FIRST: u64 = 1 << 20;
/// At 20 ms a request this keeps 800 MB/s in flight.
const WINDOW_MAX: u64 = 16 << 20;
/// The window is refilled in steps that end at multiples of this: few, large requests, each within
/// one pack where the file was written in order.
const STEP: u64 = 4 << 20;
/// Reads of one stream arrive in any order: a client keeps several in flight.
const SLACK: u64 = 4 << 20;

impl ReadAhead {
    /// Notes a read and returns the range to read ahead.
    pub fn saw(&mut self, offset: u64, end: u64, size: u64) -> Option<std::ops::Range<u64>> {
        let in_order = offset + SLACK >= self.next && offset <= self.next + SLACK;
        if !in_order {
            *self = Self { next: end, window: 0, ahead: end };
            return None;
        }
        if end > self.next {
            self.next = end;
            self.window = (self.window * 2).clamp(WINDOW_FIRST, WINDOW_MAX);
        }
        self.ahead = self.ahead.max(self.next);
        let reach = (self.next + self.window).min(size);
        let to = if reach == size || self.window < STEP { reach } else { reach / STEP * STEP };
        if to <= self.ahead {
            return None;
        }
        let range = self.ahead..to;
        self.ahead = to;
        Some(range)
    }

    /// Notes that there was no room to read ahead from here on: it is tried again.
    pub fn retreat(&mut self, to: u64) {
        self.ahead = self.ahead.min(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_in_order_is_run_ahead_of_and_one_at_random_is_not() {
        const SIZE: u64 = 1 << 30;
        let mut read_ahead = ReadAhead::default();
        let mut fetched = 0;
        for at in (0..64 << 20).step_by(1 << 20) {
            if let Some(range) = read_ahead.saw(at, at + (1 << 20), SIZE) {
                assert!(range.start >= fetched, "nothing is fetched twice");
                fetched = range.end;
            }
        }
        assert!(fetched >= (64 << 20) + WINDOW_MAX - STEP);
        read_ahead.retreat(fetched - STEP);
        let again = read_ahead.saw(64 << 20, 65 << 20, SIZE).expect("the range is tried again");
        assert_eq!(again.start, fetched - STEP);
        let mut at = 12345_u64;
        for _ in 0..100 {
            at = (at.wrapping_mul(6364136223846793005).wrapping_add(1)) % SIZE;
            let jump = ReadAhead { next: 0, window: 0, ahead: 0 };
            let mut other = jump;
            if at > SLACK {
                assert_eq!(other.saw(at, at + 4096, SIZE), None);
            }
        }
        assert_eq!(
            ReadAhead::default().saw(0, 4096, 4096),
            None,
            "a file read at once needs nothing more"
        );
    }
}
