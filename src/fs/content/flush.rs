//! Flushes the write buffer into packs and a batch.
//!
//! A flush takes what is dirty (it stays readable), reads the extents below, plans the new ones,
//! stores the part that goes to packs, and only then takes the inode's lock to submit one batch. A
//! truncation meanwhile raises the file's version, and the flush starts over with what is left.
//! Until the batch is submitted every exit puts the data back.

use super::Contents;
use super::extents::visible;
use super::plan::{self, Allowance, ExtentPart, Plan, Urgency};
use super::segments::{Delta, INLINE_BYTES_MAX, SEGMENTS_MAX};
use crate::chunk::{ChunkError, ChunkRef, PACK_BYTES, Packing, Stored};
use crate::fs::FsError;
use crate::fs::committer::{Batch, Ticket};
use crate::fs::inode::Node;
use crate::fs::inode::{Buffer, Pieces};
use crate::fs::key;
use crate::fs::row::{Extent, Inode, Segment};
use crate::types::{Class, Classify};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::MutexGuard;

/// Extents are planned and packed in groups, several at a time. Each is of one step of a reader's
/// read-ahead (`content.rs` of inodes), and its chunks lie side by side in a pack; where little of
/// a step is dirty, of several.
const GROUP_BYTES: u64 = 4 << 20;
const GROUP_RECORDS: usize = 1024;
const GROUPS_AT_ONCE: usize = 4;
/// After this many restarts, or steps, the flush holds the inode's lock throughout: a file that is
/// truncated or written all the time is flushed all the same.
const FREE_ROUNDS: u32 = 3;
/// Limit of refusals of a batch for a chunk whose pack was abandoned meanwhile (R10).
const REFUSALS_MAX: u32 = 8;
const REFUSED: FsError = FsError::Busy("packs are being collected under a flush");

/// A flush of at least this many bytes closes its packs without waiting for others to fill them.
const SOON_BYTES: u64 = 4 << 20;

/// Most bytes of rows in one batch: more is flushed in several, because the committer refuses a
/// batch that its queue cannot hold. It always holds a batch of this size, beside what
/// [`Committer::ready`](crate::fs::committer::Committer::ready) lets others queue before; so does a
/// replay.
const BATCH_ROWS_MAX: usize = 32 << 20;
/// Bytes that a segment takes in its row beside inline data: a chunk's reference.
const SEGMENT_BYTES_MAX: usize = 96;

/// Which of the dirty extents a flush takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Select {
    All,
    /// Only extents written from end to end, if they are most of the data: the last extent of a
    /// file that is being appended to waits until it is full.
    Whole,
}

/// The dirty data that a flush works on.
struct Taken {
    buffer: Buffer,
    row: Inode,
    version: u64,
    /// Extents from this one on are not in the database.
    absent_from: u64,
}

/// An extent as the flush will write it.
struct Planned {
    n: u64,
    old: Option<Arc<Extent>>,
    parts: Vec<ExtentPart>,
}

/// A group of the taken extents, in flight to packs.
#[derive(Default)]
struct ExtentGroup {
    planned: Vec<Planned>,
    packing: Option<Packing>,
    lost: Vec<(u64, FsError)>,
}

/// Everything that the batch needs.
#[derive(Default)]
pub(super) struct Prepared {
    pub extents: Vec<(u64, Option<Arc<Extent>>, Vec<Segment>)>,
    /// Dropped when the batch has been submitted: then their packs may settle (R9).
    pub stored: Vec<Stored>,
    lost: Vec<(u64, FsError)>,
}

/// Puts the taken data back unless the batch was submitted: errors and dropped calls lose nothing
/// (R17).
struct InFlight<'a> {
    contents: &'a Contents,
    node: &'a Node,
    error: Option<FsError>,
    done: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.done {
            let freed = self.node.content.state().put_back(self.error.take());
            self.contents.freed(freed);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushOutcome {
    Submitted,
    /// There was nothing to take.
    Nothing,
    /// The file was truncated while the flush was prepared.
    Changed,
    /// A chunk found by deduplication may no longer be referred to (R10).
    Refused,
}

/// The holder of the node's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lock {
    /// The flush takes it for the last step only.
    Taken,
    /// The caller holds it.
    Held,
}

