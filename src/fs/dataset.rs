//! One open file system: opening, closing, and what an acknowledgement waits for. The calls
//! themselves are in [`super::calls`].

use super::api::{FileKind, FileRef, StatFs};
use super::committer::{Batch, Committer, Ticket};
use super::content::Contents;
use super::db::{CheckpointId, Database, DbPlace, Detached};
use super::gate::Gate;
use super::inode::{Inodes, Node};
use super::journal;
use super::key::{self, DataId};
use super::lease::{AlwaysHeld, Lease};
use super::names::{Names, Outcome};
use super::options::{FsMemory, FsOptions, FsProperties};
use super::permission;
use super::replies::ReplyCache;
use super::row::{Inode, Row};
use super::{FsError, Throttle};
use crate::chunk::ChunkStore;
use crate::types::{Epoch, InodeNo, PackId, SyncMode, Timestamp};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Figures that statfs returns where there is no quota: 1 PiB, which tools still print well, and as
/// many inodes as have numbers.
const BYTES_UNLIMITED: u64 = 1 << 50;
const INODES_UNLIMITED: u64 = InodeNo::MAX.0;
/// Pause between retries of a change that already has its place in the order.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Time limit for calls that wait for the store when a file system is closed.
const CALLS_LIMIT: Duration = Duration::from_secs(60);
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
    /// Opens the dataset, creating its database if it is new: fences earlier owners, replays the
    /// journal, starts background work. Only for a single process: this fences any other that has
    /// it open.
    pub async fn open(
        place: &DbPlace,
        chunks: ChunkStore,
        options: FsOptions,
    ) -> Result<Self, FsError> {
        Self::open_with(place, chunks, options, None, Arc::new(AlwaysHeld)).await
    }

    /// As [`Self::open_at`], answering only while `lease` holds.
    pub async fn open_under(
        place: &DbPlace,
        chunks: ChunkStore,
        options: FsOptions,
        expected: Epoch,
        lease: Arc<dyn Lease>,
    ) -> Result<Self, FsError> {
        Self::open_with(place, chunks, options, Some(expected), lease).await
    }

    /// As [`Self::open`], but only if nobody has opened the database since its writer epoch was
    /// `expected` (0: ever); otherwise [`FsError::Fenced`], and nobody is fenced (R32).
    pub async fn open_at(
        place: &DbPlace,
        chunks: ChunkStore,
        options: FsOptions,
        expected: Epoch,
    ) -> Result<Self, FsError> {
        Self::open_with(place, chunks, options, Some(expected), Arc::new(AlwaysHeld)).await
    }

    async fn open_with(
        place: &DbPlace,
        chunks: ChunkStore,
        options: FsOptions,
        expected: Option<Epoch>,
        lease: Arc<dyn Lease>,
    ) -> Result<Self, FsError> {
        let properties = options.properties;
        let record_bits = record_bits(properties.record_bytes)?;
        options.root.check()?;
        let wal_cache = options.journal.as_deref().map(journal::wal_cache);
        let database = Database::open_beside(place, expected, wal_cache).await?;
        let packer = chunks.packer(place.incarnation, database.epoch(), properties.codec);
        let settled = packer.clone();
        let settled = Box::new(move || settled.settled());
        let failpoints = place.bucket.failpoints().clone();
        let committer = Arc::new(
            Committer::start(database, options.journal.as_deref(), settled, failpoints).await?,
        );
        let root = ensure_root(&committer, &options).await?;
        let replies = Arc::new(ReplyCache::load(&committer).await?);
        let FsMemory { content, inodes, .. } = &options.memory;
        let inodes = Arc::new(Inodes::new(committer.clone(), inodes.clone()));
        let contents = Arc::new(Contents::new(
            committer.clone(),
            inodes.clone(),
            chunks,
            packer,
            content,
            options.flush_interval,
        ));
        contents.set_quota(properties.quota_bytes);
        let names = Names::new(
            committer.clone(),
            inodes.clone(),
            contents.clone(),
            options.clock,
            record_bits,
            properties.quota_inodes,
        );
        names.show_snapshots(properties.shows_snapshots);
        let fs = Self {
            committer,
            inodes,
            names,
            contents,
            replies,
            gate: Arc::default(),
            lease,
            sync: RwLock::new(properties.sync),
            throttle: Throttle::new(properties.limits),
            root,
            quota_bytes: Mutex::new(properties.quota_bytes),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            restoring: tokio::sync::Mutex::default(),
        };
        fs.start(options.flush_interval);
        Ok(fs)
    }

    fn start(&self, flush_interval: Duration) {
        self.contents.start(&self.tasks, self.stop.clone());
        let (committer, stop) = (self.committer.clone(), self.stop.clone());
        self.tasks.spawn(async move { flush_by_time(&committer, flush_interval, &stop).await });
        let (committer, stop, gate) =
            (self.committer.clone(), self.stop.clone(), self.gate.clone());
        let throttle = self.throttle.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                // From here on nothing may be answered, not even from memory: another owner may
                // have changed it.
                reason = committer.stopped() => {
                    gate.shut(reason);
                    throttle.lift();
                }
            }
        });
    }

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

    /// Flushes and closes. Calls in flight finish or fail with [`FsError::Stale`]. May be retried
    /// after an error.
    pub async fn close(&self) -> Result<(), FsError> {
        self.gate.shut(FsError::Stale);
        if tokio::time::timeout(CALLS_LIMIT, self.gate.idle()).await.is_err() {
            return Err(FsError::Unavailable(
                "calls are still waiting for the object store".to_owned(),
            ));
        }
        let flushed = self.contents.flush_all().await;
        if let Err(error) = flushed {
            // A fenced or failed committer accepts nothing; then there is nothing left to save.
            if !matches!(error, FsError::Fenced | FsError::Stale) {
                return Err(error);
            }
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.committer.close().await
    }

    /// Answers new calls with "retry"; calls in progress go on. Used before [`Self::close`], when
    /// callers will find the dataset open again later.
    pub fn hold_calls(&self) {
        self.gate.shut(FsError::Unavailable("the volume is being closed".to_owned()));
    }

    /// Stops at once and writes nothing more, as the death of the process would, and releases the
    /// journal, if that can be done within `limit`.
    pub async fn abandon_within(&self, limit: Duration) {
        let committer = &self.committer;
        self.gate.shut(if committer.has_not_stopped() {
            FsError::Stale
        } else {
            committer.stopped().await
        });
        self.stop.cancel();
        if tokio::time::timeout(limit, self.committer.abandon()).await.is_err() {
            tracing::warn!(
                "something of a volume that has failed waits for the object store, and keeps its \
                 journal locked until that answers"
            );
        }
    }

    /// Flushes everything written so far to where the next opening finds it fastest, while this one
    /// goes on serving.
    pub async fn prepare_handover(&self) -> Result<(), FsError> {
        self.sync().await?;
        let _call = self.gate.enter()?;
        self.committer.prepare_handover().await
    }

    /// Detaches from the dataset for another process of this node, which goes on as after a crash
    /// of this one, with little to replay: the journal stays (R16). Calls that fail from here on
    /// must not be answered: their changes may have taken effect.
    pub async fn hand_over(&self, limit: Duration) -> Result<(), FsError> {
        self.gate.shut(FsError::Unavailable(
            "another process of this node goes on with the volume".to_owned(),
        ));
        let flushed = async {
            self.gate.idle().await;
            let ticket = self.contents.flush_all().await?;
            self.committer.durable(ticket).await
        };
        // Clients resend unstable data that is not in the store, and the journal has the rest (R17,
        // R18).
        match tokio::time::timeout(limit, flushed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::info!(
                    %error,
                    "not everything reached the store before the hand-over: the journal has it"
                );
            }
            Err(_) => tracing::info!(
                "not everything reached the store in time before the hand-over: the journal has it"
            ),
        }
        self.stop.cancel();
        self.tasks.close();
        self.committer.hand_over().await?;
        self.tasks.wait().await;
        Ok(())
    }

    /// Returns whether a failed [`Self::close`] can succeed on a retry; otherwise there is nothing
    /// left to close.
    pub async fn may_close_again(&self) -> bool {
        self.committer.is_flushed().await || self.committer.has_not_stopped()
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

fn record_bits(record_bytes: u32) -> Result<u8, FsError> {
    match record_bytes.trailing_zeros() {
        bits @ 12..=20 if record_bytes.is_power_of_two() => Ok(bits as u8),
        _ => Err(FsError::Invalid("the record size must be a power of two from 4 KiB to 1 MiB")),
    }
}

/// The root directory, made when the dataset is new.
async fn ensure_root(committer: &Committer, options: &FsOptions) -> Result<FileRef, FsError> {
    let ino = InodeNo::ROOT;
    if let Some(row) = committer.get(&key::inode(ino)).await? {
        return Ok(FileRef { ino, generation: Inode::decode(&row)?.generation });
    }
    if committer.totals().inodes > 0 {
        return Err(FsError::Corrupt("the dataset has inodes but no root directory".to_owned()));
    }
    let now = options.clock.now();
    let root = Inode {
        kind: FileKind::Directory,
        mode: options.root.mode & permission::MODE_BITS,
        uid: options.root.uid,
        gid: options.root.gid,
        nlink: 2,
        size: 0,
        allocated: 0,
        rdev: (0, 0),
        atime: now,
        mtime: now,
        ctime: now,
        generation: committer.superblock().writer_epoch,
        parent: ino,
        data: DataId(0),
        record_bits: 12,
        truncations: 0,
        masks: Vec::new(),
        exclusive: None,
        fs_group_epoch: committer.superblock().fs_group_epoch,
        target: None,
    };
    let mut batch = Batch { inodes: 1, ..Batch::default() };
    batch.put(key::inode(ino), &root);
    committer.durable(committer.submit(batch)?).await?;
    Ok(FileRef { ino, generation: root.generation })
}

/// Flushes changes that were acknowledged without waiting for the store, within the flush interval.
/// An idle dataset makes no request.
async fn flush_by_time(committer: &Committer, interval: Duration, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        if committer.is_dirty()
            && let Err(error) = committer.durable(committer.last()).await
        {
            if matches!(error, FsError::Fenced) {
                return;
            }
            tracing::warn!(
                %error,
                "changes stay in the journal and are sent to the object store again later"
            );
        }
    }
}
