//! The journal as the drain task uses it, and doing without when it fails.

use super::state::Group;
use super::{Shared, closed};
use crate::fs::FsError;
use crate::fs::journal::{Appended, Journal, RecordRef};

/// A dataset's journal, if its owner has one.
pub(super) struct Redo {
    journal: Option<Journal>,
    /// Nothing is appended: a record after a gap could not be replayed. What was appended before stays good, because the store's state is a
    /// prefix of the order too.
    failed: bool,
}

impl Redo {
    pub fn new(journal: Option<Journal>) -> Self {
        Self { journal, failed: false }
    }

    /// Logs a group; `applied` when it returns, unless the journal fails. While the journal is full this waits for the store, and so does
    /// everyone behind it: that is what `sync=always` would do.
    pub async fn log(&mut self, shared: &Shared, group: &Group) -> Result<(), FsError> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        shared.step("fs.journal.before-append").await?;
        if self.failed && !restarted(journal, shared, group) {
            shared.want_durable(super::Ticket(group.last));
            return Ok(());
        }
        match append(journal, shared, group).await {
            Ok(()) => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!("the journal works again");
                }
                shared.raise_applied(group.last);
                shared.step("fs.journal.after-append").await
            }
            Err(error) if shared.check().is_err() => Err(error),
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%error, "the journal cannot be written: every change waits for the object store until it can; free space on the node");
                }
                shared.want_durable(super::Ticket(group.last));
                Ok(())
            }
        }
    }

    pub fn is_some(&self) -> bool {
        self.journal.is_some()
    }

    /// The dataset was closed cleanly.
    pub fn remove(self) -> Result<(), FsError> {
        self.journal.map_or(Ok(()), Journal::remove)
    }
}

/// Tries a failed journal again, empty, once the store has everything before the group.
fn restarted(journal: &mut Journal, shared: &Shared, group: &Group) -> bool {
    let first = group.batches.first().map_or(group.last, |queued| queued.seq);
    *shared.durable.borrow() + 1 >= first && journal.restart(first).is_ok()
}

async fn append(journal: &mut Journal, shared: &Shared, group: &Group) -> Result<(), FsError> {
    let (next_inode, next_data) = (group.superblock.next_inode, group.superblock.next_data);
    let records: Vec<RecordRef<'_>> = group
        .batches
        .iter()
        .map(|queued| RecordRef {
            seq: queued.seq,
            next_inode,
            next_data,
            rows: &queued.batch.rows,
            refs: &queued.batch.refs,
            inodes: queued.batch.inodes,
            allocated: queued.batch.allocated,
            fs_group: queued.batch.fs_group,
        })
        .collect();
    shared.step("fs.journal.disk").await?;
    loop {
        let durable = *shared.durable.borrow();
        let Appended::FullUntil(needed) = journal.append(&records, durable)? else { return Ok(()) };
        shared.want_durable(super::Ticket(needed));
        shared.room.notify_one();
        let (mut durable, mut stopped) = (shared.durable.subscribe(), shared.stopped.subscribe());
        tokio::select! {
            reached = durable.wait_for(|durable| *durable >= needed) => { reached.map_err(|_| closed())?; }
            _ = stopped.wait_for(Option::is_some) => return shared.check(),
        }
    }
}