impl Contents {
    /// Submits everything buffered of the file to the committer: small data inside the batch, large
    /// data in packs first. The caller must NOT hold the node's lock; it is taken inside for the
    /// short parts. Returns the ticket whose durability covers the data; `None`: nothing was ever
    /// flushed.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] and the like when the store does not take the data now: it stays
    /// buffered and is retried. [`FsError::Corrupt`] once when some of the data can never be
    /// written and is lost: only for a call that promises its caller the data (R17).
    pub async fn flush(&self, node: &Arc<Node>) -> Result<Option<Ticket>, FsError> {
        let ticket = self.flush_for_order(node).await?;
        match node.content.state().take_lost() {
            Some(lost) => Err(lost),
            None => Ok(ticket),
        }
    }

    /// As [`Self::flush`], for a call that promises nothing about the data: an error about lost
    /// data is left for the call that does.
    pub async fn flush_for_order(&self, node: &Arc<Node>) -> Result<Option<Ticket>, FsError> {
        self.flush_as(node, Urgency::Now, Select::All).await
    }

    pub(super) async fn flush_as(
        &self,
        node: &Arc<Node>,
        urgency: Urgency,
        select: Select,
    ) -> Result<Option<Ticket>, FsError> {
        let wanted = {
            let state = node.content.state();
            match urgency {
                _ if state.is_clean() => return Ok(state.last()),
                Urgency::Now => Some(state.wanted()),
                Urgency::Soon | Urgency::Background => None,
            }
        };
        let _turn = node.content.turn.lock().await;
        if let Some(answer) = wanted.and_then(|wanted| node.content.state().answered(wanted)) {
            return answer;
        }
        let outcome = self.flush_in_turn(node, urgency, select).await;
        self.forget_if_clean(node);
        outcome
    }

    async fn flush_in_turn(
        &self,
        node: &Arc<Node>,
        urgency: Urgency,
        select: Select,
    ) -> Result<Option<Ticket>, FsError> {
        let wanted = node.content.state().wanted();
        let (mut rounds, mut refusals) = (0, 0);
        while rounds < FREE_ROUNDS {
            // Room in the committer's queue is waited for before any lock is taken.
            self.committer.ready().await?;
            match self.try_flush(node, urgency, select, Lock::Taken).await? {
                FlushOutcome::Submitted
                    if select == Select::All && !node.content.state().has_flushed(wanted) =>
                {
                    rounds += 1;
                }
                FlushOutcome::Submitted | FlushOutcome::Nothing => {
                    return Ok(node.content.state().last());
                }
                FlushOutcome::Changed => rounds += 1,
                FlushOutcome::Refused if refusals < REFUSALS_MAX => refusals += 1,
                FlushOutcome::Refused => return Err(REFUSED),
            }
        }
        self.committer.ready().await?;
        let _held = node.lock.lock().await;
        self.flush_locked(node, urgency, select).await?;
        Ok(node.content.state().last())
    }

