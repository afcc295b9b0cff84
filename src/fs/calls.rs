//! The calls of a file system, one by one. Each passes through [`Fs::answer`]; those that must not
//! be done twice also pass through the duplicate request cache; and each is answered only when what
//! it promises holds (see [`Promise`]).

use super::api::*;
use super::dataset::{Fs, Promise, RETRY_PAUSE};
use super::names::{Listed, Outcome, Removal};
use super::permission;
use super::replies::{Begun, Done, ReplySlot};
use super::{FsError, Throttle};
use crate::types::{EntryName, Timestamp};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Time limit for a WRITE that waits for the store: less than a client waits before it retransmits.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// The answer to a retransmitted call: attributes as they are now, and none from before (R20).
fn again(after: Attr) -> Change {
    Change { before: None, after }
}

/// A call that must not be done twice.
enum Repeatable {
    First(ReplySlot),
    /// The call took effect.
    Again(Done),
}

/// Carries out a call that must not be done twice: `first` with the slot of its reply, or, where it
/// took effect before, `again`.
macro_rules! once {
    ($self:ident, $caller:ident, $promise:expr, $seen:expr, {
        first($slot:ident) => $first:expr,
        again($done:pat) => $again:expr,
    }) => {
        $self
            .change(async {
                match $self.turn($caller, $promise, $seen).await? {
                    Repeatable::Again($done) => $again,
                    Repeatable::First($slot) => {
                        let outcome = $first.await;
                        $self.settle_first($slot, outcome, $promise, $seen).await
                    }
                }
            })
            .await
    };
}

impl Fs {
    async fn attr(&self, file: FileRef) -> Result<Attr, FsError> {
        Ok(self.inodes.node(file).await?.attr())
    }

    /// Waits for the call's turn, then for room. A retransmitted call needs no room, and its first
    /// batch is as safe as was promised. One that failed fails again, once the state that it saw
    /// then is safe.
    async fn turn(
        &self,
        caller: &Caller,
        promise: Promise,
        seen: &[FileRef],
    ) -> Result<Repeatable, FsError> {
        match self.replies.begin(caller.call).await {
            Begun::Repeated(Ok(done)) => {
                self.retry_until_stopped(|| self.await_durable(promise, done.ticket)).await?;
                Ok(Repeatable::Again(done))
            }
            Begun::Repeated(Err(error)) => {
                self.settle::<()>(Err(error.clone()), promise, seen).await?;
                Err(error)
            }
            Begun::First(slot) => {
                self.committer.ready().await?;
                Ok(Repeatable::First(slot))
            }
        }
    }

    /// Answers a call that is done for the first time. The reply is cached before anybody waits, so
    /// that it is as durable as the change it reports.
    async fn settle_first<T>(
        &self,
        slot: ReplySlot,
        outcome: Result<Outcome<T>, FsError>,
        promise: Promise,
        seen: &[FileRef],
    ) -> Result<T, FsError> {
        if let Err(error) = &outcome {
            slot.failed(error);
        }
        drop(slot);
        self.settle(outcome, promise, seen).await
    }

    /// The attributes of the object of a retransmitted call that took effect.
    async fn attr_again(&self, file: FileRef) -> Result<Attr, FsError> {
        self.retry_until_stopped(|| self.attr(file)).await
    }

    async fn changed_again(&self, file: FileRef) -> Result<Change, FsError> {
        self.attr_again(file).await.map(again)
    }

    async fn created_again(&self, done: Done, dir: FileRef) -> Result<Created, FsError> {
        let object = done.object.ok_or(FsError::Stale)?;
        Ok(Created { attr: self.attr_again(object).await?, dir: self.changed_again(dir).await? })
    }

    async fn removal(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Removal,
    ) -> Result<Change, FsError> {
        once!(self, caller, Promise::Durable, &[dir], {
            first(slot) => self.names.remove(caller, dir, name, what, &slot),
            again(_) => self.changed_again(dir).await,
        })
    }
}

impl FileSystem for Fs {
    fn root(&self) -> FileRef {
        self.root_ref()
    }

    fn write_verifier(&self) -> [u8; 8] {
        self.committer.write_verifier()
    }

    fn throttle(&self) -> Option<&Arc<Throttle>> {
        Some(&self.throttle)
    }

    fn ended(&self) -> Option<FsError> {
        // The committer stops before the gate is shut.
        self.gate.shut_for().or_else(|| self.committer.stopped_for())
    }

    async fn getattr(&self, file: FileRef) -> Result<Attr, FsError> {
        self.answer(async {
            let node = self.inodes.node(file).await?;
            let attr = node.attr();
            self.observe(&node).await?;
            Ok(attr)
        })
        .await
    }

    async fn setattr(
        &self,
        caller: &Caller,
        file: FileRef,
        set: SetAttr,
        guard: Option<Timestamp>,
    ) -> Result<Change, FsError> {
        once!(self, caller, Promise::Applied, &[file], {
            first(slot) => self.names.setattr(caller, file, set, guard, &slot),
            again(_) => self.changed_again(file).await,
        })
    }

    async fn lookup(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &[u8],
    ) -> Result<(Attr, Attr), FsError> {
        self.answer(async {
            let found = self.names.lookup(caller, dir, name).await;
            if self.writes_through()
                && let Some(dir) = self.inodes.peek(dir.ino)
            {
                self.observe(&dir).await?;
            }
            let (node, dir) = found?;
            let answer = (node.attr(), dir.attr());
            self.observe(&node).await?;
            Ok(answer)
        })
        .await
    }

