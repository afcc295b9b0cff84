//! The committer's use of the journal, and how it does without when the journal fails.
//!
//! A caller that waits for [`Committer::applied`](super::Committer::applied) appends the queued
//! batches itself, unless another caller already does: one write(2) then lies between the call and
//! its answer, and no task has to be woken and waited for. The drain task appends what is left,
//! before SlateDB gets it. Both go through [`Shared::redo`], in the order of the queue.

use super::state::{Group, Queued};
use super::{Shared, Ticket, closed};
use crate::fs::FsError;
use crate::fs::journal::{Appended, Journal, RecordRef};
use std::sync::atomic::Ordering;

/// A dataset's journal, if its owner has one.
pub(super) struct Redo {
    journal: Option<Journal>,
    /// Set while nothing is appended: a record after a gap could not be replayed. Records appended
    /// before stay valid, because the store's state is a prefix of the order too.
    failed: bool,
    /// The last batch in the journal; after it comes the next one.
    logged: u64,
}

/// The result of an attempt to append.
enum Logged {
    Done,
    /// The journal is full until the object store has this batch.
    FullUntil(u64),
    /// The journal cannot be written.
    Failing,
}

impl Redo {
    /// `last`: the last batch before the journal's first.
    pub fn new(journal: Option<Journal>, last: u64) -> Self {
        Self { journal, failed: false, logged: last }
    }

    pub fn is_some(&self) -> bool {
        self.journal.is_some()
    }

    /// The dataset was closed cleanly.
    pub fn remove(self) -> Result<(), FsError> {
        self.journal.map_or(Ok(()), Journal::remove)
    }

    /// Appends the queued batches that are not logged yet. `false`: that is left to the drain task,
    /// because it has earlier batches, or because the journal is full or failing.
    fn log_queued(&mut self, shared: &Shared) -> bool {
        let Some(journal) = self.journal.as_mut().filter(|_| !self.failed) else { return false };
        let durable = *shared.durable.borrow();
        match journal.make_room(self.logged + 1, durable) {
            Ok(Appended::Done) => {}
            // The drain task meets the same error, and handles it.
            Ok(Appended::FullUntil(_)) | Err(_) => return false,
        }
        let encoded = {
            let state = shared.state.lock();
            let queued = state.queued_after(self.logged);
            let Some(last) = queued.last().map(|queued| queued.seq) else { return false };
            journal.encode(&records(shared, queued)).map(|encoded| (encoded, last))
        };
        let Ok((encoded, last)) = encoded else { return false };
        if let Err(error) = journal.write(encoded) {
            self.fails(&error);
            return false;
        }
        self.logged = last;
        shared.raise_applied(last);
        true
    }

    fn log_group(&mut self, shared: &Shared, group: &Group) -> Logged {
        if self.journal.is_none() {
            return Logged::Done;
        }
        if self.failed && !self.restarted(shared, group) {
            return Logged::Failing;
        }
        let (Some(journal), left) = (&mut self.journal, group.after(self.logged)) else {
            return Logged::Done;
        };
        let durable = *shared.durable.borrow();
        match journal.append(&records(shared, left), durable) {
            Ok(Appended::Done) => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!("the journal works again");
                }
                self.logged = self.logged.max(group.last);
                shared.raise_applied(group.last);
                Logged::Done
            }
            Ok(Appended::FullUntil(needed)) => Logged::FullUntil(needed),
            Err(error) => {
                self.fails(&error);
                Logged::Failing
            }
        }
    }

    fn fails(&mut self, error: &FsError) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!(
                %error,
                "the journal cannot be written: every change waits for the object store until it \
                 can; free space on the node"
            );
        }
    }

    /// Restarts a failed journal, empty, once the store has everything before the group.
    fn restarted(&mut self, shared: &Shared, group: &Group) -> bool {
        let first = group.batches.first().map_or(group.last, |queued| queued.seq);
        let restarted = *shared.durable.borrow() + 1 >= first
            && self.journal.as_mut().is_some_and(|j| j.restart(first).is_ok());
        if restarted {
            self.logged = first - 1;
        }
        restarted
    }
}

fn records<'a>(shared: &Shared, batches: &'a [Queued]) -> Vec<RecordRef<'a>> {
    // Read after the batches were submitted, so at least the numbers that they use.
    let (next_inode, next_data) =
        (shared.next_inode.load(Ordering::Relaxed), shared.next_data.load(Ordering::Relaxed));
    let record = |queued: &'a Queued| RecordRef {
        seq: queued.seq,
        next_inode,
        next_data,
        rows: &queued.batch.rows,
        refs: &queued.batch.refs,
        inodes: queued.batch.inodes,
        allocated: queued.batch.allocated,
        fs_group: queued.batch.fs_group,
    };
    batches.iter().map(record).collect()
}

impl Shared {
    /// Logs the queued batches, if that can be done at once; the drain task does the rest.
    pub(super) async fn log_now(&self) -> Result<(), FsError> {
        self.step("fs.journal.before-append")
            .await
            .inspect_err(|error| self.stop(error.clone()))?;
        if self.step("fs.journal.disk").await.is_err() || !self.log_if_free() {
            return Ok(());
        }
        self.step("fs.journal.after-append").await.inspect_err(|error| self.stop(error.clone()))
    }

    fn log_if_free(&self) -> bool {
        self.redo
            .try_lock()
            .is_some_and(|mut redo| redo.as_mut().is_some_and(|redo| redo.log_queued(self)))
    }

    /// Logs the group that SlateDB gets next; it is `applied` when this returns, unless the journal
    /// fails. While the journal is full this waits for the store, and so does everyone behind it,
    /// as with `sync=always`.
    pub(super) async fn log(&self, group: &Group) -> Result<(), FsError> {
        if !self.journaled {
            return Ok(());
        }
        self.step("fs.journal.before-append").await?;
        loop {
            let logged = match self.step("fs.journal.disk").await {
                Ok(()) => self.log_locked(group),
                Err(error) => {
                    self.journal_fails(&error);
                    Logged::Failing
                }
            };
            match logged {
                Logged::Done => return self.step("fs.journal.after-append").await,
                Logged::Failing => {
                    self.want_durable(Ticket(group.last));
                    return Ok(());
                }
                Logged::FullUntil(needed) => self.wait_for_store(needed).await?,
            }
        }
    }

    fn log_locked(&self, group: &Group) -> Logged {
        self.redo.lock().as_mut().map_or(Logged::Done, |redo| redo.log_group(self, group))
    }

    fn journal_fails(&self, error: &FsError) {
        if let Some(redo) = self.redo.lock().as_mut() {
            redo.fails(error);
        }
    }

    async fn wait_for_store(&self, needed: u64) -> Result<(), FsError> {
        self.want_durable(Ticket(needed));
        self.room.notify_one();
        let (mut durable, mut stopped) = (self.durable.subscribe(), self.stopped.subscribe());
        tokio::select! {
            reached = durable.wait_for(|durable| *durable >= needed) => {
                reached.map(drop).map_err(|_| closed())
            }
            _ = stopped.wait_for(Option::is_some) => self.check(),
        }
    }
}