    /// Flushes with the node's lock held throughout, and returns the guard: nothing is buffered
    /// then.
    pub(super) async fn flush_and_lock<'a>(
        &self,
        node: &'a Arc<Node>,
    ) -> Result<MutexGuard<'a, ()>, FsError> {
        let _turn = node.content.turn.lock().await;
        self.committer.ready().await?;
        let held = node.lock.lock().await;
        self.flush_locked(node, Urgency::Now, Select::All).await?;
        self.forget_if_clean(node);
        Ok(held)
    }

    /// Flushes with the node's lock held, so that no data is added: step by step until nothing is
    /// left. The caller awaited room for the first.
    async fn flush_locked(
        &self,
        node: &Arc<Node>,
        urgency: Urgency,
        select: Select,
    ) -> Result<(), FsError> {
        let mut refusals = 0;
        loop {
            match self.try_flush(node, urgency, select, Lock::Held).await? {
                FlushOutcome::Submitted
                    if select == Select::All && !node.content.state().is_clean() => {}
                FlushOutcome::Submitted | FlushOutcome::Nothing => return Ok(()),
                FlushOutcome::Changed | FlushOutcome::Refused if refusals < REFUSALS_MAX => {
                    refusals += 1;
                }
                FlushOutcome::Changed | FlushOutcome::Refused => return Err(REFUSED),
            }
            self.committer.ready().await?;
        }
    }

    /// Attempts one step: at most [`BATCH_ROWS_MAX`].
    async fn try_flush(
        &self,
        node: &Arc<Node>,
        urgency: Urgency,
        select: Select,
        lock: Lock,
    ) -> Result<FlushOutcome, FsError> {
        let Some(taken) = take(node, select) else { return Ok(FlushOutcome::Nothing) };
        let mut flight = InFlight { contents: self, node, error: None, done: false };
        let prepared = match self.prepare(node, &taken, urgency).await {
            Ok(prepared) => prepared,
            Err(error) => {
                flight.error = Some(error.clone());
                return Err(error);
            }
        };
        let _held = match lock {
            Lock::Taken => Some(node.lock.lock().await),
            Lock::Held => None,
        };
        match self.submit_flush(node, &taken, prepared) {
            Ok(outcome) => {
                flight.done = outcome == FlushOutcome::Submitted;
                Ok(outcome)
            }
            Err(error) => {
                flight.error = Some(error.clone());
                Err(error)
            }
        }
    }

    async fn prepare(
        &self,
        node: &Node,
        taken: &Taken,
        urgency: Urgency,
    ) -> Result<Prepared, FsError> {
        self.committer.step("fs.content.before-pack").await?;
        let groups = stream::iter(groups(&taken.buffer, taken.row.record_bits))
            .map(|group| self.pack_group(node, taken, urgency, group).boxed());
        let groups: Vec<ExtentGroup> = groups.buffered(GROUPS_AT_ONCE).try_collect().await?;
        // Packs of small files wait a little for each other, unless writers wait for the memory.
        let hurries = taken.buffer.charge() >= SOON_BYTES || self.room.is_low();
        let urgency = match urgency {
            Urgency::Background if hurries => Urgency::Soon,
            urgency => urgency,
        };
        let prepared = self.store_groups(groups, urgency).await?;
        self.committer.step("fs.content.before-submit").await?;
        Ok(prepared)
    }

    /// Waits for the packs and replaces the bytes by references.
    async fn store_groups(
        &self,
        groups: Vec<ExtentGroup>,
        urgency: Urgency,
    ) -> Result<Prepared, FsError> {
        let mut prepared = Prepared::default();
        let waits = groups.into_iter().map(|mut group| async move {
            let stored = match (group.packing.take(), urgency) {
                (None, _) => None,
                (Some(packing), Urgency::Now) => Some(packing.stored().await?),
                (Some(packing), Urgency::Soon) => Some(packing.stored_soon().await?),
                (Some(packing), Urgency::Background) => Some(packing.stored_in_background().await?),
            };
            Ok::<_, ChunkError>((group, stored))
        });
        for (group, stored) in futures::future::try_join_all(waits).await? {
            prepared.lost.extend(group.lost);
            let refs: Vec<ChunkRef> =
                stored.as_ref().map(|s| s.refs().to_vec()).unwrap_or_default();
            let mut refs = refs.into_iter();
            for planned in group.planned {
                let segments = plan::finish(planned.parts, &mut refs).ok_or_else(|| {
                    FsError::Internal("a packing answered fewer chunks than were added".to_owned())
                })?;
                prepared.extents.push((planned.n, planned.old, segments));
            }
            prepared.stored.extend(stored);
        }
        Ok(prepared)
    }

    /// Plans the extents of a group and gives the packer the data that goes to packs.
    async fn pack_group(
        &self,
        node: &Node,
        taken: &Taken,
        urgency: Urgency,
        group: Vec<(u64, Pieces)>,
    ) -> Result<ExtentGroup, FsError> {
        let mut allowance = Allowance::new(urgency, taken.buffer.charge());
        let old = self.old_extents(node, taken, &group).await;
        let mut out = ExtentGroup::default();
        let mut rewrites = Vec::new();
        for (n, pieces) in group {
            let old = match &old {
                Ok(old) => old.get(&n).cloned().flatten(),
                Err(error) if is_permanent(error) => {
                    out.lost.push((n, error.clone()));
                    continue;
                }
                Err(error) => return Err(error.clone()),
            };
            let below = visible(&taken.row.masks, n, old.as_ref()).map_or(&[][..], |r| &r.segments);
            match plan::overlay(below, pieces.runs(), &mut allowance) {
                Plan::Parts(parts) => out.planned.push(Planned { n, old, parts }),
                Plan::Rewrite(segments) => rewrites.push((n, old, segments)),
            }
        }
        self.rewrite(rewrites, &mut out).await?;
        self.pack(&mut out).await?;
        Ok(out)
    }

    async fn pack(&self, group: &mut ExtentGroup) -> Result<(), FsError> {
        let raw: Vec<Bytes> = group
            .planned
            .iter()
            .flat_map(|planned| &planned.parts)
            .filter_map(|part| match part {
                ExtentPart::Pack { bytes, .. } => Some(bytes.clone()),
                ExtentPart::Ready(_) => None,
            })
            .collect();
        if !raw.is_empty() {
            self.recall.stores(&raw);
            group.packing = Some(self.packer.add(raw).await?);
        }
        Ok(())
    }

    /// The rows that will be replaced.
    async fn old_extents(
        &self,
        node: &Node,
        taken: &Taken,
        group: &[(u64, Pieces)],
    ) -> Result<BTreeMap<u64, Option<Arc<Extent>>>, FsError> {
        let mut old = BTreeMap::new();
        let numbers: Vec<u64> =
            group.iter().map(|(n, _)| *n).filter(|n| *n < taken.absent_from).collect();
        let mut numbers = numbers.into_iter().peekable();
        while let Some(first) = numbers.next() {
            let mut last = first;
            // One scan for extents that are near each other, but none across a large gap.
            while let Some(next) = numbers.next_if(|next| next - last <= 64) {
                last = next;
            }
            old.extend(self.load(node, &taken.row, first..=last).await?);
        }
        Ok(old)
    }

    async fn rewrite(
        &self,
        rewrites: Vec<(u64, Option<Arc<Extent>>, Vec<Segment>)>,
        out: &mut ExtentGroup,
    ) -> Result<(), FsError> {
        for (n, old, segments) in rewrites {
            let chunks = plan::chunks_of(&segments);
            let parts = match self.chunks.read(&chunks).await {
                Ok(data) => {
                    let data: HashMap<_, _> = chunks.iter().map(|c| c.hash).zip(data).collect();
                    plan::rewrite(&segments, &data).ok_or_else(|| {
                        FsError::Corrupt(format!("extent {n} refers past its chunks"))
                    })
                }
                Err(error) => Err(FsError::from(error)),
            };
            match parts {
                Ok(parts) => out.planned.push(Planned { n, old, parts }),
                Err(error) if is_permanent(&error) => out.lost.push((n, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Checks under the node's lock that the file was not truncated meanwhile, and submits the
    /// batch.
    fn submit_flush(
        &self,
        node: &Node,
        taken: &Taken,
        prepared: Prepared,
    ) -> Result<FlushOutcome, FsError> {
        let mut row = node.row.read().clone();
        {
            let mut state = node.content.state();
            if state.version != taken.version || row.data != taken.row.data {
                return Ok(FlushOutcome::Changed);
            }
            for (n, error) in &prepared.lost {
                tracing::error!(
                    inode = %node.file.ino, extent = n, %error,
                    "written data is lost because what it was to be merged with cannot be read: \
                     restore the file from a snapshot"
                );
                let freed = state.lose(*n, error.clone());
                self.freed(freed);
            }
        }
        let (batch, cached, known) = {
            let (mut batch, cached, delta) = self.batch(&row, prepared.extents);
            let known = node.content.state().known_after(&row, delta.allocated)?;
            batch.allocated = delta.allocated;
            batch.refs = delta.refs();
            batch.fresh = delta.fresh();
            batch.put(
                key::inode(node.file.ino),
                &Inode { size: known.size, allocated: known.allocated, ..row.clone() },
            );
            (batch, cached, known)
        };
        let ticket = match self.committer.submit(batch) {
            Ok(ticket) => ticket,
            Err(error) if is_refusal(&error) => return Ok(FlushOutcome::Refused),
            Err(error) => return Err(error),
        };
        let freed = {
            let mut state = node.content.state();
            self.note_inline(node, row.data, &cached);
            cached.into_iter().for_each(|(n, entry)| self.extents.put(row.data, n, entry));
            state.submitted(&mut row, known, ticket)
        };
        node.row.write().allocated = row.allocated;
        node.submitted(ticket);
        self.freed(freed);
        Ok(FlushOutcome::Submitted)
    }

    /// Builds a batch that replaces extents: its rows, their new cache entries, and the change of
    /// references.
    #[expect(clippy::type_complexity, reason = "three parts of one step")]
    pub(super) fn batch(
        &self,
        row: &Inode,
        extents: Vec<(u64, Option<Arc<Extent>>, Vec<Segment>)>,
    ) -> (Batch, Vec<(u64, Option<Arc<Extent>>)>, Delta) {
        let (mut batch, mut delta) = (Batch::default(), Delta::default());
        let mut cached = Vec::with_capacity(extents.len());
        for (n, old, segments) in extents {
            if let Some(old) = &old {
                delta.gone(old);
            }
            let new = (!segments.is_empty())
                .then(|| Arc::new(Extent { truncations: row.truncations, segments }));
            match &new {
                Some(new) => {
                    delta.come(new);
                    batch.put(key::extent(row.data, n), &**new);
                }
                None if old.is_some() => batch.delete(key::extent(row.data, n)),
                None => {}
            }
            cached.push((n, new));
        }
        (batch, cached, delta)
    }
}

/// Returns a file's row and the version of its content, of one point in time.
pub(super) fn seen(node: &Node) -> (Inode, u64) {
    let shown = node.row.read();
    let version = node.content.state().version;
    (shown.clone(), version)
}

fn take(node: &Node, select: Select) -> Option<Box<Taken>> {
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

fn groups(buffer: &Buffer, record_bits: u8) -> Vec<Vec<(u64, Pieces)>> {
    let step = |n: u64| (n << record_bits) / GROUP_BYTES;
    let mut groups: Vec<Vec<(u64, Pieces)>> = vec![Vec::new()];
    let mut bytes = 0;
    for (n, pieces) in buffer.extents() {
        let begins_step = groups
            .last()
            .and_then(|group| group.last())
            .is_some_and(|(last, _)| step(*last) != step(n));
        let is_full = bytes >= 2 * GROUP_BYTES || (bytes >= GROUP_BYTES / 2 && begins_step);
        if is_full || groups.last().is_some_and(|g| g.len() >= GROUP_RECORDS) {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += pieces.charge();
        if let Some(group) = groups.last_mut() {
            group.push((n, pieces.clone()));
        }
    }
    groups
}

/// Returns whether the committer refused the whole batch, and goes on: a pack takes no new
/// references, or too much is queued.
fn is_refusal(error: &FsError) -> bool {
    matches!(error, FsError::Busy(_))
}

/// Returns whether a retry cannot help: the data below is damaged.
fn is_permanent(error: &FsError) -> bool {
    matches!(error.class(), Class::Corrupt)
}
