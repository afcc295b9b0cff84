//! The only writer of a dataset's database (R4): orders batches, computes `U` and `S` from their
//! deltas, logs them to the node's journal (R16), and flushes with group commit.
//!
//! ```text
//!  submit ──> queue + overlay ──> drain task: journal, then     ──> flush task: one WAL object
//!     │            │              │           one SlateDB write        │            in the store
//!  ordered,    visible to      applied (a waiter appends to        durable
//!  Ticket      get and scan    the journal itself, if nobody else does)
//! ```
//!
//! A batch is visible to [`Committer::get`] when [`Committer::submit`] returns, applied (it
//! survives the process: in the journal) a little later, durable (in the object store) after a
//! flush. All three happen in the order of submission, and whole batches at a time.
//!
//! - `state`: what changes at a submit, pure and under one short mutex.
//! - `overlay`: the rows in flight to SlateDB.
//! - `start`: taking over a database: replay, epoch.
//! - `tasks`: the drain and flush tasks.
//! - `gather`: when the next flush begins.
//! - `redo`: the journal, and how the committer does without it.
//! - `reads`: reading through the overlay.
//!
//! Invariants. `S` in any durable state agrees with exactly the batches up to its `batch_seq`: both
//! are in one WAL object. One flush is in flight at a time; callers that wait meanwhile share the
//! next. Once [`Committer::stopped`] has resolved, no ticket is acknowledged, not even one that was
//! durable.
//!
//! A crash of the process loses what was not applied; with a journal the rest is replayed by the
//! next [`Committer::start`] on the same node. A crash of the node loses what was not durable.
//! Numbers given out by [`Committer::new_inode`] and [`Committer::new_data`] may be given out again
//! by the next epoch, if no batch that holds them survived; their generations differ then (R7).
//!
//! The committer does not know what rows mean, and it has no timer: the owner flushes batches that
//! stay [dirty](Committer::is_dirty) for too long.

mod gather;
mod overlay;
mod reads;
mod redo;
mod start;
mod state;
mod tasks;
#[cfg(test)]
mod tests;

pub use start::void_journals;

use super::FsError;
use super::db::{CheckpointId, Database, Detached, ROW_BYTES, View};
use super::key::DataId;
use super::row::{Superblock, Usage};
use crate::telemetry::Failpoints;
use crate::types::{Epoch, InodeNo, PackId};
use bytes::Bytes;
use parking_lot::Mutex;
use state::CommitState;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// One atomic change of a dataset. Never holds `S` or `U` rows: those are deltas here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows to set or (`None`) delete, in order; the last for a key wins.
    pub rows: Vec<(Bytes, Option<Bytes>)>,
    /// Change of references into packs.
    pub refs: Vec<(PackId, i64)>,
    /// Packs of chunks to which no row that this batch replaces referred: found by deduplication,
    /// or just stored. A sealed pack takes none (R12), but a chunk in use there may get two
    /// references instead of one, when its middle is overwritten.
    pub fresh: Vec<PackId>,
    /// Change of the number of inodes in use.
    pub inodes: i64,
    /// Change of the sum of allocated bytes.
    pub allocated: i64,
    /// A new presentation group for older inodes (R28).
    pub fs_group: Option<u32>,
}

impl Batch {
    pub fn put(&mut self, key: Bytes, row: &impl super::row::Row) {
        self.rows.push((key, Some(row.encode())));
    }

    pub fn delete(&mut self, key: Bytes) {
        self.rows.push((key, None));
    }

    /// Bytes that the batch occupies while it waits, and then in the MemTable, where `S` and a row
    /// of `U` for each pack come with it.
    fn bytes(&self) -> usize {
        let rows = self.rows.iter().map(|(key, value)| {
            key.len() + value.as_ref().map_or(0, Bytes::len) + ROW_BYTES as usize
        });
        rows.sum::<usize>() + self.refs.len() * OWN_ROW_BYTES + OWN_ROW_BYTES
    }
}

/// A submitted batch's place in the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Bound of a row that the committer adds to a batch: key and value are below 256 bytes.
const OWN_ROW_BYTES: usize = 256 + ROW_BYTES as usize;

/// The totals that statfs shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub inodes: u64,
    pub allocated: u64,
}

