//! Changing a file's size, and letting go of its content (R5).

use super::Contents;
use super::records::{decode, visible};
use super::segments::{self, Delta};
use super::state::Known;
use crate::fs::FsError;
use crate::fs::api::FILE_BYTES_MAX;
use crate::fs::committer::Batch;
use crate::fs::key::{self, Key};
use crate::fs::node::Node;
use crate::fs::row::{Inode, MASKS_MAX, Mask, Orphan, Record};
use std::sync::Arc;

/// Up to so many records past a cut are deleted at once; more are masked and reclaimed in the background.
const DELETE_MAX: usize = 64;
/// So many steps of reclaim are done while a truncation waits for a mask to be free, before its caller is asked to come again.
const RECLAIM_WAITED_STEPS: usize = 8;

impl Contents {
    /// Changes the size both ways (R5). The caller holds the node's lock, puts `node.stored(row)` into `batch` itself afterwards, submits, and
    /// stores `row`. It has called [`Self::flush`] before it took the lock where [`super::Content::is_dirty`], so that the new size is not ahead of
    /// older data.
    ///
    /// # Errors
    /// Nothing has changed then, but that masks may have been reclaimed. [`FsError::Busy`] when there is no mask left and reclaim will take long.
    pub async fn truncate(&self, node: &Node, row: &mut Inode, size: u64, batch: &mut Batch) -> Result<(), FsError> {
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooBig);
        }
        if size == row.size {
            return Ok(());
        }
        let known = node.content.state().known(row);
        if size == 0 {
            return self.empty(node, row, known, batch);
        }
        let mut delta = Delta::default();
        let mut changed = Vec::new();
        if size < row.size && known.allocated > 0 {
            self.make_mask_free(node, row).await?;
            self.cut_boundary(node, row, size, batch, &mut delta, &mut changed).await?;
            self.cut_behind(node, row, size, batch, &mut delta, &mut changed).await?;
        }
        let known = node.content.state().known(row);
        let allocated = known.allocated.checked_add_signed(delta.allocated);
        let allocated = allocated.ok_or_else(|| FsError::Corrupt("a file's allocated bytes would be negative (R4)".to_owned()))?;
        batch.allocated += delta.allocated;
        batch.refs.extend(delta.refs());
        let freed = {
            let mut state = node.content.state();
            changed.into_iter().for_each(|(n, entry)| self.records.put(row.data, n, entry));
            state.resize(row, size, allocated)
        };
        self.freed(freed);
        Ok(())
    }

    /// To nothing: the records become an orphan's, the file gets a data id of its own again. O(1).
    fn empty(&self, node: &Node, row: &mut Inode, known: Known, batch: &mut Batch) -> Result<(), FsError> {
        if known.allocated > 0 {
            let fresh = self.committer.new_data()?;
            self.orphan(row, known, batch);
            row.data = fresh;
            row.masks.clear();
        }
        let freed = node.content.state().resize(row, 0, 0);
        self.freed(freed);
        Ok(())
    }

    /// The last link went: drops what is buffered, queues the data under `O`, releases the space. O(1). The caller holds the node's lock and
    /// deletes the inode's row.
    pub fn discard(&self, node: &Node, row: &Inode, batch: &mut Batch) -> Result<(), FsError> {
        let freed = {
            let mut state = node.content.state();
            let known = state.known(row);
            if known.allocated > 0 {
                self.orphan(row, known, batch);
            }
            state.resize(&mut row.clone(), 0, 0)
        };
        self.freed(freed);
        self.forget(node);
        Ok(())
    }

    /// Queues all records of the file for reclaim. Their space counts as free from now on.
    fn orphan(&self, row: &Inode, known: Known, batch: &mut Batch) {
        batch.put(key::orphan(row.data), &Orphan { from: 0, inode: None });
        batch.allocated -= known.allocated.cast_signed();
        self.reclaim_later();
    }

    /// Trims the record that the new end lies in, so that what is cut reads as zeros for ever.
    async fn cut_boundary(
        &self,
        node: &Node,
        row: &Inode,
        size: u64,
        batch: &mut Batch,
        delta: &mut Delta,
        changed: &mut Vec<(u64, Option<Arc<Record>>)>,
    ) -> Result<(), FsError> {
        let (n, within) = (size >> row.record_bits, (size & ((1 << row.record_bits) - 1)) as u32);
        if within == 0 {
            return Ok(());
        }
        let old = self.load(node, row, n..=n).await?.remove(&n).flatten();
        let Some(old) = visible(&row.masks, n, old.as_ref()) else { return Ok(()) };
        let mut record = Record::clone(old);
        segments::punch(&mut record.segments, within, 1 << row.record_bits);
        if record == **old {
            return Ok(());
        }
        record.cut = row.cut;
        delta.gone(old);
        delta.come(&record);
        if record.segments.is_empty() {
            batch.delete(key::record(row.data, n));
            changed.push((n, None));
        } else {
            batch.put(key::record(row.data, n), &record);
            changed.push((n, Some(Arc::new(record))));
        }
        Ok(())
    }

    /// Deletes the records behind the new end if they are few, or masks them.
    async fn cut_behind(
        &self,
        node: &Node,
        row: &mut Inode,
        size: u64,
        batch: &mut Batch,
        delta: &mut Delta,
        changed: &mut Vec<(u64, Option<Arc<Record>>)>,
    ) -> Result<(), FsError> {
        let first = size.div_ceil(1 << row.record_bits);
        let (from, to) = (key::record(row.data, first), key::records(row.data.next()));
        let rows = self.committer.scan(from, to, DELETE_MAX + 1).await?;
        if rows.len() > DELETE_MAX {
            row.cut = row.cut.checked_add(1).ok_or(FsError::Internal("a file was cut too often".to_owned()))?;
            row.masks.retain(|mask| mask.first < first);
            row.masks.push(Mask { first, cut: row.cut });
            let from = row.masks.iter().map(|m| m.first).min().unwrap_or(first);
            batch.put(key::orphan(row.data), &Orphan { from, inode: Some(node.file.ino) });
            self.reclaim_later();
            return Ok(());
        }
        for (key, value) in rows {
            delta.gone(&decode(&value, row.record_bits)?);
            if let Some(Key::Record(_, n)) = Key::parse(&key) {
                changed.push((n, None));
            }
            batch.delete(key);
        }
        Ok(())
    }

    /// At most [`MASKS_MAX`] masks: reclaims in steps here when there is none left.
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
        Err(FsError::Busy("the file was cut many times and what was cut off is still being reclaimed"))
    }
}
