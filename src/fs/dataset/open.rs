//! Opens a dataset: the database, the journal, the root directory, the tasks in the background.

use super::Fs;
use crate::chunk::ChunkStore;
use crate::fs::api::{FileKind, FileRef};
use crate::fs::committer::{Batch, Committer};
use crate::fs::content::Contents;
use crate::fs::db::{Database, DbPlace};
use crate::fs::inode::Inodes;
use crate::fs::journal;
use crate::fs::key::{self, DataId};
use crate::fs::lease::{AlwaysHeld, Lease};
use crate::fs::names::Names;
use crate::fs::options::{FsMemory, FsOptions};
use crate::fs::permission;
use crate::fs::replies::ReplyCache;
use crate::fs::row::{Inode, Row};
use crate::fs::{FsError, Throttle};
use crate::types::{Epoch, InodeNo};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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
}

pub(super) fn record_bits(record_bytes: u32) -> Result<u8, FsError> {
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
