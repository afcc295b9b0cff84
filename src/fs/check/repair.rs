//! Repairs the findings of a check where the rows themselves say how and leave no choice.
//!
//! Every derived figure (counts, link counts, sizes of directories, parents, allocated bytes,
//! references to packs) is recomputed from the rows that it is derived from. Extents that no inode
//! refers to are queued for reclaim; data that an inode still refers to is taken out of that queue
//! before it is lost.
//!
//! This is safe because only such figures change in anything that a name leads to, and because
//! nothing is concluded from missing rows: while one row cannot be read, nothing at all is mended,
//! and while an entry and its inode contradict each other, nothing of the tree, and no extent is
//! queued. Not mended, because only their owner can choose: inodes without an entry, entries of
//! missing inodes, names that are there twice, circles of directories, bytes behind the end of a
//! file, impossible extents, rows that cannot be read. A file or a tree is put back from a snapshot
//! instead.
//!
//! Everything goes through the committer (R4), in batches that each leave less to mend: what a
//! crash leaves is mended by the next run.

use super::finding::{MENDS_MAX, Mend, Problem, Report};
use crate::fs::FsError;
use crate::fs::committer::{Batch, Committer, Ticket};
use crate::fs::key;
use crate::fs::moment::Moment;
use crate::fs::row::{Inode, Row, Superblock};
use crate::types::{InodeNo, PackId, WallClock};
use std::collections::BTreeMap;

/// Most repairs in one batch.
const BATCH_MENDS: usize = 1000;
/// One pass is enough unless there are more than [`MENDS_MAX`] repairs.
const PASSES_MAX: usize = 64;

/// The result of a repair.
#[derive(Clone, Debug)]
pub struct Repaired {
    pub before: Report,
    pub after: Report,
    pub mended: u64,
}

impl Report {
    pub(super) fn mend(&mut self, mend: Mend) {
        if self.mends.len() < MENDS_MAX {
            self.mends.push(mend);
        }
    }

    pub(super) fn mend_links(&mut self, ino: InodeNo, links: u64) {
        if let Ok(links) = u32::try_from(links) {
            self.mend(Mend::Links(ino, links));
        }
    }

    pub(super) fn mend_usage(&mut self, pack: PackId, counted: u64, found: u64) {
        if let Some(delta) = difference(counted, found) {
            self.mend(Mend::Usage(pack, delta));
        }
    }

    /// `held`: the bytes of all inodes' extents, to which their rows' allocated bytes are set.
    pub(super) fn mend_counts(&mut self, superblock: &Superblock, held: u64) {
        let deltas =
            (difference(superblock.inodes, self.inodes), difference(superblock.allocated, held));
        if let (Some(inodes), Some(allocated)) = deltas
            && (inodes, allocated) != (0, 0)
        {
            self.mend(Mend::Counts { inodes, allocated });
        }
    }

    /// Drops repairs that rely on rows which may be missing.
    pub(super) fn keep_safe_mends(&mut self) {
        let has = |problem| self.problems.contains(&problem);
        if has(Problem::Key) || has(Problem::Row) || has(Problem::Superblock) {
            self.mends.clear();
        }
        if has(Problem::Entry) {
            self.mends.retain(|mend| !mend.is_of_the_tree());
        }
    }
}

fn difference(from: u64, to: u64) -> Option<i64> {
    i64::try_from(i128::from(to) - i128::from(from)).ok()
}

/// Checks, repairs what can be repaired, and checks again. The caller has the dataset's database
/// open alone, with nothing above the committer.
///
/// # Errors
/// When the rows cannot be read or written; repairs made until then stay.
pub async fn repair(committer: &Committer) -> Result<Repaired, FsError> {
    let before = super::check(&committer.view().await?).await?;
    let (mut after, mut mended) = (before.clone(), 0);
    for _ in 0..PASSES_MAX {
        if after.mends.is_empty() {
            break;
        }
        mended += after.mends.len() as u64;
        mend(committer, &after.mends).await?;
        after = super::check(&committer.view().await?).await?;
    }
    Ok(Repaired { before, after, mended })
}

async fn mend(committer: &Committer, mends: &[Mend]) -> Result<(), FsError> {
    // All repairs of one inode go into one batch.
    let mut inodes: BTreeMap<InodeNo, Vec<&Mend>> = BTreeMap::new();
    for mend in mends {
        if let Some(ino) = mend.inode() {
            inodes.entry(ino).or_default().push(mend);
        }
    }
    let mut last = Ticket::default();
    for some in inodes.into_iter().collect::<Vec<_>>().chunks(BATCH_MENDS) {
        let mut batch = Batch::default();
        for (ino, mends) in some {
            mend_inode(committer, *ino, mends, &mut batch).await?;
        }
        last = submit(committer, batch).await?;
    }
    let others: Vec<&Mend> = mends.iter().filter(|mend| mend.inode().is_none()).collect();
    for some in others.chunks(BATCH_MENDS) {
        let mut batch = Batch::default();
        some.iter().for_each(|mend| mend_other(mend, &mut batch));
        last = submit(committer, batch).await?;
    }
    committer.durable(last).await?;
    committer.step("fs.check.mended").await
}

async fn submit(committer: &Committer, batch: Batch) -> Result<Ticket, FsError> {
    committer.step("fs.check.before-mend").await?;
    committer.ready().await?;
    committer.submit(batch)
}

async fn mend_inode(
    committer: &Committer,
    ino: InodeNo,
    mends: &[&Mend],
    batch: &mut Batch,
) -> Result<(), FsError> {
    let gone = || FsError::Corrupt(format!("inode {ino} is gone while it is mended: check again"));
    let mut row = Inode::decode(&committer.get(&key::inode(ino)).await?.ok_or_else(gone)?)?;
    for mend in mends {
        match mend {
            Mend::Links(_, links) => row.nlink = *links,
            Mend::DirectorySize(_, size) => row.size = *size,
            Mend::Parent(_, parent) => row.parent = *parent,
            Mend::Allocated(_, allocated) => row.allocated = *allocated,
            Mend::Queue(..) | Mend::Unqueue(_) | Mend::Counts { .. } | Mend::Usage(..) => {}
        }
    }
    row.ctime = Moment::now(&WallClock::default()).ctime(row.ctime);
    batch.put(key::inode(ino), &row);
    Ok(())
}

fn mend_other(mend: &Mend, batch: &mut Batch) {
    match mend {
        Mend::Queue(data, orphan) => batch.put(key::orphan(*data), orphan),
        Mend::Unqueue(data) => batch.delete(key::orphan(*data)),
        Mend::Counts { inodes, allocated } => {
            batch.inodes += inodes;
            batch.allocated += allocated;
        }
        Mend::Usage(pack, delta) => batch.refs.push((*pack, *delta)),
        Mend::Links(..) | Mend::DirectorySize(..) | Mend::Parent(..) | Mend::Allocated(..) => {}
    }
}
