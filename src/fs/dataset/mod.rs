//! One open file system, and what an acknowledgement waits for. The calls themselves are in
//! [`super::calls`].

use super::api::{FileRef, StatFs};
use super::committer::{Batch, Committer, Ticket};
use super::content::Contents;
use super::db::{CheckpointId, Detached};
use super::gate::Gate;
use super::inode::{Inodes, Node};
use super::lease::Lease;
use super::names::{Names, Outcome};
use super::options::FsProperties;
use super::replies::ReplyCache;
use super::{FsError, Throttle};
use crate::types::{InodeNo, PackId, SyncMode, Timestamp};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

mod close;
mod open;

use open::record_bits;

/// Figures that statfs returns where there is no quota: 1 PiB, which tools still print well, and as
/// many inodes as have numbers.
const BYTES_UNLIMITED: u64 = 1 << 50;
const INODES_UNLIMITED: u64 = InodeNo::MAX.0;
/// Pause between retries of a change that already has its place in the order.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A dataset open for reading and writing.
pub struct Fs {
    pub(super) committer: Arc<Committer>,
    pub(super) inodes: Arc<Inodes>,
    pub(super) names: Names,
    pub(super) contents: Arc<Contents>,
    pub(super) replies: Arc<ReplyCache>,
    pub(super) gate: Arc<Gate>,
    pub(super) lease: Arc<dyn Lease>,
    sync: RwLock<SyncMode>,
    pub(super) throttle: Arc<Throttle>,
    root: FileRef,
    quota_bytes: Mutex<Option<u64>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Held by a restore in place: only one may run.
    pub(super) restoring: tokio::sync::Mutex<()>,
}

/// The durability that a change needs before it is acknowledged (the table of docs/durability.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    /// The change survives the death of this process: CREATE, MKDIR, SYMLINK, MKNOD, SETATTR.
    Applied,
    /// The change is in the store: data that was synced, REMOVE, RMDIR, RENAME, LINK. Linux sends
    /// nothing for fsync of a directory.
    Durable,
}

impl Fs {
    /// Writes out everything acknowledged and buffered, then takes a checkpoint. It contains every
    /// call answered before this one began.
    pub async fn snapshot(&self, name: &str) -> Result<CheckpointId, FsError> {
        let cut = async {
            self.contents.flush_all().await?;
            self.committer.checkpoint(name).await
        };
        self.answer(cut).await
    }

    /// The damage that keeps the dataset's database from being compacted: before long it refuses
    /// every change.
    pub fn damage(&self) -> Option<FsError> {
        self.committer.damage()
    }

    /// Rewrites a clone's database so that it reads no ancestor's tables (R13). May be called
    /// again.
    pub async fn detach(&self) -> Result<Detached, FsError> {
        // The gate is not held: closing need not wait for a detach, but ends it.
        drop(self.gate.enter()?);
        self.committer.detach().await
    }

    /// Seals these packs: from now on no chunk in them comes into use that is not in use already
    /// (R12). A pack that is not settled yet still takes the chunks that were stored in it. Durable
    /// when this returns; the rows show which are sealed.
    pub async fn seal(&self, packs: &[PackId]) -> Result<(), FsError> {
        let _call = self.gate.enter()?;
        self.contents.seal(packs).await
    }

    /// Flushes everything written so far to the object store.
    pub async fn sync(&self) -> Result<(), FsError> {
        let _call = self.gate.enter()?;
        let ticket = self.contents.flush_all().await?;
        self.committer.durable(ticket).await
    }

    /// Returns a ctime above `last` for objects shown beside this file system's own (R8).
    pub fn ctime_after(&self, last: Timestamp) -> Timestamp {
        self.names.now().ctime(last)
    }

    /// Changes properties for calls that begin from now on. What was acknowledged under a weaker
    /// `sync` before is in the store when this returns.
    pub async fn set_properties(&self, properties: &FsProperties) -> Result<(), FsError> {
        self.names.set_record_bits(record_bits(properties.record_bytes)?);
        self.names.show_snapshots(properties.shows_snapshots);
        self.contents.set_codec(properties.codec);
        self.throttle.set(properties.limits);
        self.set_quota(properties.quota_bytes, properties.quota_inodes);
        *self.sync.write() = properties.sync;
        // Also where nothing has changed: it may be the retry of a change whose flush failed.
        match properties.sync {
            SyncMode::Disabled => Ok(()),
            SyncMode::Standard | SyncMode::Always => self.sync().await,
        }
    }