/// Longest that [`Committer::applied`], [`Committer::durable`] and [`Committer::ready`] wait for
/// the store. The work goes on: a later call may find it done.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// [`Committer::ready`] waits while this many bytes are queued …
const QUEUE_BYTES_HIGH: usize = 8 << 20;
/// … and [`Committer::submit`] refuses beyond this many, which only callers that never wait for
/// `ready` reach.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// See the module's documentation.
pub struct Committer {
    shared: Arc<Shared>,
    tasks: Mutex<Option<tasks::Tasks>>,
    closing: tokio::sync::Mutex<tasks::Closing>,
}

/// State shared by the committer and its tasks.
struct Shared {
    db: Database,
    state: Mutex<CommitState>,
    /// Locked before `state`, and for one write(2) to the journal at a time. Absent once the
    /// committer has ended.
    redo: Mutex<Option<redo::Redo>>,
    next_inode: AtomicU64,
    next_data: AtomicU64,
    generations: AtomicU64,
    /// There is a journal, though it may be failing.
    journaled: bool,
    settled: Box<dyn Fn() -> u64 + Send + Sync>,
    failpoints: Failpoints,
    /// Wakes the drain task: something is queued.
    queued: Notify,
    /// The highest ticket that a caller wants durable.
    wanted: AtomicU64,
    demand: gather::Demand,
    /// Wakes the flush task: a batch that a caller wants durable is in SlateDB's memory.
    due: Notify,
    /// Wakes the flush task: the drain task waits for room in the journal.
    room: Notify,
    /// The highest ticket in the journal; while the journal fails, in the store.
    applied: watch::Sender<u64>,
    /// The highest ticket in SlateDB's memory.
    written: watch::Sender<u64>,
    /// The highest ticket in the store.
    durable: watch::Sender<u64>,
    stopped: watch::Sender<Option<FsError>>,
    write_verifier: [u8; 8],
    is_new: bool,
}

