//! Builds a file's content by reference: extents of a file to be made, which refer to chunks that
//! are stored already (R10). No data is read or written.
//!
//! The extents of a small file go into the batch that makes the file. Those of a larger one are
//! written first, under a data id that is queued for reclaim until the file exists: a crash in
//! between leaves an orphan like any other, and no file is ever visible half made.

use super::segments::Delta;
use super::{Contents, segments};
use crate::fs::FsError;
use crate::fs::committer::Batch;
use crate::fs::key::{self, DataId};
use crate::fs::row::{Extent, Orphan, Row};
use bytes::Bytes;
use std::sync::Arc;

/// Extents of one batch …
const STEP_ROWS: usize = 512;
/// … and bytes of them: small data is in the extent's row itself.
const STEP_BYTES: usize = 1 << 20;

/// The content of a file to be made. If it is dropped before [`Self::placed`], nothing is left of
/// it.
pub struct Copied {
    contents: Arc<Contents>,
    data: DataId,
    rows: Vec<(Bytes, Option<Bytes>)>,
    bytes: usize,
    delta: Delta,
    allocated: u64,
    /// Some extents are put already, and the data id is queued.
    begun: bool,
    placed: bool,
    reserved: u64,
}

impl Contents {
    /// Reserves space for at most `bytes`, less the space that the replaced object frees in the
    /// same batch (R19). [`Copied::cover`] checks again how much it does free.
    ///
    /// # Errors
    /// [`FsError::NoSpace`].
    pub fn begin_copy(self: &Arc<Self>, bytes: u64, given_back: u64) -> Result<Copied, FsError> {
        let data = self.committer.new_data()?;
        let reserved = bytes.saturating_sub(given_back);
        self.space.reserve(reserved, self.allocated())?;
        let contents = self.clone();
        Ok(Copied {
            contents,
            data,
            rows: Default::default(),
            bytes: 0,
            delta: Default::default(),
            allocated: 0,
            begun: false,
            placed: false,
            reserved,
        })
    }
}

impl Copied {
    /// Adds an extent; `record_bytes` is the file's.
    pub async fn add(&mut self, n: u64, extent: &Extent, record_bytes: u32) -> Result<(), FsError> {
        segments::check(extent, record_bytes)?;
        if self.rows.len() >= STEP_ROWS || self.bytes >= STEP_BYTES {
            self.put().await?;
        }
        let row = extent.encode();
        self.bytes += row.len();
        self.allocated += segments::bytes(extent);
        self.delta.come(extent);
        self.rows.push((key::extent(self.data, n), Some(row)));
        Ok(())
    }

    async fn put(&mut self) -> Result<(), FsError> {
        let committer = &self.contents.committer;
        committer.ready().await?;
        committer.step("fs.content.copied").await?;
        let mut batch = Batch::default();
        if !self.begun {
            // Added before the row exists, so that reclaim leaves it alone.
            self.contents.copying.lock().insert(self.data);
            self.begun = true;
            batch.put(key::orphan(self.data), &Orphan { from: 0, inode: None });
        }
        batch.rows.append(&mut self.rows);
        batch.refs = std::mem::take(&mut self.delta).refs();
        self.bytes = 0;
        committer.submit(batch).map(drop)
    }

    /// Reserves the space not reserved yet that the file needs beyond what the replaced object
    /// frees. The caller holds the replaced object's lock.
    ///
    /// # Errors
    /// [`FsError::NoSpace`]: the replaced object holds less by now, and others took the space.
    pub fn cover(&mut self, given_back: u64) -> Result<(), FsError> {
        let more = self.allocated.saturating_sub(given_back).saturating_sub(self.reserved);
        self.contents.space.reserve(more, self.contents.allocated())?;
        self.reserved += more;
        Ok(())
    }

    /// Adds the remaining rows to the batch that makes the file. Returns the data id and the bytes
    /// that it accounts for.
    pub fn finish(&mut self, batch: &mut Batch) -> (DataId, u64) {
        batch.rows.append(&mut self.rows);
        batch.refs.extend(std::mem::take(&mut self.delta).refs());
        if self.begun {
            batch.delete(key::orphan(self.data));
        }
        batch.allocated += self.allocated.cast_signed();
        (self.data, self.allocated)
    }

    /// Notes that this batch was submitted.
    pub fn placed(&mut self) {
        self.placed = true;
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.contents.space.release(self.reserved);
        if self.begun {
            self.contents.copying.lock().remove(&self.data);
            if !self.placed {
                self.contents.reclaim_later();
            }
        }
    }
}