    /// Presents every inode with this group, and as its group's to read and write, as Kubernetes'
    /// `fsGroup` asks: in the store when this returns (R28).
    pub async fn set_mount_group(&self, gid: u32) -> Result<(), FsError> {
        self.gate.freeze.passed().await;
        let _call = self.gate.enter()?;
        if self.committer.superblock().fs_group == Some(gid) {
            // Perhaps the retry of a call that failed.
            return self.committer.durable(self.committer.last()).await;
        }
        let ticket = self.committer.submit(Batch { fs_group: Some(gid), ..Batch::default() })?;
        self.inodes.present_all().await;
        self.committer.durable(ticket).await
    }

    pub fn set_quota(&self, bytes: Option<u64>, inodes: Option<u64>) {
        *self.quota_bytes.lock() = bytes;
        self.contents.set_quota(bytes);
        self.names.set_quota_inodes(inodes);
    }

    fn sync_mode(&self) -> SyncMode {
        *self.sync.read()
    }

    /// Returns a number that grows with every change.
    pub fn changes(&self) -> u64 {
        self.committer.last().0
    }

    /// Resolves when the file system can no longer serve: fenced or failed.
    pub async fn stopped(&self) -> FsError {
        self.committer.stopped().await
    }

    pub(super) fn root_ref(&self) -> FileRef {
        self.root
    }

    pub(super) fn totals(&self) -> StatFs {
        let totals = self.committer.totals();
        let used = totals.allocated.saturating_add(self.contents.reserved());
        let total_bytes = (*self.quota_bytes.lock()).unwrap_or(BYTES_UNLIMITED);
        let total_inodes = self.names.quota_inodes().unwrap_or(INODES_UNLIMITED);
        StatFs {
            total_bytes,
            free_bytes: total_bytes.saturating_sub(used),
            total_inodes,
            free_inodes: total_inodes.saturating_sub(totals.inodes),
        }
    }

    /// Waits until a batch is as durable as the sync mode promises.
    pub(super) async fn await_durable(
        &self,
        promise: Promise,
        ticket: Ticket,
    ) -> Result<(), FsError> {
        self.committer.step("fs.call.submitted").await?;
        match (self.sync_mode(), promise) {
            (SyncMode::Disabled, _) | (SyncMode::Standard, Promise::Applied) => {
                self.committer.applied(ticket).await
            }
            (SyncMode::Standard, Promise::Durable) | (SyncMode::Always, _) => {
                self.committer.durable(ticket).await
            }
        }?;
        self.committer.step("fs.call.kept").await
    }

    /// Waits for what a change needs that already has its place in the order: as long as the store
    /// is unreachable, or until nothing can be answered. A client that is asked to retry sends a
    /// new call, which the reply cache does not know, and the change would be done twice: NOENT for
    /// a REMOVE that took effect. Here its mount waits, as a hard mount does.
    pub(super) async fn retry_until_stopped<T, F: Future<Output = Result<T, FsError>>>(
        &self,
        work: impl Fn() -> F,
    ) -> Result<T, FsError> {
        loop {
            match work().await {
                // Once the committer has stopped, this process cannot know whether the change took
                // effect; it has lost the volume (R25).
                Err(FsError::Unavailable(_)) if self.committer.has_not_stopped() => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Returns whether every WRITE is answered as if it had been requested as synchronous.
    pub(super) fn writes_through(&self) -> bool {
        self.sync_mode() == SyncMode::Always
    }

    /// With `always`, waits until the state that `node` shows is in the store (R15).
    pub(super) async fn observe(&self, node: &Arc<Node>) -> Result<(), FsError> {
        if self.sync_mode() != SyncMode::Always {
            return Ok(());
        }
        if node.content.is_dirty() {
            self.contents.flush_for_order(node).await?;
        }
        self.committer.durable(node.last()).await
    }

    /// Turns an operation's outcome into its answer: waits for what the operation changed and, with
    /// `always`, for what it saw, even when it failed.
    pub(super) async fn settle<T>(
        &self,
        outcome: Result<Outcome<T>, FsError>,
        promise: Promise,
        seen: &[FileRef],
    ) -> Result<T, FsError> {
        let changed = match &outcome {
            Ok(Outcome { ticket, .. }) => *ticket,
            Err(_) => None,
        };
        if let Some(ticket) = changed {
            self.retry_until_stopped(|| self.await_durable(promise, ticket)).await?;
        }
        if self.sync_mode() == SyncMode::Always {
            for file in seen {
                if let Some(node) = self.inodes.peek(file.ino) {
                    match changed {
                        Some(_) => self.retry_until_stopped(|| self.observe(&node)).await?,
                        None => self.observe(&node).await?,
                    }
                }
            }
        }
        outcome.map(|outcome| outcome.answer)
    }
}

/// A file system dropped without [`Fs::close`] stops like a process that dies: acknowledged changes
/// are in the journal or the store.
impl Drop for Fs {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
