//! The drain task, the flush task, and closing.

use super::gather::Gather;
use super::redo::Redo;
use super::state::{Group, Marks};
use super::{Committer, Shared, Ticket, closed};
use crate::fs::FsError;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use tokio::task::JoinHandle;

/// The committer's tasks. They end when the committer stops.
pub(super) struct Tasks {
    drain: JoinHandle<()>,
    flush: JoinHandle<()>,
    watch: JoinHandle<()>,
}

impl Tasks {
    pub fn start(shared: &Arc<Shared>) -> Self {
        let task = || shared.clone();
        Self {
            drain: tokio::spawn(drain(task())),
            flush: tokio::spawn(flush(task())),
            watch: tokio::spawn(watch(task())),
        }
    }

    async fn ended(self) {
        for task in [self.flush, self.watch, self.drain] {
            let _ = task.await;
        }
    }
}

/// The progress of a close.
#[derive(Default)]
pub(super) enum Closing {
    #[default]
    Open,
    /// The store has everything; the journal is no longer needed and still exists.
    Flushed(Option<Redo>),
}

/// Stops the committer when its database does.
async fn watch(shared: Arc<Shared>) {
    let mut stopped = shared.stopped.subscribe();
    tokio::select! {
        reason = shared.db.closed() => shared.stop(reason),
        _ = stopped.wait_for(Option::is_some) => {}
    }
}

/// Writes the queue, all of it at a time: batches that arrive while one group is being written form
/// the next.
async fn drain(shared: Arc<Shared>) {
    let mut stopped = shared.stopped.subscribe();
    loop {
        while let Some(group) = shared.take() {
            if let Err(error) = shared.write(group).await {
                shared.stop(error);
                return;
            }
        }
        tokio::select! {
            () = shared.queued.notified() => {}
            _ = stopped.wait_for(Option::is_some) => return,
        }
    }
}

/// Group commit: one flush in flight; callers that want durability meanwhile share the next.
async fn flush(shared: Arc<Shared>) {
    let mut stopped = shared.stopped.subscribe();
    tokio::select! {
        _ = stopped.wait_for(Option::is_some) => {}
        error = flush_until_error(&shared) => shared.stop(error),
    }
}

async fn flush_until_error(shared: &Shared) -> FsError {
    let mut gather = Gather::new();
    loop {
        let target = shared.wanted.load(Ordering::SeqCst);
        if target <= *shared.durable.borrow() {
            shared.due.notified().await;
            continue;
        }
        shared.wait_until_written(target).await;
        gather.wait(&shared.demand).await;
        if let Err(error) = shared.flush(&mut gather).await {
            return error;
        }
    }
}

impl Shared {
    fn take(&self) -> Option<Group> {
        // Read before the queue is taken: what is settled now was submitted before now, so it is in
        // this group or an earlier one (R9).
        let settled = (self.settled)();
        let mut state = self.state.lock();
        state.take(Marks {
            next_inode: self.next_inode.load(Ordering::Relaxed),
            next_data: self.next_data.load(Ordering::Relaxed),
            settled,
        })
    }

    /// Waits until SlateDB has a batch; requests for durability meanwhile do not delay that.
    async fn wait_until_written(&self, target: u64) {
        while *self.written.borrow() < target {
            tokio::select! {
                // The drain task notifies.
                () = self.due.notified() => {}
                // The wanted batch is behind a full journal, which has room again when the batches
                // written before are durable.
                () = self.room.notified() => return,
            }
        }
    }

    async fn write(&self, group: Group) -> Result<(), FsError> {
        self.log(&group).await?;
        self.step("fs.commit.before-write").await?;
        self.db.write_counted(group.ops(), group.bytes as u64).await?;
        self.step("fs.commit.after-write").await?;
        self.state.lock().written(&group);
        self.written.send_replace(group.last);
        // Either this sees what is wanted, or the caller that wants it sees what is written.
        fence(Ordering::SeqCst);
        if self.wanted.load(Ordering::SeqCst) > *self.durable.borrow() {
            self.due.notify_one();
        }
        Ok(())
    }

    async fn flush(&self, gather: &mut Gather) -> Result<(), FsError> {
        gather.begin(&self.demand);
        let covered = *self.written.borrow();
        self.step("fs.commit.before-flush").await?;
        self.db.flush().await?;
        self.step("fs.commit.after-flush").await?;
        gather.end(&self.demand);
        self.durable.send_replace(covered);
        self.raise_applied(covered);
        Ok(())
    }
}

impl Shared {
    /// Marks batches as applied up to `to`: what is in the store survives this process, whatever
    /// the journal does.
    pub(super) fn raise_applied(&self, to: u64) {
        self.applied.send_if_modified(|applied| {
            let more = to > *applied;
            *applied = to.max(*applied);
            more
        });
    }
}

impl Committer {
    /// Stops at once and writes nothing more, as the death of the process would: for an owner that
    /// lost its dataset. What was applied stays in the journal. Returns when no task of this
    /// committer runs.
    pub async fn abandon(&self) {
        self.shared.stop(closed());
        let tasks = self.tasks.lock().take();
        if let Some(tasks) = tasks {
            tasks.ended().await;
            // Releases the journal for the next opening on this node.
            self.shared.redo.lock().take();
        }
    }

    /// Moves durable data to where the next opening finds it fastest, while this process still
    /// serves.
    pub async fn prepare_handover(&self) -> Result<(), FsError> {
        self.shared.db.rolled().await
    }

    /// As [`Self::abandon`], and releases the database: another process of this node goes on with
    /// it. The journal stays for that process, which replays what the store does not have (R16).
    pub async fn hand_over(&self) -> Result<(), FsError> {
        self.abandon().await;
        self.shared.db.hand_over().await
    }

    /// Flushes everything, closes the database, and removes the journal. Batches submitted from now
    /// on are refused. After a failure it may be retried, unless the committer has stopped: an
    /// outage of the store must not leave a dataset that can neither be used nor closed (R17).
    pub async fn close(&self) -> Result<(), FsError> {
        let mut closing = self.closing.lock().await;
        if let Closing::Open = *closing {
            *closing = Closing::Flushed(self.finish().await?);
        }
        self.shared.step("fs.commit.before-close").await?;
        self.shared.db.close().await?;
        self.shared.step("fs.commit.after-close").await?;
        match std::mem::replace(&mut *closing, Closing::Flushed(None)) {
            Closing::Flushed(Some(redo)) => redo.remove(),
            Closing::Flushed(None) | Closing::Open => Ok(()),
        }
    }

    /// Everything in the store, and the tasks ended.
    async fn finish(&self) -> Result<Option<Redo>, FsError> {
        self.shared.check()?;
        let last: Ticket = self.shared.state.lock().finish(closed())?;
        self.shared.queued.notify_one();
        self.durable(last).await?;
        self.shared.stop(closed());
        let tasks = self.tasks.lock().take();
        if let Some(tasks) = tasks {
            tasks.ended().await;
        }
        Ok(self.shared.redo.lock().take())
    }

    /// Returns whether [`Self::close`] has put everything into the store, so that a retry can
    /// finish it.
    pub async fn is_flushed(&self) -> bool {
        matches!(*self.closing.lock().await, Closing::Flushed(_))
    }
}