    async fn access(
        &self,
        caller: &Caller,
        file: FileRef,
        want: u32,
    ) -> Result<(u32, Attr), FsError> {
        self.answer(async {
            let node = self.inodes.node(file).await?;
            let (granted, attr) = {
                let row = node.row.read();
                (permission::granted(caller, &row, want), super::inode::attr(file, &row))
            };
            self.observe(&node).await?;
            Ok((granted, attr))
        })
        .await
    }

    async fn readlink(&self, _caller: &Caller, file: FileRef) -> Result<(Bytes, Attr), FsError> {
        self.answer(async {
            let node = self.inodes.node(file).await?;
            let target =
                node.row.read().target.clone().ok_or(FsError::Invalid("not a symbolic link"))?;
            let attr = node.attr();
            self.observe(&node).await?;
            Ok((target.into(), attr))
        })
        .await
    }

    async fn read(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        count: u32,
    ) -> Result<ReadOut, FsError> {
        self.answer(async {
            let node = self.inodes.node(file).await?;
            let read = self.names.read(caller, &node, offset, count).await?;
            self.observe(&node).await?;
            Ok(read)
        })
        .await
    }

    async fn write(
        &self,
        caller: &Caller,
        file: FileRef,
        offset: u64,
        data: Bytes,
        stability: Stability,
    ) -> Result<Written, FsError> {
        self.change(async {
            self.committer.ready().await?;
            let node = self.inodes.node(file).await?;
            let count = data.len() as u32;
            let change = self.names.write(caller, &node, offset, data).await?;
            if stability == Stability::Unstable && !self.writes_through() {
                return Ok(Written { count, committed: Stability::Unstable, change });
            }
            self.flush_written(&node).await?;
            Ok(Written { count, committed: Stability::FileSync, change })
        })
        .await
    }

    async fn commit(
        &self,
        _caller: &Caller,
        file: FileRef,
        _offset: u64,
        _count: u32,
    ) -> Result<Change, FsError> {
        self.answer(async {
            let node = self.inodes.node(file).await?;
            self.names.committed(file, &node)?;
            self.flush(&node).await?;
            self.names.committed(file, &node)
        })
        .await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        how: CreateHow,
    ) -> Result<Created, FsError> {
        once!(self, caller, Promise::Applied, &[dir], {
            first(slot) => self.names.create(caller, dir, name, how, &slot),
            again(done) => self.created_again(done, dir).await,
        })
    }

    async fn mkdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        set: SetAttr,
    ) -> Result<Created, FsError> {
        once!(self, caller, Promise::Applied, &[dir], {
            first(slot) => self.names.mkdir(caller, dir, name, set, &slot),
            again(done) => self.created_again(done, dir).await,
        })
    }

    async fn make(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
        what: Special,
        set: SetAttr,
    ) -> Result<Created, FsError> {
        once!(self, caller, Promise::Applied, &[dir], {
            first(slot) => self.names.make(caller, dir, name, what, set, &slot),
            again(done) => self.created_again(done, dir).await,
        })
    }

    async fn remove(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<Change, FsError> {
        self.removal(caller, dir, name, Removal::File).await
    }

    async fn rmdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<Change, FsError> {
        self.removal(caller, dir, name, Removal::Directory).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        from: (FileRef, &EntryName),
        to: (FileRef, &EntryName),
    ) -> Result<(Change, Change), FsError> {
        once!(self, caller, Promise::Durable, &[from.0, to.0], {
            first(slot) => self.names.rename(caller, from, to, &slot),
            again(_) => Ok((self.changed_again(from.0).await?, self.changed_again(to.0).await?)),
        })
    }

    async fn link(
        &self,
        caller: &Caller,
        file: FileRef,
        dir: FileRef,
        name: &EntryName,
    ) -> Result<(Attr, Change), FsError> {
        once!(self, caller, Promise::Durable, &[file, dir], {
            first(slot) => self.names.link(caller, file, dir, name, &slot),
            again(_) => Ok((self.attr_again(file).await?, self.changed_again(dir).await?)),
        })
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: FileRef,
        after: DirCookie,
        limit: ListLimit,
    ) -> Result<Listing, FsError> {
        self.answer(async {
            let Listed { listing, dir, seen } =
                self.names.readdir(caller, dir, after, limit).await?;
            self.observe(&dir).await?;
            if self.writes_through() && limit.with_attr {
                self.observe_all(&listing.entries).await?;
                self.committer.durable(seen).await?;
            }
            Ok(listing)
        })
        .await
    }

    async fn statfs(&self) -> Result<StatFs, FsError> {
        self.answer(async { Ok(self.totals()) }).await
    }
}

impl Fs {
    /// Flushes the file's data and metadata to the store, for WRITE(FILE_SYNC) and COMMIT.
    async fn flush(&self, node: &Arc<super::inode::Node>) -> Result<(), FsError> {
        let ticket = self.contents.flush(node).await?;
        self.await_durable(Promise::Durable, ticket.unwrap_or_default().max(node.last())).await
    }

    /// [`Self::flush`] for a WRITE, which has taken effect. A client that gets
    /// [`FsError::Unavailable`] sends a new call, and the data would take effect again, over what
    /// was written since (R36): so this waits for the store, and only then asks the client to
    /// retry.
    async fn flush_written(&self, node: &Arc<super::inode::Node>) -> Result<(), FsError> {
        let since = std::time::Instant::now();
        loop {
            match self.flush(node).await {
                Err(FsError::Unavailable(_)) if self.committer.has_not_stopped() => {
                    if since.elapsed() > WRITE_LIMIT {
                        return Err(FsError::Busy(
                            "the object store does not take what was written",
                        ));
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    async fn observe_all(&self, entries: &[DirEntry]) -> Result<(), FsError> {
        for entry in entries {
            if let Some(node) = self.inodes.peek(entry.ino) {
                self.observe(&node).await?;
            }
        }
        Ok(())
    }
}
