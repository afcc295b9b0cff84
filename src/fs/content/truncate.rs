//! Changes a file's size, and releases its content (R5).

use super::Contents;
use super::extents::{decode, visible};
use super::segments::{self, Delta};
use crate::fs::FsError;
use crate::fs::api::FILE_BYTES_MAX;
use crate::fs::committer::Batch;
use crate::fs::inode::Node;
use crate::fs::inode::StoredSize;
use crate::fs::key::{self, DataId, Key};
use crate::fs::row::{Extent, Inode, MASKS_MAX, Orphan, TruncationMask};
use std::sync::Arc;

/// Up to this many extents past a truncation are deleted at once; more are masked and reclaimed in
/// the background.
const DELETE_MAX: usize = 64;
/// Steps of reclaim that a truncation waits for to get a free mask, before its caller is asked to
/// retry.
const RECLAIM_WAITED_STEPS: usize = 8;
/// Flushes of a file while others may write to it, before it is flushed with its lock held.
const FLUSHES_FREE: usize = 8;

/// Most extents that go with the last link, or with a truncate to 0, in its own batch.
pub(super) const RELEASE_MAX: u64 = 4;

/// The way in which a file's extents go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// In the batch: a small file's, which the cache knows.
    Done,
    /// They are an orphan's, to be reclaimed in the background.
    Orphaned,
}

/// A change of size that is in a batch but not in memory yet: dropping it changes nothing.
#[must_use = "once its batch is submitted it must be shown, see Contents::resized"]
pub struct Resize {
    size: u64,
    /// The state in the database once the batch is submitted.
    known: StoredSize,
    /// The data id whose extents changed, and what the cache shall hold of them.
    data: DataId,
    extents: Vec<(u64, Option<Arc<Extent>>)>,
    reclaim: bool,
}

impl Resize {
    /// The row to put into the batch.
    pub fn stored(&self, row: &Inode) -> Inode {
        Inode { size: self.known.size, allocated: self.known.allocated, ..row.clone() }
    }
}

