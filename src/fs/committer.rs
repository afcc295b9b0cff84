//! The only writer of a dataset's database (R4): orders batches, computes `U` and `S` from their deltas, logs them to the node's journal (R16),
//! and flushes with group commit.
//!
//! A batch is visible to [`Committer::get`] when [`Committer::submit`] returns, applied (in the journal and SlateDB's memory) a little later, durable
//! (in the object store) after a flush.

use super::FsError;
use super::db::{CheckpointId, Database};
use super::key::DataId;
use super::row::{Superblock, Usage};
use crate::telemetry::Failpoints;
use crate::types::{InodeNo, PackId, Timestamp};
use bytes::Bytes;
use std::path::Path;

/// One atomic change of a dataset. Never holds `S` or `U` rows: those are deltas here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows to set or (`None`) delete, in order; the last for a key wins.
    pub rows: Vec<(Bytes, Option<Bytes>)>,
    /// Change of references into packs.
    pub refs: Vec<(PackId, i64)>,
    /// Change of the number of inodes in use.
    pub inodes: i64,
    /// Change of the sum of allocated bytes.
    pub allocated: i64,
    /// A new presentation group for older inodes (R28).
    pub fs_group: Option<u32>,
}

impl Batch {
    pub fn put(&mut self, key: Bytes, row: &impl super::row::Row) {
        self.rows.push((key, Some(row.encode())));
    }

    pub fn delete(&mut self, key: Bytes) {
        self.rows.push((key, None));
    }
}

/// A submitted batch's place in the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// The totals that statfs shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub inodes: u64,
    pub allocated: u64,
}

pub struct Committer {}

impl Committer {
    /// Takes over an open database: writes the first superblock if it is new; replays the journal if it is this database's and of its last epoch, then
    /// raises the epoch in `S`. `journal`: the node's file for this dataset; without one, [`Self::applied`] waits as [`Self::durable`] does.
    /// `settled` tells the packer's settled pack when a superblock is written.
    pub async fn start(
        _db: Database,
        _journal: Option<&Path>,
        _settled: Box<dyn Fn() -> u64 + Send + Sync>,
        _failpoints: Failpoints,
    ) -> Result<Self, FsError> {
        todo!()
    }

    /// Puts a batch in order. Fails when the committer has stopped, and then nothing of the batch happens.
    pub fn submit(&self, _batch: Batch) -> Result<Ticket, FsError> {
        todo!()
    }

    /// Waits until the batch survives the death of this process.
    pub async fn applied(&self, _ticket: Ticket) -> Result<(), FsError> {
        todo!()
    }

    /// Waits until the batch is in the object store, starting a flush if none will cover it: one flush in flight, waiters join the next (R17).
    pub async fn durable(&self, _ticket: Ticket) -> Result<(), FsError> {
        todo!()
    }

    /// The last batch submitted.
    pub fn last(&self) -> Ticket {
        todo!()
    }

    /// A row as of the last submitted batch.
    pub async fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, FsError> {
        todo!()
    }

    /// Rows of `from..to` as of the last batch submitted before the call or later, at most `limit`.
    pub async fn scan(&self, _from: Bytes, _to: Bytes, _limit: usize) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        todo!()
    }

    /// An inode number never given out before in this epoch (R7), and its generation.
    pub fn new_inode(&self) -> Result<(InodeNo, u64), FsError> {
        todo!()
    }

    /// A data id never given out before (R5).
    pub fn new_data(&self) -> Result<DataId, FsError> {
        todo!()
    }

    /// A ctime for an object whose last one was `last`: above it, at least now, and below the reserved ceiling (R8).
    pub fn ctime(&self, _last: Timestamp) -> Result<Timestamp, FsError> {
        todo!()
    }

    pub fn superblock(&self) -> Superblock {
        todo!()
    }

    pub fn totals(&self) -> Totals {
        todo!()
    }

    /// Current references into a pack (for R10's check and for tests).
    pub fn usage(&self, _pack: PackId) -> Usage {
        todo!()
    }

    /// A checkpoint that holds every batch submitted before the call.
    pub async fn checkpoint(&self, _name: &str) -> Result<CheckpointId, FsError> {
        todo!()
    }

    /// Random for this opening (R18).
    pub fn write_verifier(&self) -> [u8; 8] {
        todo!()
    }

    /// Resolves when the committer has stopped for good (fenced, closed, corrupt), with the reason.
    pub async fn stopped(&self) -> FsError {
        todo!()
    }

    /// Flushes everything, closes the database, and removes the journal.
    pub async fn close(&self) -> Result<(), FsError> {
        todo!()
    }
}
