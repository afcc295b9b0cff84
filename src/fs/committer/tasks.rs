//! The drain task, the flush task, and closing.

use super::redo::Redo;
use super::state::{Group, Marks};
use super::{Committer, Shared, Ticket, closed};
use crate::fs::FsError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::JoinHandle;

/// The committer's tasks. They end when the committer stops.
pub(super) struct Tasks {
    drain: JoinHandle<Redo>,
    flush: JoinHandle<()>,
    watch: JoinHandle<()>,
}

impl Tasks {
    pub fn start(shared: &Arc<Shared>, redo: Redo) -> Self {
        let task = || shared.clone();
        Self { drain: tokio::spawn(drain(task(), redo)), flush: tokio::spawn(flush(task())), watch: tokio::spawn(watch(task())) }
    }

    /// Waits for the end, and gives the journal back.
    async fn ended(self) -> Option<Redo> {
        for task in [self.flush, self.watch] {
            let _ = task.await;
        }
        self.drain.await.ok()
    }
}

/// Stops the committer when its database does.
async fn watch(shared: Arc<Shared>) {
    let mut stopped = shared.stopped.subscribe();
    tokio::select! {
        reason = shared.db.closed() => shared.stop(reason),
        _ = stopped.wait_for(Option::is_some) => {}
    }
}

/// Writes what is queued, all that is queued at a time: batches that came while one group was being written are the next.
async fn drain(shared: Arc<Shared>, mut redo: Redo) -> Redo {
    let mut stopped = shared.stopped.subscribe();
    loop {
        while let Some(group) = shared.take() {
            if let Err(error) = shared.write(group, &mut redo).await {
                shared.stop(error);
                return redo;
            }
        }
        tokio::select! {
            () = shared.queued.notified() => {}
            _ = stopped.wait_for(Option::is_some) => return redo,
        }
    }
}

/// Group commit: one flush in flight; who wants durability meanwhile joins the next.
async fn flush(shared: Arc<Shared>) {
    let mut stopped = shared.stopped.subscribe();
    tokio::select! {
        _ = stopped.wait_for(Option::is_some) => {}
        error = flush_until_error(&shared) => shared.stop(error),
    }
}

async fn flush_until_error(shared: &Shared) -> FsError {
    let mut wanted = shared.wanted.subscribe();
    let mut written = shared.written.subscribe();
    loop {
        let durable = *shared.durable.borrow();
        let Ok(target) = wanted.wait_for(|wanted| *wanted > durable).await.map(|wanted| *wanted) else { return closed() };
        let all = written.wait_for(|written| *written >= target);
        let written = tokio::select! {
            written = all => written.is_ok(),
            // What is wanted is behind a full journal, which has room again when what was written before is durable.
            () = shared.room.notified() => true,
        };
        if !written {
            return closed();
        }
        if let Err(error) = shared.flush().await {
            return error;
        }
    }
}

impl Shared {
    fn take(&self) -> Option<Group> {
        // Before the queue is taken: what is settled by now was submitted by now, so it is in this group or an earlier one (R9).
        let settled = (self.settled)();
        let mut state = self.state.lock();
        let time_ceiling = if state.is_closing() { self.clock.shown() } else { self.clock.ceiling() };
        state.take(Marks {
            next_inode: self.next_inode.load(Ordering::Relaxed),
            next_data: self.next_data.load(Ordering::Relaxed),
            time_ceiling,
            settled,
        })
    }

    async fn write(&self, group: Group, redo: &mut Redo) -> Result<(), FsError> {
        redo.log(self, &group).await?;
        self.step("fs.commit.before-write").await?;
        self.db.write(group.ops()).await?;
        self.step("fs.commit.after-write").await?;
        self.state.lock().written(&group);
        self.written_ceiling.store(group.superblock.time_ceiling.as_nanos(), Ordering::Release);
        self.written.send_replace(group.last);
        Ok(())
    }

    async fn flush(&self) -> Result<(), FsError> {
        let ceiling = self.written_ceiling.load(Ordering::Acquire);
        let covered = *self.written.borrow();
        self.step("fs.commit.before-flush").await?;
        self.db.flush().await?;
        self.step("fs.commit.after-flush").await?;
        self.clock.raised(crate::types::Timestamp::from_nanos(ceiling));
        self.durable.send_replace(covered);
        self.raise_applied(covered);
        Ok(())
    }
}

impl Shared {
    /// What is in the store survives this process, whatever the journal does.
    pub(super) fn raise_applied(&self, to: u64) {
        self.applied.send_if_modified(|applied| {
            let more = to > *applied;
            *applied = to.max(*applied);
            more
        });
    }
}

impl Committer {
    /// Stops at once and writes nothing more, as the death of the process would: for an owner that lost its dataset. What was applied stays
    /// in the journal. Returns when nothing of this committer runs any more.
    pub async fn abandon(&self) {
        self.shared.stop(closed());
        let tasks = self.tasks.lock().take();
        if let Some(tasks) = tasks {
            drop(tasks.ended().await);
        }
    }

    /// Flushes everything, closes the database, and removes the journal. Batches submitted from now on are refused.
    pub async fn close(&self) -> Result<(), FsError> {
        self.shared.check()?;
        let last: Ticket = self.shared.state.lock().finish(closed())?;
        self.shared.queued.notify_one();
        let flushed = self.durable(last).await;
        self.shared.stop(closed());
        let tasks = self.tasks.lock().take();
        let redo = match tasks {
            Some(tasks) => tasks.ended().await,
            None => None,
        };
        flushed?;
        self.shared.step("fs.commit.before-close").await?;
        self.shared.db.close().await?;
        self.shared.step("fs.commit.after-close").await?;
        redo.map_or(Ok(()), Redo::remove)
    }
}
