//! Background tasks: flushing by time and by pressure, reclaim, migration, recall.

use super::Contents;
use super::flush::Select;
use super::plan::Urgency;
use crate::chunk::PACK_BYTES;
use crate::fs::FsError;
use crate::fs::inode::Node;
use crate::types::{Backoff, Class, Classify, InodeNo};
use futures::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A file with this many dirty bytes is flushed without waiting for the interval: a long write
/// streams out, a pack at a time. With less, its pack would wait for more while the file's next
/// flush waits for the pack.
const FILE_BYTES: u64 = PACK_BYTES as u64;
/// Flushes at once. Many, because small files share packs: they all wait for the same PUT.
const FILES_AT_ONCE: usize = 512;
/// First and longest backoff after a failed flush.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The files that have something to flush. Holding the node keeps it in memory.
#[derive(Default)]
pub(super) struct DirtyFiles {
    files: Mutex<HashMap<InodeNo, Arc<Node>>>,
    /// Files whose data grew past [`FILE_BYTES`].
    large: Mutex<HashMap<InodeNo, Arc<Node>>>,
}

impl DirtyFiles {
    fn all(&self) -> Vec<Arc<Node>> {
        self.files.lock().values().cloned().collect()
    }

    fn is_empty(&self) -> bool {
        self.files.lock().is_empty()
    }
}

impl Contents {
    /// Called after each write: registers the file, and starts its flush when it, or all files
    /// together, have much dirty data.
    pub(super) fn wrote(&self, node: &Arc<Node>, charge: u64) {
        self.dirty.files.lock().entry(node.file.ino).or_insert_with(|| node.clone());
        if charge >= FILE_BYTES {
            self.dirty.large.lock().insert(node.file.ino, node.clone());
            self.flush.notify_one();
        } else if self.room.is_low() {
            self.flush.notify_one();
        }
    }

    pub(super) fn forget_if_clean(&self, node: &Node) {
        let mut files = self.dirty.files.lock();
        // Under the registry's lock: a write marks its file first and registers it then.
        if node.content.state().is_clean() {
            files.remove(&node.file.ino);
        }
    }

    pub(super) fn forget(&self, node: &Node) {
        self.dirty.files.lock().remove(&node.file.ino);
        self.dirty.large.lock().remove(&node.file.ino);
    }

    /// Flushes every file that is dirty now.
    pub(super) async fn flush_dirty(&self, urgency: Urgency) -> Result<(), FsError> {
        let flushes = stream::iter(self.dirty.all()).map(|node| {
            async move { self.flush_as(&node, urgency, Select::All).await.map(|_| ()) }.boxed()
        });
        let outcomes: Vec<Result<(), FsError>> =
            flushes.buffer_unordered(FILES_AT_ONCE).collect().await;
        outcomes.into_iter().collect()
    }

    async fn sync_dirty(&self) -> Result<(), FsError> {
        self.flush_dirty(Urgency::Background).await?;
        self.committer.durable(self.committer.last()).await
    }

    /// Starts flush timer, reclaim of `O`, migration of inline data and recall of stored chunks;
    /// ends with the tasks' tracker.
    pub fn start(self: &Arc<Self>, tasks: &TaskTracker, stop: CancellationToken) {
        let (reclaim, migrate, flush) = (self.clone(), self.clone(), self.clone());
        let its_stop = stop.clone();
        tasks.spawn(async move { reclaim.reclaim_forever(its_stop).await });
        let its_stop = stop.clone();
        tasks.spawn(async move { migrate.migrate_forever(its_stop).await });
        let its_stop = stop.clone();
        tasks.spawn(async move { flush.flush_by_time(its_stop).await });
        let (large, its_stop) = (self.clone(), stop.clone());
        tasks.spawn(async move { large.flush_by_pressure(its_stop).await });
        let recalling = self.clone();
        tasks.spawn(async move { recalling.recall_once(stop).await });
    }

    /// Flushes written data and every other change after the flush interval. An idle volume makes
    /// no request.
    async fn flush_by_time(&self, stop: CancellationToken) {
        let mut wait = self.flush_interval;
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = self.flush_interval;
            if self.dirty.is_empty() && !self.committer.is_dirty() {
                continue;
            }
            let Err(error) = self.sync_dirty().await else {
                backoff.reset();
                continue;
            };
            if error.class() == Class::Fenced {
                return;
            }
            wait = backoff.pause();
            tracing::warn!(
                %error,
                retry_secs = wait.as_secs_f32(),
                "written data stays in memory; retrying the flush"
            );
        }
    }

    /// Large files stream out as they are written, and all files when memory runs low (R22).
    async fn flush_by_pressure(self: &Arc<Self>, stop: CancellationToken) {
        let mut flushes = JoinSet::new();
        let mut busy = HashSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.flush.notified() => {}
                Some(done) = flushes.join_next() => {
                    // A flush that panicked has put its data back; the periodic flush finds its
                    // file again.
                    let Ok((ino, outcome)) = done else { busy.clear(); continue };
                    busy.remove(&ino);
                    if let Err(error) = outcome {
                        // The periodic flush logs the error and backs off.
                        tracing::debug!(%error, "a flush under pressure failed");
                        tokio::time::sleep(RETRY_FIRST).await;
                    }
                }
            }
            for (node, select) in self.pressing() {
                let ino = node.file.ino;
                if flushes.len() < FILES_AT_ONCE && busy.insert(ino) {
                    let contents = self.clone();
                    flushes.spawn(async move {
                        (
                            ino,
                            contents.flush_as(&node, Urgency::Background, select).await.map(|_| ()),
                        )
                    });
                }
            }
        }
    }

    /// The files that are to be flushed before their time.
    fn pressing(&self) -> Vec<(Arc<Node>, Select)> {
        if self.room.is_low() {
            self.dirty.large.lock().clear();
            return self.dirty.all().into_iter().map(|node| (node, Select::Whole)).collect();
        }
        let mut large = self.dirty.large.lock();
        large.retain(|_, node| node.content.state().dirty().charge() >= FILE_BYTES);
        large.values().cloned().map(|node| (node, Select::Whole)).collect()
    }
}