impl Committer {
    /// Gives a batch its place in the order. Fails when the committer has stopped; the batch then
    /// has no effect.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when a count would become negative: that stops the committer for good
    /// (R4). [`FsError::Busy`] when far too much is queued, or the batch refers to new chunks of a
    /// sealed pack (R12) or of an abandoned one (R10): the batch has no effect, and the committer
    /// goes on.
    pub fn submit(&self, batch: Batch) -> Result<Ticket, FsError> {
        let bytes = batch.bytes() as u64;
        // Taken before the drain task can give it back.
        self.shared.db.memory().take(bytes);
        let submitted = self.shared.state.lock().submit(batch);
        if submitted.is_err() {
            self.shared.db.memory().give_back(bytes);
        }
        match submitted {
            Ok(ticket) => {
                self.shared.queued.notify_one();
                Ok(ticket)
            }
            Err(error @ FsError::Corrupt(_)) => {
                self.shared.stop(error.clone());
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until there is room for another batch, in the queue and in the memory that all
    /// datasets share. Every operation that changes something awaits this before it takes locks; it
    /// returns at once except under load.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] while a damaged table keeps the database from accepting writes: nobody
    /// waits for ever without an error.
    pub async fn ready(&self) -> Result<(), FsError> {
        if let Some(error) = self.shared.db.blocked() {
            return Err(error);
        }
        let memory = self.shared.db.memory();
        if !memory.has_room() {
            self.shared
                .wait("memory for changes: the object store does not take them", memory.room())
                .await?;
        }
        if self.shared.state.lock().queue_bytes() < QUEUE_BYTES_HIGH {
            return self.shared.check();
        }
        let mut written = self.shared.written.subscribe();
        self.shared
            .wait("room for changes", async {
                while self.shared.state.lock().queue_bytes() >= QUEUE_BYTES_HIGH {
                    if written.changed().await.is_err() {
                        break;
                    }
                }
            })
            .await
    }

    /// Waits until the batch survives the death of this process. Without a journal that means
    /// [`Self::durable`], and so it does while a journal fails.
    pub async fn applied(&self, ticket: Ticket) -> Result<(), FsError> {
        if !self.shared.journaled {
            return self.durable(ticket).await;
        }
        if *self.shared.applied.borrow() < ticket.0 {
            self.shared.log_now().await?;
        }
        self.shared.reached(&self.shared.applied, ticket, "the journal").await
    }

    /// Waits until the batch is in the object store, starting a flush if none will cover it: one
    /// flush in flight, waiters join the next (R17).
    pub async fn durable(&self, ticket: Ticket) -> Result<(), FsError> {
        if *self.shared.durable.borrow() >= ticket.0 {
            return self.shared.check();
        }
        let _waiting = self.shared.demand.ask();
        self.shared.want_durable(ticket);
        self.shared.reached(&self.shared.durable, ticket, "the object store").await
    }

    /// The last batch submitted.
    pub fn last(&self) -> Ticket {
        self.shared.state.lock().last()
    }

    /// Returns whether a batch is not durable yet. The owner calls [`Self::durable`] with
    /// [`Self::last`] within its flush interval.
    pub fn is_dirty(&self) -> bool {
        self.last().0 > *self.shared.durable.borrow()
    }

    /// Returns whether the dataset has no root directory yet; the file system above then writes
    /// one.
    pub fn is_new(&self) -> bool {
        self.shared.is_new
    }

    /// The epoch that this committer writes in.
    pub fn epoch(&self) -> Epoch {
        self.shared.db.epoch()
    }

    /// An inode number never given out before in this epoch (R7), and its generation: the epoch in
    /// the upper half, a counter in the lower. The number may have been given out in an earlier
    /// epoch that was lost with its node; the generation is new all the same.
    pub fn new_inode(&self) -> Result<(InodeNo, u64), FsError> {
        let ino = InodeNo(self.shared.next_inode.fetch_add(1, Ordering::Relaxed));
        if ino > InodeNo::MAX {
            return Err(FsError::NoInodes);
        }
        let counter = self.shared.generations.fetch_add(1, Ordering::Relaxed) & u64::from(u32::MAX);
        Ok((ino, (self.epoch().0 << 32) | counter))
    }

    /// A data id that no row of the database has (R5).
    pub fn new_data(&self) -> Result<DataId, FsError> {
        Ok(DataId(self.shared.next_data.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn superblock(&self) -> Superblock {
        self.shared.state.lock().superblock().clone()
    }

    pub fn totals(&self) -> Totals {
        self.shared.state.lock().totals()
    }

    /// Current references into a pack (for R10's check and for tests).
    pub fn usage(&self, pack: PackId) -> Usage {
        self.shared.state.lock().usage(pack)
    }

    /// The packs that may get further references: in use and not sealed.
    pub fn open_packs(&self) -> Vec<PackId> {
        self.shared.state.lock().open_packs()
    }

    /// Refuses from now on the first reference into a pack unless `is_unsettled` returns that this
    /// opening stored it and has not settled it (R10). It is called under the committer's lock and
    /// must not call back.
    pub fn refer_only_to(&self, is_unsettled: Arc<dyn Fn(PackId) -> bool + Send + Sync>) {
        self.shared.state.lock().refer_only_to(is_unsettled);
    }

    /// Allows batches to refer to these packs while the returned pin lives (R10). The caller
    /// guarantees that they are those of a snapshot that stays pinned in the catalog until every
    /// such batch is durable.
    pub fn pin(&self, packs: HashSet<PackId>) -> Pin {
        let pin = self.shared.state.lock().pin(Arc::new(packs));
        Pin { shared: self.shared.clone(), pin }
    }

    /// Refuses from now on references to chunks of these packs that are not in use already (R12).
    /// The seal counts once the ticket is durable.
    pub fn seal(&self, packs: &[PackId]) -> Result<Ticket, FsError> {
        self.shared.state.lock().seal(packs);
        self.submit(Batch::default())
    }

    /// Makes a checkpoint that contains every batch submitted before the call.
    pub async fn checkpoint(&self, name: &str) -> Result<CheckpointId, FsError> {
        self.shared.settle_written().await?;
        self.shared.step("fs.commit.before-checkpoint").await?;
        let checkpoint = self.shared.db.checkpoint(name).await?;
        self.shared.step("fs.commit.after-checkpoint").await?;
        self.shared.check().map(|()| checkpoint)
    }

    /// See [`Database::damage`].
    pub fn damage(&self) -> Option<FsError> {
        self.shared.db.damage()
    }

    /// See [`Database::detach`].
    pub async fn detach(&self) -> Result<Detached, FsError> {
        self.shared.db.detach().await
    }

    /// Returns a view of all rows, `S` and `U` included, at one point in time at or after the call.
    pub async fn view(&self) -> Result<View, FsError> {
        self.shared.settle_written().await?;
        self.shared.db.view()
    }

    /// Passes a failpoint of the layers above the committer.
    pub(in crate::fs) async fn step(&self, name: &str) -> Result<(), FsError> {
        self.shared.step(name).await
    }

    /// Random for this opening (R18).
    pub fn write_verifier(&self) -> [u8; 8] {
        self.shared.write_verifier
    }

    /// Asks the store whether this process is still the database's writer. [`FsError::Fenced`]
    /// stops the committer.
    pub async fn verify_owner(&self) -> Result<(), FsError> {
        let verified = self.shared.db.verify_owner().await;
        if let Err(FsError::Fenced) = verified {
            self.shared.stop(FsError::Fenced);
        }
        verified.and(self.shared.check())
    }

    /// Stops for good: another owner is known to have the dataset.
    pub fn give_up(&self, reason: FsError) {
        self.shared.stop(reason);
    }

    /// Returns whether the committer still serves, or still closes.
    pub fn has_not_stopped(&self) -> bool {
        self.shared.check().is_ok()
    }

    /// The reason why the committer has stopped.
    pub fn stopped_for(&self) -> Option<FsError> {
        self.shared.check().err()
    }

    /// Resolves when the committer has stopped for good (fenced, closed, corrupt), with the reason.
    pub async fn stopped(&self) -> FsError {
        let mut stopped = self.shared.stopped.subscribe();
        match stopped.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_else(closed),
            Err(_) => closed(),
        }
    }
}

/// See [`Committer::pin`].
pub struct Pin {
    shared: Arc<Shared>,
    pin: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.shared.state.lock().unpin(self.pin);
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // The tasks end; what was applied stays in the journal.
        self.shared.stop(closed());
    }
}

fn closed() -> FsError {
    FsError::Unavailable("the dataset is closed".into())
}

impl Shared {
    /// Stops for good. The first reason stays.
    fn stop(&self, reason: FsError) {
        self.state.lock().stop(reason.clone());
        self.stopped.send_if_modified(|stopped| {
            let first = stopped.is_none();
            if first {
                *stopped = Some(reason);
            }
            first
        });
    }

    fn check(&self) -> Result<(), FsError> {
        self.stopped.borrow().clone().map_or(Ok(()), Err)
    }

    /// Requests a flush that covers the ticket. One that is not in SlateDB's memory yet is left to
    /// the drain task, which checks for such requests after each write: waking the flush task for
    /// nothing would cost more than the rest of the call.
    fn want_durable(&self, ticket: Ticket) {
        self.wanted.fetch_max(ticket.0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if *self.written.borrow() >= ticket.0 {
            self.due.notify_one();
        }
    }

    /// Waits for `progress` to reach the ticket, the committer to stop, or the time limit. A stop
    /// wins over everything.
    async fn reached(
        &self,
        progress: &watch::Sender<u64>,
        ticket: Ticket,
        what: &str,
    ) -> Result<(), FsError> {
        if *progress.borrow() >= ticket.0 {
            return self.check();
        }
        let mut progress = progress.subscribe();
        self.wait(what, async {
            progress.wait_for(|reached| *reached >= ticket.0).await.map(drop).unwrap_or(());
        })
        .await
    }

    async fn wait(&self, what: &str, done: impl Future<Output = ()>) -> Result<(), FsError> {
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            biased;
            reason = stopped.wait_for(Option::is_some) => {
                Err(reason.ok().and_then(|r| r.clone()).unwrap_or_else(closed))
            }
            () = done => self.check(),
            () = tokio::time::sleep(WAIT_LIMIT) => Err(self.db.blocked().unwrap_or_else(|| {
                FsError::Unavailable(format!("{what}: no answer within {} s", WAIT_LIMIT.as_secs()))
            })),
        }
    }

    /// Waits until everything submitted so far is in SlateDB's memory.
    async fn settle_written(&self) -> Result<(), FsError> {
        let last = self.state.lock().last();
        self.reached(&self.written, last, "the database").await
    }

    async fn step(&self, name: &str) -> Result<(), FsError> {
        self.failpoints.step(name).await.map_err(|error| FsError::Unavailable(error.to_string()))
    }
}
