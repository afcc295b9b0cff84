//! Repairs the findings of a check where the rows themselves say how and leave no choice.
//!
//! Every derived figure (counts, link counts, sizes of directories, parents, allocated bytes,
//! references to packs) is recomputed from the rows that it is derived from. Extents that no inode
//! refers to are queued for reclaim; data that an inode still refers to is taken out of that queue
//! before it is lost.
//!
//! This is safe because only such figures change in anything that a name leads to, and because
//! nothing is concluded from missing rows: while one row cannot be read, nothing at all is
//! repaired, and while an entry and its inode contradict each other, nothing of the tree, and no
//! extent is queued. Not repaired, because only their owner can choose: inodes without an entry,
//! entries of missing inodes, names that are there twice, circles of directories, bytes behind the
//! end of a file, impossible extents, rows that cannot be read. A file or a tree is put back from a
//! snapshot instead.
//!
//! Everything goes through the committer (R4), in batches that each leave less to repair: what a
//! crash leaves is repaired by the next run.

use super::finding::{Problem, REPAIRS_MAX, Repair, Report};
use crate::fs::FsError;
use crate::fs::committer::{Batch, Committer, Ticket};
use crate::fs::key;
use crate::fs::moment::Moment;
use crate::fs::row::{Inode, Row, Superblock};
use crate::types::{InodeNo, PackId, WallClock};
use std::collections::BTreeMap;

/// Most repairs in one batch.
const BATCH_MENDS: usize = 1000;
/// One pass is enough unless there are more than [`REPAIRS_MAX`] repairs.
const PASSES_MAX: usize = 64;

/// The result of a repair.
#[derive(Clone, Debug)]
pub struct Repaired {
    pub before: Report,
    pub after: Report,
    pub repaired: u64,
}

impl Report {
    pub(super) fn repair(&mut self, repair: Repair) {
        if self.repairs.len() < REPAIRS_MAX {
            self.repairs.push(repair);
        }
    }

    pub(super) fn repair_links(&mut self, ino: InodeNo, links: u64) {
        if let Ok(links) = u32::try_from(links) {
            self.repair(Repair::Links(ino, links));
        }
    }

    pub(super) fn repair_usage(&mut self, pack: PackId, counted: u64, found: u64) {
        if let Some(delta) = difference(counted, found) {
            self.repair(Repair::Usage(pack, delta));
        }
    }

    /// `held`: the bytes of all inodes' extents, to which their rows' allocated bytes are set.
    pub(super) fn repair_counts(&mut self, superblock: &Superblock, held: u64) {
        let deltas =
            (difference(superblock.inodes, self.inodes), difference(superblock.allocated, held));
        if let (Some(inodes), Some(allocated)) = deltas
            && (inodes, allocated) != (0, 0)
        {
            self.repair(Repair::Counts { inodes, allocated });
        }
    }

    /// Drops repairs that rely on rows which may be missing.
    pub(super) fn keep_safe_repairs(&mut self) {
        let has = |problem| self.problems.contains(&problem);
        if has(Problem::Key) || has(Problem::Row) || has(Problem::Superblock) {
            self.repairs.clear();
        }
        if has(Problem::Entry) {
            self.repairs.retain(|repair| !repair.is_of_the_tree());
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
    let (mut after, mut repaired) = (before.clone(), 0);
    for _ in 0..PASSES_MAX {
        if after.repairs.is_empty() {
            break;
        }
        repaired += after.repairs.len() as u64;
        apply(committer, &after.repairs).await?;
        after = super::check(&committer.view().await?).await?;
    }
    Ok(Repaired { before, after, repaired })
}

async fn apply(committer: &Committer, repairs: &[Repair]) -> Result<(), FsError> {
    // All repairs of one inode go into one batch.
    let mut inodes: BTreeMap<InodeNo, Vec<&Repair>> = BTreeMap::new();
    for repair in repairs {
        if let Some(ino) = repair.inode() {
            inodes.entry(ino).or_default().push(repair);
        }
    }
    let mut last = Ticket::default();
    for some in inodes.into_iter().collect::<Vec<_>>().chunks(BATCH_MENDS) {
        let mut batch = Batch::default();
        for (ino, repairs) in some {
            repair_inode(committer, *ino, repairs, &mut batch).await?;
        }
        last = submit(committer, batch).await?;
    }
    let others: Vec<&Repair> = repairs.iter().filter(|repair| repair.inode().is_none()).collect();
    for some in others.chunks(BATCH_MENDS) {
        let mut batch = Batch::default();
        some.iter().for_each(|repair| repair_other(repair, &mut batch));
        last = submit(committer, batch).await?;
    }
    committer.durable(last).await?;
    committer.step("fs.check.repaired").await
}

async fn submit(committer: &Committer, batch: Batch) -> Result<Ticket, FsError> {
    committer.step("fs.check.before-repair").await?;
    committer.ready().await?;
    committer.submit(batch)
}

async fn repair_inode(
    committer: &Committer,
    ino: InodeNo,
    repairs: &[&Repair],
    batch: &mut Batch,
) -> Result<(), FsError> {
    let gone =
        || FsError::Corrupt(format!("inode {ino} is gone while it is repaired: check again"));
    let mut row = Inode::decode(&committer.get(&key::inode(ino)).await?.ok_or_else(gone)?)?;
    for repair in repairs {
        match repair {
            Repair::Links(_, links) => row.nlink = *links,
            Repair::DirectorySize(_, size) => row.size = *size,
            Repair::Parent(_, parent) => row.parent = *parent,
            Repair::Allocated(_, allocated) => row.allocated = *allocated,
            Repair::Queue(..) | Repair::Unqueue(_) | Repair::Counts { .. } | Repair::Usage(..) => {}
        }
    }
    row.ctime = Moment::now(&WallClock::default()).ctime(row.ctime);
    batch.put(key::inode(ino), &row);
    Ok(())
}

fn repair_other(repair: &Repair, batch: &mut Batch) {
    match repair {
        Repair::Queue(data, orphan) => batch.put(key::orphan(*data), orphan),
        Repair::Unqueue(data) => batch.delete(key::orphan(*data)),
        Repair::Counts { inodes, allocated } => {
            batch.inodes += inodes;
            batch.allocated += allocated;
        }
        Repair::Usage(pack, delta) => batch.refs.push((*pack, *delta)),
        Repair::Links(..)
        | Repair::DirectorySize(..)
        | Repair::Parent(..)
        | Repair::Allocated(..) => {}
    }
}
