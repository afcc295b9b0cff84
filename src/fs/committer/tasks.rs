//! The drain task, the flush task, and closing.

use super::state::{Group, Marks};
use super::{Committer, Shared, Ticket, closed};
use crate::fs::FsError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
        Self { drain: tokio::spawn(drain(task())), flush: tokio::spawn(flush(task())), watch: tokio::spawn(watch(task())) }
    }

    async fn ended(self) {
        for task in [self.drain, self.flush, self.watch] {
            // A panic of a task was a stop of the committer: its waiters have their time limits.
            let _ = task.await;
        }
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
async fn drain(shared: Arc<Shared>) {
    let mut stopped = shared.stopped.subscribe();
    loop {
        while let Some(group) = shared.take() {
            if let Err(error) = shared.write(group).await {
                return shared.stop(error);
            }
        }
        tokio::select! {
            () = shared.queued.notified() => {}
            _ = stopped.wait_for(Option::is_some) => return,
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
        if written.wait_for(|written| *written >= target).await.is_err() {
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

    async fn write(&self, group: Group) -> Result<(), FsError> {
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
        Ok(())
    }
}

impl Committer {
    /// Flushes everything, closes the database, and removes the journal. Batches submitted from now on are refused.
    pub async fn close(&self) -> Result<(), FsError> {
        self.shared.check()?;
        let last: Ticket = self.shared.state.lock().finish(closed())?;
        self.shared.queued.notify_one();
        let flushed = self.durable(last).await;
        self.shared.stop(closed());
        let tasks = self.tasks.lock().take();
        if let Some(tasks) = tasks {
            tasks.ended().await;
        }
        flushed?;
        self.shared.step("fs.commit.before-close").await?;
        self.shared.db.close().await?;
        self.shared.step("fs.commit.after-close").await
    }
}
