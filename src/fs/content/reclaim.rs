//! Reclaims `O`: the extents of unlinked and emptied files, and those masked by truncations (R5).
//!
//! Works in bounded batches, each of which carries the references that its rows held; a crash
//! leaves an `O` row from which reclaim continues.

use super::Contents;
use super::extents::{decode, is_visible};
use super::segments::Delta;
use crate::fs::FsError;
use crate::fs::committer::Batch;
use crate::fs::inode::Node;
use crate::fs::inode::StoredSize;
use crate::fs::key::{self, DataId, Key};
use crate::fs::row::{Extent, Inode, Orphan, Row};
use bytes::Bytes;
use std::collections::HashSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Rows of one batch.
const STEP_ROWS: usize = 1024;
/// Orphans looked at in one round.
const ROUND_ORPHANS: usize = 256;
/// Pause between batches: reclaim never takes more than a part of the committer's time.
const PAUSE: Duration = Duration::from_millis(2);
/// After an error, and at least this often without being asked: an orphan may be older than this
/// opening of the volume.
const RETRY: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReclaimStep {
    More,
    Done,
}

impl Contents {
    /// Reclaims until stopped.
    pub(super) async fn reclaim_forever(&self, stop: CancellationToken) {
        // Orphans that cannot be reclaimed (a row is corrupt) are left, and logged once.
        let mut broken = HashSet::new();
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.reclaim_round(&mut broken) => outcome,
            };
            match outcome {
                Ok(ReclaimStep::More) => continue,
                Ok(ReclaimStep::Done) => tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.reclaim.notified() => {}
                },
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "space of deleted files is not reclaimed now, it will be tried again"
                    );
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
            }
        }
    }

    pub(super) async fn reclaim_round(
        &self,
        broken: &mut HashSet<DataId>,
    ) -> Result<ReclaimStep, FsError> {
        let (from, to) = (key::orphan(DataId(0)), key::orphan(DataId(u64::MAX)));
        let rows = self.committer.scan(from, to, ROUND_ORPHANS + broken.len()).await?;
        let mut progress = ReclaimStep::Done;
        for (key, value) in rows {
            let Some(Key::Orphan(data)) = Key::parse(&key) else { continue };
            if broken.contains(&data) || self.copying.lock().contains(&data) {
                continue;
            }
            progress = ReclaimStep::More;
            match self.reclaim_orphan(data, &value).await {
                Err(FsError::Corrupt(why)) => {
                    tracing::error!(
                        data = data.0,
                        why,
                        "the space of a deleted file cannot be reclaimed: run `check` on the \
                         dataset"
                    );
                    broken.insert(data);
                }
                outcome => outcome?,
            }
        }
        Ok(progress)
    }

    async fn reclaim_orphan(&self, data: DataId, row: &Bytes) -> Result<(), FsError> {
        let orphan = Orphan::decode(row)?;
        if let Some(ino) = orphan.inode
            && let Some(node) = self.inodes.load_linked(ino).await?
        {
            loop {
                let lock = node.lock.lock().await;
                let is_its_own = |row: &Inode| row.data == data && row.nlink > 0;
                if !is_its_own(&node.row.read()) {
                    // The file was emptied or unlinked meanwhile: the orphan has been queued again
                    // without its inode.
                    return Ok(());
                }
                let progress = self.reclaim_masked(&node).await?;
                drop(lock);
                if progress == ReclaimStep::Done {
                    // The file was removed meanwhile: its data is an orphan of the next round.
                    return Ok(());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.reclaim_whole(data).await
    }

    /// All extents of a data id that no inode refers to.
    async fn reclaim_whole(&self, data: DataId) -> Result<(), FsError> {
        loop {
            let Some(row) = self.committer.get(&key::orphan(data)).await? else { return Ok(()) };
            let orphan = Orphan::decode(&row)?;
            let rows = self
                .committer
                .scan(key::extent(data, orphan.from), key::extents(data.next()), STEP_ROWS)
                .await?;
            let (mut batch, mut delta) = (Batch::default(), Delta::default());
            let mut next = orphan.from;
            let done = rows.len() < STEP_ROWS;
            for (key, value) in rows {
                if let Some(Key::Extent(_, n)) = Key::parse(&key) {
                    next = n + 1;
                }
                delta.gone(&decode_any(&value)?);
                batch.delete(key);
            }
            if done {
                batch.delete(key::orphan(data));
            } else {
                batch.put(key::orphan(data), &Orphan { from: next, inode: None });
            }
            // Its space was freed when it became an orphan; only the references go now.
            batch.refs = delta.refs();
            self.submit_calmly(batch).await?;
            if done {
                return Ok(());
            }
        }
    }

    /// One step over the masked extents of a file whose lock the caller holds. When all are gone,
    /// so are the masks.
    pub(super) async fn reclaim_masked(&self, node: &Node) -> Result<ReclaimStep, FsError> {
        let mut row = node.row.read().clone();
        let data = row.data;
        let queued = self.committer.get(&key::orphan(data)).await?;
        let Some(queued) = queued.as_ref().map(|row| Orphan::decode(row)).transpose()? else {
            return Ok(ReclaimStep::Done);
        };
        if row.nlink == 0 || queued.inode != Some(node.file.ino) {
            // The inode was removed meanwhile: the orphan has been queued again without it.
            return Ok(ReclaimStep::Done);
        }
        let rows = self
            .committer
            .scan(key::extent(data, queued.from), key::extents(data.next()), STEP_ROWS)
            .await?;
        let done = rows.len() < STEP_ROWS;
        let (mut batch, mut delta, mut gone, mut next) =
            (Batch::default(), Delta::default(), Vec::new(), queued.from);
        for (key, value) in rows {
            let Some(Key::Extent(_, n)) = Key::parse(&key) else { continue };
            next = n + 1;
            let extent = decode(&value, row.record_bits)?;
            if !is_visible(&row.masks, n, extent.truncations) {
                delta.gone(&extent);
                gone.push(n);
                batch.delete(key);
            }
        }
        if done {
            batch.delete(key::orphan(data));
            row.masks.clear();
        } else {
            batch.put(key::orphan(data), &Orphan { from: next, inode: Some(node.file.ino) });
        }
        let known = node.content.state().known(&row);
        let allocated = known.allocated.checked_add_signed(delta.allocated);
        let allocated = allocated.ok_or_else(|| {
            FsError::Corrupt("a file's allocated bytes would be negative (R4)".to_owned())
        })?;
        let known = StoredSize { allocated, ..known };
        batch.allocated = delta.allocated;
        batch.refs = delta.refs();
        batch.put(key::inode(node.file.ino), &Inode { size: known.size, allocated, ..row.clone() });
        self.committer.step("fs.content.before-unmask").await?;
        let ticket = self.committer.submit(batch)?;
        {
            let mut state = node.content.state();
            gone.into_iter().for_each(|n| self.extents.put(data, n, None));
            state.changed(&mut row, known);
        }
        let mut shown = node.row.write();
        (shown.masks, shown.allocated) = (row.masks, row.allocated);
        drop(shown);
        node.submitted(ticket);
        Ok(if done { ReclaimStep::Done } else { ReclaimStep::More })
    }

    /// Notifies the reclaim task that there is work.
    pub(super) fn reclaim_later(&self) {
        self.reclaim.notify_one();
    }

    async fn submit_calmly(&self, batch: Batch) -> Result<(), FsError> {
        self.committer.step("fs.content.before-reclaim").await?;
        self.committer.submit(batch)?;
        self.committer.step("fs.content.after-reclaim").await?;
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Decodes an extent of a file whose record size is no longer known: any size it may have had.
fn decode_any(row: &Bytes) -> Result<Extent, FsError> {
    decode(row, 20)
}
