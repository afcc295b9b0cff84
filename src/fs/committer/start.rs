//! Takes over a database: reads its state, replays the journal, begins the new epoch.
//!
//! 1. Opening the database has fenced every earlier owner.
//! 2. The journal is replayed if it is this database's and of the epoch in `S`, and flushed. An
//!    owner between then and now would have raised the epoch in `S` before anything else, so equal
//!    epochs mean that nothing was written in between (R16).
//! 3. The new epoch enters `S` and is flushed. Only then is anything accepted, and only then may
//!    the old epoch's unsettled packs go (R9).
//!
//! After a crash between the steps they are run again: replay skips what `S` already contains.
//!
//! To abandon the journal of an owner that is gone, raise the epoch in `S` first
//! ([`void_journals`]): whatever happens to the dataset afterwards, that journal is never replayed
//! over it (R34).

use super::redo::Redo;
use super::state::{CommitState, Marks};
use super::tasks::Tasks;
use super::{Committer, Shared};
use crate::fs::db::{Database, DbPlace};
use crate::fs::journal::{self, Journal, Locked, Record};
use crate::fs::key::{self, Key};
use crate::fs::row::{Row, Superblock, Usage};
use crate::fs::{FsError, committer::Batch};
use crate::telemetry::Failpoints;
use crate::types::{Epoch, InodeNo, PackId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::{Notify, watch};

/// Rows of `U` read at a time.
const USAGE_PAGE: usize = 4096;

/// The `S` of a dataset that never had one.
pub(super) fn first_superblock(name_key: [u8; 16]) -> Superblock {
    Superblock {
        next_inode: InodeNo::ROOT.0 + 1,
        next_data: 1,
        inodes: 0,
        allocated: 0,
        name_key,
        writer_epoch: 0,
        settled: 0,
        batch_seq: 0,
        fs_group: None,
        fs_group_epoch: 0,
    }
}

impl Committer {
    /// Takes over an open database: writes the first superblock if it is new; replays the journal
    /// if it is this database's and of its last epoch, then raises the epoch in `S`. `journal`: the
    /// node's file for this dataset; without one, [`Self::applied`] waits as [`Self::durable`]
    /// does. `settled` returns the packer's settled pack when a superblock is written.
    pub async fn start(
        db: Database,
        journal: Option<&Path>,
        settled: Box<dyn Fn() -> u64 + Send + Sync>,
        failpoints: Failpoints,
    ) -> Result<Self, FsError> {
        let superblock = match db.get_newest(&key::superblock()).await? {
            Some(row) => Superblock::decode(&row)?,
            None => first_superblock(rand::random()),
        };
        let locked = journal.map(lock).transpose()?.flatten();
        let mut state = CommitState::new(superblock, read_usage(&db).await?);
        if let Some(locked) = &locked {
            let superblock = state.superblock();
            let records = locked.recover(
                db.incarnation(),
                Epoch(superblock.writer_epoch),
                superblock.batch_seq,
            )?;
            step(&failpoints, "fs.commit.before-replay").await?;
            replay(&db, &mut state, records).await?;
            step(&failpoints, "fs.commit.after-replay").await?;
        }
        step(&failpoints, "fs.commit.before-epoch").await?;
        raise_epoch(&db, &mut state).await?;
        step(&failpoints, "fs.commit.after-epoch").await?;
        let first = state.last().0 + 1;
        let redo = Redo::new(locked.and_then(|locked| begin(locked, &db, first)), first - 1);
        let is_new = db.get(&key::inode(InodeNo::ROOT)).await?.is_none();
        let last = state.last().0;
        let progress = || watch::Sender::new(last);
        let shared = Arc::new(Shared {
            next_inode: AtomicU64::new(state.superblock().next_inode),
            next_data: AtomicU64::new(state.superblock().next_data),
            generations: AtomicU64::new(0),
            journaled: redo.is_some(),
            state: Mutex::new(state),
            redo: Mutex::new(Some(redo)),
            settled,
            failpoints,
            queued: Notify::new(),
            wanted: AtomicU64::new(last),
            demand: super::gather::Demand::default(),
            due: Notify::new(),
            room: Notify::new(),
            applied: progress(),
            written: progress(),
            durable: progress(),
            stopped: watch::Sender::new(None),
            write_verifier: rand::random(),
            is_new,
            db,
        });
        let tasks = Mutex::new(Some(Tasks::start(&shared)));
        Ok(Self { shared, tasks, closing: Default::default() })
    }
}

/// Opens the database, if its writer epoch is `expected`, raises the epoch in `S`, and closes it:
/// when this returns, every earlier journal is void (R34) and every earlier owner is fenced.
/// Returns the writer epoch afterwards.
///
/// # Errors
/// [`FsError::Fenced`], and nobody is fenced, when another has opened the database since.
pub async fn void_journals(place: &DbPlace, expected: Epoch) -> Result<Epoch, FsError> {
    let failpoints = place.bucket.failpoints();
    let db = Database::visit(place, Some(expected)).await?;
    step(failpoints, "fs.commit.before-void").await?;
    // Without an `S` no journal was ever begun.
    if let Some(row) = db.get_newest(&key::superblock()).await? {
        let mut superblock = Superblock::decode(&row)?;
        (superblock.writer_epoch, superblock.settled) = (db.epoch().0, 0);
        db.write(vec![(key::superblock(), Some(superblock.encode()))]).await?;
    }
    // This flushes it.
    db.close().await?;
    step(failpoints, "fs.commit.after-void").await?;
    Ok(db.epoch())
}

/// Locks the journal; `None` where the disk takes no new one. An existing journal that cannot be
/// opened is an error: it may hold acknowledged changes.
fn lock(base: &Path) -> Result<Option<Locked>, FsError> {
    match Locked::lock(base) {
        Ok(locked) => Ok(Some(locked)),
        Err(error @ FsError::Internal(_)) if !journal::exists(base) => {
            tracing::warn!(
                %error,
                "no journal can be made: while this volume is open every change waits for the \
                 object store; free space on the node"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Begins the journal of this opening, unless the disk has no room for it: a full disk must not
/// keep a volume from its pods. An older epoch's records may stay on the disk; they are never
/// replayed again (R16).
fn begin(locked: Locked, db: &Database, first: u64) -> Option<Journal> {
    let begun = locked.begin(db.incarnation(), db.epoch(), first);
    if let Err(error) = &begun {
        tracing::warn!(%error, incarnation = %db.incarnation(),
            "the journal cannot be begun: while this volume is open every change waits for the \
             object store; free space on the node");
    }
    begun.ok()
}

/// Bytes of replayed batches that are written together.
const REPLAY_BYTES: usize = 8 << 20;

/// Replays the batches that the store does not have, and waits until it has them. The epoch in `S`
/// stays the same.
async fn replay(
    db: &Database,
    state: &mut CommitState,
    records: Vec<Record>,
) -> Result<(), FsError> {
    let Some(last) = records.last().map(|record| record.seq) else { return Ok(()) };
    tracing::info!(
        batches = records.len(),
        last,
        incarnation = %db.incarnation(),
        "replaying the journal"
    );
    let (creator, epoch, settled) =
        (db.incarnation(), state.superblock().writer_epoch, state.superblock().settled);
    let is_settled =
        |pack: &PackId| (pack.creator, pack.epoch.0) != (creator, epoch) || pack.seq <= settled;
    let mut marks = Marks { next_inode: 0, next_data: 0, settled: 0 };
    for record in records {
        let Record { seq, next_inode, next_data, rows, refs, inodes, allocated, fs_group } = record;
        marks.next_inode = marks.next_inode.max(next_inode);
        marks.next_data = marks.next_data.max(next_data);
        // A pack that came back through a pin came back sealed.
        let back: Vec<PackId> = refs
            .iter()
            .map(|(pack, _)| *pack)
            .filter(|p| is_settled(p) && state.usage(*p).refs == 0)
            .collect();
        let done =
            state.submit(Batch { rows, refs, fresh: vec![], inodes, allocated, fs_group })?;
        if done.0 != seq {
            return Err(FsError::Corrupt(format!(
                "journal batch {seq} where batch {} belongs",
                done.0
            )));
        }
        state.seal(&back);
        if seq == last || state.queue_bytes() >= REPLAY_BYTES {
            let Some(group) = state.take(marks) else { continue };
            db.write(group.ops()).await?;
            state.written(&group);
        }
    }
    db.flush().await
}

/// Writes `S` with the database's epoch, and waits until it is in the store.
async fn raise_epoch(db: &Database, state: &mut CommitState) -> Result<(), FsError> {
    state.raise_epoch(db.epoch().0);
    state.submit(Batch::default())?;
    let Some(group) = state.take(Marks { next_inode: 0, next_data: 0, settled: 0 }) else {
        return Ok(());
    };
    db.write(group.ops()).await?;
    db.flush().await?;
    state.written(&group);
    Ok(())
}

async fn read_usage(db: &Database) -> Result<HashMap<PackId, Usage>, FsError> {
    let mut usage = HashMap::new();
    let (mut from, to) = (Bytes::from_static(b"U"), Bytes::from_static(b"V"));
    loop {
        let rows = db.scan(from, to.clone(), USAGE_PAGE).await?;
        for (row_key, row) in &rows {
            match Key::parse(row_key) {
                Some(Key::Usage(pack)) => usage.insert(pack, Usage::decode(row)?),
                _ => {
                    return Err(FsError::Corrupt(format!(
                        "a key of {} bytes among the pack usages",
                        row_key.len()
                    )));
                }
            };
        }
        match rows.last() {
            Some((last, _)) if rows.len() == USAGE_PAGE => from = key::after(last),
            _ => return Ok(usage),
        }
    }
}

pub(super) async fn step(failpoints: &Failpoints, name: &str) -> Result<(), FsError> {
    failpoints.step(name).await.map_err(|error| FsError::Unavailable(error.to_string()))
}
