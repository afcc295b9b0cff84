//! Flushes the write buffer into packs and a batch.
//!
//! A flush takes what is dirty (it stays readable), reads the extents below, plans the new ones,
//! stores the part that goes to packs, and only then takes the inode's lock to submit one batch. A
//! truncation meanwhile raises the file's version, and the flush starts over with what is left.
//! Until the batch is submitted every exit puts the data back.

use super::Contents;
use super::plan::Urgency;
use super::segments::Delta;
use crate::fs::FsError;
use crate::fs::committer::{Batch, Ticket};
use crate::fs::inode::Node;
use crate::fs::key;
use crate::fs::row::{Extent, Inode, Segment};
use std::sync::Arc;
use tokio::sync::MutexGuard;

mod packing;
mod taken;

pub(super) use taken::Select;

use packing::Prepared;
use taken::{Taken, take};

/// After this many restarts, or steps, the flush holds the inode's lock throughout: a file that is
/// truncated or written all the time is flushed all the same.
const FREE_ROUNDS: u32 = 3;
/// Limit of refusals of a batch for a chunk whose pack was abandoned meanwhile (R10).
const REFUSALS_MAX: u32 = 8;
const REFUSED: FsError = FsError::Busy("packs are being collected under a flush");

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

    /// Attempts one step: at most [`taken::BATCH_ROWS_MAX`].
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

/// Returns whether the committer refused the whole batch, and goes on: a pack takes no new
/// references, or too much is queued.
fn is_refusal(error: &FsError) -> bool {
    matches!(error, FsError::Busy(_))
}
