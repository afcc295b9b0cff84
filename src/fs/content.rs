//! What files hold: reads, buffered writes, flushes, truncation, reclaim.

use super::FsError;
use super::committer::{Batch, Committer, Ticket};
use super::node::Node;
use super::row::Inode;
use crate::chunk::{ChunkStore, Packer};
use bytes::Bytes;
use std::sync::Arc;

/// One file's data that is not in the database yet, and its decoded records. Its own lock is taken last and never held across an await.
#[derive(Default)]
pub struct Content {}

impl Content {
    /// See [`Node::stored`].
    pub fn stored(&self, _row: &Inode) -> Inode {
        todo!()
    }

    /// Whether anything is waiting to be flushed (the node must stay in memory).
    pub fn is_dirty(&self) -> bool {
        todo!()
    }
}

/// Limits of one volume's data path.
#[derive(Clone, Copy, Debug)]
pub struct ContentLimits {
    pub dirty_bytes_max: u64,
    pub cache_bytes: u64,
    pub flush_interval: std::time::Duration,
}

/// The data path of one open dataset.
pub struct Contents {}

impl Contents {
    pub fn new(_committer: Arc<Committer>, _chunks: ChunkStore, _packer: Packer, _limits: ContentLimits) -> Self {
        todo!()
    }

    pub fn set_quota(&self, _bytes: Option<u64>) {
        todo!()
    }

    /// Bytes that accepted writes may still need beyond what the superblock counts (R19).
    pub fn reserved(&self) -> u64 {
        todo!()
    }

    /// Bytes `offset..offset + count`, cut at the file's size, holes as zeros. `row`: a copy of the node's row. Does not need the node's lock.
    pub async fn read(&self, _node: &Node, _row: &Inode, _offset: u64, _count: u32) -> Result<Vec<Bytes>, FsError> {
        todo!()
    }

    /// Waits for room by bytes, for a write of `bytes`. Called BEFORE the node's lock is taken: the flush that makes room may need that very lock.
    ///
    /// # Errors
    /// [`FsError::Unavailable`] when the store took nothing for a long while.
    pub async fn admit(&self, _bytes: usize) -> Result<Admission, FsError> {
        todo!()
    }

    /// Buffers a write: reserves space, raises `row.size` and `row.allocated`. The caller holds the node's lock, has set the times in `row`, and stores
    /// `row` afterwards. Flushes are started here, never by a COMMIT alone (R22).
    ///
    /// # Errors
    /// [`FsError::NoSpace`] beyond the quota, [`FsError::TooBig`]; nothing has changed then.
    pub async fn write(
        &self,
        _node: &Arc<Node>,
        _row: &mut Inode,
        _offset: u64,
        _data: Bytes,
        _room: Admission,
    ) -> Result<(), FsError> {
        todo!()
    }

    /// Submits everything buffered of the file (at least of the range) to the committer: small data inside the batch, large data in packs first. The caller must NOT hold the
    /// node's lock; it is taken inside for the short parts. `None`: nothing was waiting and nothing is on its way; else the ticket whose durability covers the data.
    pub async fn flush(&self, _node: &Arc<Node>) -> Result<Option<Ticket>, FsError> {
        todo!()
    }

    /// Changes the size both ways (R5). The caller holds the node's lock, puts `node.stored(row)` into `batch` itself afterwards, submits, and stores `row`.
    /// It has called [`Self::flush`] before it took the lock where [`Content::is_dirty`], so that the new size is not ahead of older data.
    pub async fn truncate(&self, _node: &Node, _row: &mut Inode, _size: u64, _batch: &mut Batch) -> Result<(), FsError> {
        todo!()
    }

    /// The last link went: drops what is buffered, queues the data under `O`, releases the space. O(1). The caller holds the node's lock and deletes the inode's row.
    pub fn discard(&self, _node: &Node, _row: &Inode, _batch: &mut Batch) -> Result<(), FsError> {
        todo!()
    }

    /// Flushes every file. When it returns, everything written before the call is covered by the ticket.
    pub async fn flush_all(&self) -> Result<Ticket, FsError> {
        todo!()
    }

    /// Starts flush timer, reclaim of `O` and migration of inline data; ends with the tasks' tracker. `nodes` finds the inodes whose cut-off records
    /// are reclaimed.
    pub fn start(
        self: &Arc<Self>,
        _nodes: std::sync::Weak<dyn NodeSource>,
        _tasks: &tokio_util::task::TaskTracker,
        _stop: tokio_util::sync::CancellationToken,
    ) {
        todo!()
    }
}

/// Room for one write among the volume's dirty bytes; given back when dropped.
#[must_use = "room is for a write that follows"]
pub struct Admission {}

/// Where the data path finds an inode that it knows only by number: the namespace's inode table.
#[async_trait::async_trait]
pub trait NodeSource: Send + Sync {
    /// The one [`Node`] of this inode in this process, loaded if need be; `None` when there is no such inode any more.
    async fn node(&self, ino: crate::types::InodeNo) -> Result<Option<Arc<Node>>, FsError>;
}
