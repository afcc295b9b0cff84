//! The content of files: reads, buffered writes, flushes, truncation, reclaim.
//!
//! Nouns: an **extent** is a fixed-size part of a file, one row of `X`; a **segment** is a part of
//! an extent, inline bytes or a slice of a chunk; a **piece** is received bytes that are not in the
//! database yet; a **truncation mask** hides the extents past a new end (R5); an **orphan** is a
//! data id, or part of one, whose extents are to be deleted.
//!
//! Invariants:
//! - A read returns buffered data over data being flushed over the extents. Data leaves the buffer
//!   in the same step that makes its batch visible.
//! - The size in the database is never ahead of what writes have put there: a batch holds
//!   [`Node::stored`], not the presented row.
//! - An inode's `allocated` in the database is the sum of its rows' segments, masked ones included,
//!   and the superblock's the sum over inodes. The presented figures add what is reserved.
//! - Every batch that changes rows of `X` carries the references of the segments that came and
//!   went; rows change only under the inode's lock, or when no inode refers to their data id.
//! - Bounded: dirty bytes and decoded extents by [`ContentMemory`], for the process, segments and
//!   inline bytes of an extent, rows of a
//!   batch, flushes at once, masks of an inode.
//!
//! A crash loses unflushed data (R17: the client sends it again, or it was never synced), may leave
//! chunks in packs that nothing refers to (swept when their pack is settled, R9), and leaves `O`
//! rows from which reclaim goes on. It never leaves a row that refers to a pack not stored.
//!
//! Not here: permissions, times, and the durability that an answer waits for; those are the
//! namespace's.

mod copied;
mod extents;
mod flush;
mod migrate;
mod plan;
mod read;
mod recall;
mod reclaim;
mod segments;
mod space;
mod tasks;
#[cfg(test)]
mod tests;
mod truncate;

pub use copied::Copied;
pub use segments::punch;
pub use space::Admission;
pub use truncate::{Release, Resize};

use super::FsError;
use super::api::FILE_BYTES_MAX;
use super::committer::{Committer, Ticket};
use super::inode::{Freed, Inodes, Node, by_extent};
use super::key::DataId;
use super::row::Inode;
use crate::chunk::{ChunkStore, Codec, Packer};
use crate::types::PackId;
use bytes::Bytes;
use extents::ExtentCache;
use parking_lot::Mutex;
use plan::Urgency;
use space::{DirtyMemory, Room, Space};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Memory that the data paths of all volumes of a process share.
#[derive(Clone)]
pub struct ContentMemory {
    dirty: Arc<DirtyMemory>,
    extents: ExtentCache,
}

impl ContentMemory {
    pub fn new(dirty_bytes_max: u64, records_bytes: u64) -> Self {
        Self { dirty: DirtyMemory::new(dirty_bytes_max), extents: ExtentCache::new(records_bytes) }
    }
}

/// The data path of one open dataset.
pub struct Contents {
    committer: Arc<Committer>,
    inodes: Arc<Inodes>,
    chunks: ChunkStore,
    packer: Packer,
    flush_interval: Duration,
    extents: extents::Extents,
    space: Space,
    room: Arc<Room>,
    dirty: tasks::DirtyFiles,
    inlined: Mutex<migrate::Inlined>,
    /// Notified when data is to be flushed before the interval ends.
    flush: Arc<Notify>,
    reclaim: Notify,
    migrate: Notify,
    /// Data ids that are being filled and have no inode yet: queued for reclaim, and left alone by
    /// it.
    copying: Mutex<HashSet<DataId>>,
    recall: recall::Recall,
}

impl Contents {
    pub fn new(
        committer: Arc<Committer>,
        inodes: Arc<Inodes>,
        chunks: ChunkStore,
        packer: Packer,
        memory: &ContentMemory,
        flush_interval: Duration,
    ) -> Self {
        let counts = Arc::downgrade(&committer);
        packer.deduplicate_into(Arc::new(move |pack| {
            counts.upgrade().is_some_and(|committer| {
                let usage = committer.usage(pack);
                usage.refs > 0 && !usage.sealed
            })
        }));
        let own = packer.clone();
        committer.refer_only_to(Arc::new(move |pack| own.is_unsettled(pack)));
        let flush = Arc::new(Notify::new());
        Self {
            committer,
            inodes,
            chunks,
            packer,
            flush_interval,
            extents: memory.extents.volume(),
            space: Space::default(),
            room: Arc::new(Room::new(memory.dirty.clone(), &flush)),
            dirty: tasks::DirtyFiles::default(),
            inlined: Mutex::default(),
            flush,
            reclaim: Notify::new(),
            migrate: Notify::new(),
            copying: Mutex::default(),
            recall: recall::Recall::default(),
        }
    }

