//! Small data that was inlined in a batch moves to a pack later, together with much of its kind, so
//! that the database's compaction does not carry it for ever. The list of it is in memory only:
//! data inlined before a restart stays where it is until it is overwritten.

use super::extents::is_visible;
use super::plan::{self, Allowance, CHUNK_BYTES_MIN, ExtentPart, Plan};
use super::segments::inline_bytes;
use super::{Contents, flush};
use crate::fs::FsError;
use crate::fs::inode::Node;
use crate::fs::key::DataId;
use crate::fs::row::{Extent, Segment};
use crate::types::InodeNo;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Inlined bytes that make a pack of their own.
const ENOUGH_BYTES: u64 = 4 << 20;
/// Bytes that are worth a pack once they have waited for [`LONG`].
const MIGRATE_BYTES_MIN: u64 = 256 << 10;
const LONG: Duration = Duration::from_secs(10);
/// Most extents remembered; others stay inline.
const RECORDS_MAX: usize = 32 << 10;
const FILES_AT_ONCE: usize = 64;

/// Extents that were inlined lately.
#[derive(Default)]
pub(super) struct Inlined {
    files: BTreeMap<(InodeNo, DataId), BTreeSet<u64>>,
    extents: usize,
    bytes: u64,
    since: Option<Instant>,
}

impl Inlined {
    fn is_ready(&self) -> bool {
        self.bytes >= ENOUGH_BYTES
            || (self.bytes >= MIGRATE_BYTES_MIN
                && self.since.is_some_and(|at| at.elapsed() >= LONG))
    }
}

impl Contents {
    /// Notes which of the extents just submitted hold bytes worth a chunk.
    pub(super) fn note_inline(
        &self,
        node: &Node,
        data: DataId,
        extents: &[(u64, Option<Arc<Extent>>)],
    ) {
        let worth = |r: &&Arc<Extent>| inline_bytes(&r.segments) >= CHUNK_BYTES_MIN;
        let mut extents = extents
            .iter()
            .filter_map(|(n, r)| r.as_ref().filter(worth).map(|r| (*n, r)))
            .peekable();
        if extents.peek().is_none() {
            return;
        }
        let mut inlined = self.inlined.lock();
        inlined.since.get_or_insert_with(Instant::now);
        for (n, extent) in extents {
            if inlined.extents < RECORDS_MAX
                && inlined.files.entry((node.file.ino, data)).or_default().insert(n)
            {
                inlined.extents += 1;
                inlined.bytes += inline_bytes(&extent.segments) as u64;
            }
        }
        if inlined.bytes >= ENOUGH_BYTES {
            self.migrate.notify_one();
        }
    }

    /// Moves inlined data once enough of it has gathered, until stopped.
    pub(super) async fn migrate_forever(&self, stop: CancellationToken) {
        loop {
            // Without inlined data there is nothing to wait for but the next of it.
            let waits = self.inlined.lock().since.is_some();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.migrate.notified() => {}
                () = tokio::time::sleep(LONG), if waits => {}
                () = tokio::time::sleep(LONG * 6), if !waits => {}
            }
            if !self.inlined.lock().is_ready() {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.migrate_round() => {}
            }
        }
    }

    pub(super) async fn migrate_round(&self) {
        let inlined = std::mem::take(&mut *self.inlined.lock());
        let moves = stream::iter(inlined.files).map(|((ino, data), extents)| {
            async move {
            let moved = match self.inodes.load_linked(ino).await {
                Ok(Some(node)) => self.migrate_file(&node, data, extents).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = moved {
                tracing::warn!(
                    inode = %ino,
                    %error,
                    "small data stays in the database, it is moved to a pack when it is written \
                     again"
                );
            }
        }
        .boxed()
        });
        moves.buffer_unordered(FILES_AT_ONCE).collect::<()>().await;
    }

    async fn migrate_file(
        &self,
        node: &Arc<Node>,
        data: DataId,
        extents: BTreeSet<u64>,
    ) -> Result<(), FsError> {
        let _turn = node.content.turn.lock().await;
        let (row, version) = flush::seen(node);
        if row.data != data {
            return Ok(());
        }
        let mut plans: Vec<(u64, Arc<Extent>, Vec<ExtentPart>)> = Vec::new();
        for n in extents {
            let Some(old) = self.load(node, &row, n..=n).await?.remove(&n).flatten() else {
                continue;
            };
            let plan = plan::overlay(&old.segments, Vec::new(), &mut Allowance::nothing());
            match plan {
                Plan::Parts(parts)
                    if is_visible(&row.masks, n, old.truncations)
                        && parts.iter().any(|p| matches!(p, ExtentPart::Pack { .. })) =>
                {
                    plans.push((n, old, parts));
                }
                Plan::Parts(_) | Plan::Rewrite(_) => {}
            }
        }
        let packs = |parts: &[ExtentPart]| -> Vec<Bytes> {
            parts
                .iter()
                .filter_map(|p| {
                    if let ExtentPart::Pack { bytes, .. } = p { Some(bytes.clone()) } else { None }
                })
                .collect()
        };
        let raw: Vec<Bytes> = plans.iter().flat_map(|(_, _, parts)| packs(parts)).collect();
        if raw.is_empty() {
            return Ok(());
        }
        let stored = self.packer.add(raw).await?.stored_in_background().await?;
        let mut refs = stored.refs().iter().copied();
        let mut moved: Vec<(u64, Option<Arc<Extent>>, Vec<Segment>)> =
            Vec::with_capacity(plans.len());
        for (n, old, parts) in plans {
            let segments = plan::finish(parts, &mut refs).ok_or_else(|| {
                FsError::Internal("a packing answered fewer chunks than were added".to_owned())
            })?;
            moved.push((n, Some(old), segments));
        }
        self.committer.step("fs.content.before-migrate").await?;
        let _lock = node.lock.lock().await;
        self.submit_migration(node, version, data, moved)
    }

    /// Called under the node's lock. A write or truncation meanwhile wins: the move is dropped.
    fn submit_migration(
        &self,
        node: &Node,
        version: u64,
        data: DataId,
        moved: Vec<(u64, Option<Arc<Extent>>, Vec<Segment>)>,
    ) -> Result<(), FsError> {
        let mut row = node.row.read().clone();
        if row.data != data || node.content.state().version != version {
            return Ok(());
        }
        let (mut batch, cached, delta) = self.batch(&row, moved);
        debug_assert_eq!(delta.allocated, 0, "a move changes no byte");
        batch.allocated = delta.allocated;
        batch.refs = delta.refs();
        batch.fresh = delta.fresh();
        let ticket = self.committer.submit(batch)?;
        let mut state = node.content.state();
        cached.into_iter().for_each(|(n, entry)| self.extents.put(data, n, entry));
        let known = state.known(&row);
        state.changed(&mut row, known);
        drop(state);
        node.submitted(ticket);
        Ok(())
    }
}