impl Contents {
    /// Decides a change of size, either way (R5): fills `batch`, changes `row`, and nothing else.
    /// `None`: the file has this size already. The caller holds the node's lock throughout, puts
    /// [`Resize::stored`] into `batch`, submits it, and then, without an await in between, calls
    /// [`Self::resized`]. A caller that stops before that, or is refused by the committer, has
    /// changed nothing.
    ///
    /// The size in the database is not ahead of data that is still buffered. A caller that promises
    /// the new size takes the lock with [`Self::lock_flushed`].
    ///
    /// # Errors
    /// [`FsError::Busy`] when there is no mask left and reclaim will take long. Masks may have been
    /// reclaimed, nothing else has changed.
    pub async fn truncate(
        &self,
        node: &Node,
        row: &mut Inode,
        size: u64,
        batch: &mut Batch,
    ) -> Result<Option<Resize>, FsError> {
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooBig);
        }
        if size == row.size {
            return Ok(None);
        }
        if size == 0 {
            return self.empty(node, row, batch).map(Some);
        }
        let mut resize = Resize {
            size,
            known: node.content.state().known(row),
            data: row.data,
            extents: Vec::new(),
            reclaim: false,
        };
        let mut delta = Delta::default();
        if size < row.size && resize.known.allocated > 0 {
            self.make_mask_free(node, row).await?;
            self.trim_boundary(node, row, batch, &mut delta, &mut resize).await?;
            self.drop_behind(node, row, batch, &mut delta, &mut resize).await?;
        }
        // Read only now: reclaim may have changed it above, a flush cannot have (it needs the
        // lock).
        let state = node.content.state();
        let (known, buffered) = (state.known(row), state.buffers_below(size, row.record_bits));
        drop(state);
        let allocated = known.allocated.checked_add_signed(delta.allocated);
        let allocated = allocated.ok_or_else(|| {
            FsError::Corrupt("a file's allocated bytes would be negative (R4)".to_owned())
        })?;
        resize.known =
            StoredSize { size: if buffered { size.min(known.size) } else { size }, allocated };
        batch.allocated += delta.allocated;
        batch.refs.extend(delta.refs());
        batch.fresh.extend(delta.fresh());
        row.size = size;
        Ok(Some(resize))
    }

    /// Updates memory once the batch of a [`Self::truncate`] is submitted. The caller still holds
    /// the node's lock.
    pub fn resized(&self, node: &Node, mut row: Inode, resize: Resize) {
        let freed = {
            // Row and buffers change together, for a flush that takes both (see `flush::take`).
            let mut shown = node.row.write();
            let mut state = node.content.state();
            let freed = state.resize(&mut row, resize.size, resize.known);
            resize
                .extents
                .into_iter()
                .for_each(|(n, entry)| self.extents.put(resize.data, n, entry));
            *shown = row;
            freed
        };
        self.freed(freed);
        if resize.reclaim {
            self.reclaim_later();
        }
    }

    /// Truncates to nothing: the extents are released, and the file gets a new data id. O(1).
    fn empty(&self, node: &Node, row: &mut Inode, batch: &mut Batch) -> Result<Resize, FsError> {
        let (known, data) = (node.content.state().known(row), row.data);
        let mut release = Release::Done;
        if known.allocated > 0 {
            let fresh = self.committer.new_data()?;
            release = self.release(row, known, batch);
            row.data = fresh;
            row.masks.clear();
        }
        row.size = 0;
        Ok(Resize {
            size: 0,
            known: StoredSize { size: 0, allocated: 0 },
            data,
            extents: Vec::new(),
            reclaim: release == Release::Orphaned,
        })
    }

    /// Discards a file whose last link is removed: releases its extents and frees its space, in the
    /// batch. O(1). The caller holds the node's lock, deletes the inode's row, submits, and then
    /// calls [`Self::discarded`] without an await in between. Until then nothing has changed.
    pub fn discard(&self, node: &Node, row: &Inode, batch: &mut Batch) -> Release {
        let known = node.content.state().known(row);
        match known.allocated {
            0 => Release::Done,
            _ => self.release(row, known, batch),
        }
    }

    /// Gives up the extents of a file, and its space. An orphan costs the removal of a small file
    /// two rows and reclaim a scan and a batch, so the extents of one go at once if the cache has
    /// all of them, which their sum proves.
    fn release(&self, row: &Inode, known: StoredSize, batch: &mut Batch) -> Release {
        batch.allocated -= known.allocated.cast_signed();
        let count = known.size.div_ceil(1 << row.record_bits);
        if row.masks.is_empty() && count <= RELEASE_MAX {
            let cached: Option<Vec<_>> =
                (0..count).map(|n| self.extents.get(row.data, n)).collect();
            let mut delta = Delta::default();
            cached.iter().flatten().flatten().for_each(|extent| delta.gone(extent));
            if let Some(cached) = cached
                && delta.allocated == -known.allocated.cast_signed()
            {
                for (n, _) in (0..).zip(cached).filter(|(_, extent)| extent.is_some()) {
                    batch.delete(key::extent(row.data, n));
                }
                batch.refs.extend(delta.refs());
                return Release::Done;
            }
        }
        batch.put(key::orphan(row.data), &Orphan { from: 0, inode: None });
        Release::Orphaned
    }

    /// Drops the buffered data once the batch of a [`Self::discard`] is submitted. The caller still
    /// holds the node's lock.
    pub fn discarded(&self, node: &Node, release: Release) {
        let nothing = StoredSize { size: 0, allocated: 0 };
        let freed = {
            let mut row = node.row.read().clone();
            node.content.state().resize(&mut row, 0, nothing)
        };
        self.freed(freed);
        self.forget(node);
        if release == Release::Orphaned {
            self.reclaim_later();
        }
    }

    /// Locks a file with nothing waiting to be flushed, so that a new size may be promised: it is
    /// not ahead of older data. A file that is written to all the time is flushed under the lock in
    /// the end.
    ///
    /// # Errors
    /// As [`Self::flush_for_order`].
    pub async fn lock_flushed<'a>(
        &self,
        node: &'a Arc<Node>,
    ) -> Result<tokio::sync::MutexGuard<'a, ()>, FsError> {
        for _ in 0..FLUSHES_FREE {
            self.flush_for_order(node).await?;
            let lock = node.lock.lock().await;
            if node.content.state().is_clean() {
                return Ok(lock);
            }
        }
        self.flush_and_lock(node).await
    }

    /// Trims the extent that contains the new end, so that the data cut off reads as zeros for
    /// ever.
    async fn trim_boundary(
        &self,
        node: &Node,
        row: &Inode,
        batch: &mut Batch,
        delta: &mut Delta,
        resize: &mut Resize,
    ) -> Result<(), FsError> {
        let (n, within) =
            (resize.size >> row.record_bits, (resize.size & ((1 << row.record_bits) - 1)) as u32);
        if within == 0 {
            return Ok(());
        }
        let old = self.load(node, row, n..=n).await?.remove(&n).flatten();
        let Some(old) = visible(&row.masks, n, old.as_ref()) else { return Ok(()) };
        let mut extent = Extent::clone(old);
        segments::punch(&mut extent.segments, within, 1 << row.record_bits);
        if extent == **old {
            return Ok(());
        }
        extent.truncations = row.truncations;
        delta.gone(old);
        delta.come(&extent);
        if extent.segments.is_empty() {
            batch.delete(key::extent(row.data, n));
            resize.extents.push((n, None));
        } else {
            batch.put(key::extent(row.data, n), &extent);
            resize.extents.push((n, Some(Arc::new(extent))));
        }
        Ok(())
    }

    /// Deletes the extents past the new end if they are few, or masks them.
    async fn drop_behind(
        &self,
        node: &Node,
        row: &mut Inode,
        batch: &mut Batch,
        delta: &mut Delta,
        resize: &mut Resize,
    ) -> Result<(), FsError> {
        let first = resize.size.div_ceil(1 << row.record_bits);
        let (from, to) = (key::extent(row.data, first), key::extents(row.data.next()));
        let rows = self.committer.scan(from, to, DELETE_MAX + 1).await?;
        if rows.len() > DELETE_MAX {
            row.truncations = row
                .truncations
                .checked_add(1)
                .ok_or(FsError::Internal("a file was truncated too often".to_owned()))?;
            row.masks.retain(|mask| mask.first < first);
            row.masks.push(TruncationMask { first, truncations: row.truncations });
            let from = row.masks.iter().map(|m| m.first).min().unwrap_or(first);
            batch.put(key::orphan(row.data), &Orphan { from, inode: Some(node.file.ino) });
            resize.reclaim = true;
            return Ok(());
        }
        for (key, value) in rows {
            delta.gone(&decode(&value, row.record_bits)?);
            if let Some(Key::Extent(_, n)) = Key::parse(&key) {
                resize.extents.push((n, None));
            }
            batch.delete(key);
        }
        Ok(())
    }

    /// Frees a mask if all [`MASKS_MAX`] are in use, by reclaiming in steps.
    async fn make_mask_free(&self, node: &Node, row: &mut Inode) -> Result<(), FsError> {
        for _ in 0..RECLAIM_WAITED_STEPS {
            if row.masks.len() < MASKS_MAX {
                return Ok(());
            }
            self.reclaim_masked(node).await?;
            let shown = node.row.read();
            row.masks.clone_from(&shown.masks);
            row.allocated = shown.allocated;
        }
        if row.masks.len() < MASKS_MAX {
            return Ok(());
        }
        self.reclaim_later();
        Err(FsError::Busy("the file was truncated many times and is still being reclaimed; retry"))
    }
}