    /// See [`Fs::seal`](crate::fs::Fs::seal).
    pub async fn seal(&self, packs: &[PackId]) -> Result<(), FsError> {
        let settled: Vec<PackId> =
            packs.iter().copied().filter(|pack| !self.packer.is_unsettled(*pack)).collect();
        let ticket = self.committer.seal(&settled)?;
        self.committer.durable(ticket).await
    }

    pub fn set_quota(&self, bytes: Option<u64>) {
        self.space.set_quota(bytes);
    }

    /// For data that is written from now on.
    pub fn set_codec(&self, codec: Codec) {
        self.packer.set_codec(codec);
    }

    /// Bytes that accepted writes may still need beyond what the superblock counts (R19).
    pub fn reserved(&self) -> u64 {
        self.space.reserved()
    }

    fn allocated(&self) -> u64 {
        self.committer.totals().allocated
    }

    /// Waits for room by bytes, for a write of `bytes`. Called BEFORE the node's lock is taken: the
    /// flush that makes room may need that very lock.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] when the store took nothing for a long while.
    pub async fn admit(&self, bytes: usize) -> Result<Admission, FsError> {
        let bytes = bytes as u64;
        let room = self.room.admit(bytes).await?;
        if self.reserved() > 0 && !self.space.fits(bytes, self.allocated()) {
            // Reservations exceed what will be needed: when space is short they are made exact
            // before a write is refused.
            self.flush_all().await?;
        }
        Ok(room)
    }

    /// Buffers a write: reserves space, raises `row.size` and `row.allocated`. The caller holds the
    /// node's lock, has set the times in `row`, and stores `row` afterwards. Flushes are started
    /// here, never by a COMMIT alone (R22).
    ///
    /// # Errors
    /// [`FsError::NoSpace`] beyond the quota, [`FsError::TooBig`]; nothing has changed then.
    pub async fn write(
        self: &Arc<Self>,
        node: &Arc<Node>,
        row: &mut Inode,
        offset: u64,
        data: Bytes,
        room: Admission,
    ) -> Result<(), FsError> {
        if data.is_empty() {
            return Ok(());
        }
        let len = data.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(FsError::TooBig);
        }
        let reserved = self.reserve(node, row, offset, len).await?;
        let (freed, charge) = {
            let mut state = node.content.state();
            let freed = state.write(row, offset, &data, reserved);
            (freed, state.dirty().charge())
        };
        self.room.change(-freed.charge);
        drop(room);
        self.wrote(node, charge);
        Ok(())
    }

    /// Reserves what a write may allocate (R19).
    async fn reserve(
        &self,
        node: &Node,
        row: &Inode,
        offset: u64,
        len: u64,
    ) -> Result<u64, FsError> {
        let most = node.content.state().dirty().uncovered(offset, len, row.record_bits);
        if self.space.reserve(most, self.allocated()).is_ok() {
            return Ok(most);
        }
        let exact = self.growth(node, row, offset, len).await?.min(most);
        self.space.reserve(exact, self.allocated())?;
        Ok(exact)
    }

    /// Counts the bytes of a range that neither a buffered piece nor an extent covers.
    async fn growth(
        &self,
        node: &Node,
        row: &Inode,
        offset: u64,
        len: u64,
    ) -> Result<u64, FsError> {
        let range = (offset >> row.record_bits)..=((offset + len - 1) >> row.record_bits);
        let extents = self.load(node, row, range).await?;
        let state = node.content.state();
        let mut growth = 0;
        for (n, start, part) in by_extent(offset, len, row.record_bits) {
            let base = extents::visible(&row.masks, n, extents.get(&n).and_then(Option::as_ref));
            let segments = base.map_or(&[][..], |r| &r.segments);
            let holes = |growth: &mut u64, from, to| {
                *growth += segments::spans(segments, from, to)
                    .iter()
                    .map(|s| if let segments::Span::Hole(len) = s { u64::from(*len) } else { 0 })
                    .sum::<u64>();
            };
            let below = |growth: &mut u64, from, to| {
                state.flushing().overlay(n, (from, to), growth, |_, _| {}, holes);
            };
            state.dirty().overlay(n, (start, start + part), &mut growth, |_, _| {}, below);
        }
        Ok(growth)
    }

    /// Returns the room and space that a change of a write buffer freed.
    fn freed(&self, freed: Freed) {
        self.room.change(-freed.charge);
        self.space.release(u64::try_from(freed.reserved).unwrap_or(0));
    }

    /// Flushes every file. When it returns, everything written before the call is covered by the
    /// ticket.
    ///
    /// # Errors
    /// When the store does not take some file's data now; the others are flushed all the same.
    pub async fn flush_all(&self) -> Result<Ticket, FsError> {
        self.flush_dirty(Urgency::Soon).await?;
        Ok(self.committer.last())
    }
}
