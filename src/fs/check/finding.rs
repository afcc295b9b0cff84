//! The findings of a check, and the repairs that follow from them.

use crate::fs::key::DataId;
use crate::fs::row::{Orphan, Row};
use crate::types::{InodeNo, PackId};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// Most findings listed; more are only counted.
const FINDINGS_MAX: usize = 1000;
/// Most repairs remembered from one check; the next check finds the rest.
pub(super) const REPAIRS_MAX: usize = 100_000;

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// A key that is not of this format.
    Key,
    /// A row that cannot be read.
    Row,
    Superblock,
    /// The superblock's totals.
    Counts,
    /// A number that has not been allocated yet.
    Reservation,
    /// An entry at the wrong place, of the wrong kind, present twice, or naming a missing inode.
    Entry,
    /// An inode that no entry names, or whose link count differs from the number of its entries.
    Links,
    /// A directory's number of entries.
    DirectorySize,
    /// A directory whose parent is not the directory of its entry, or from which no path leads to
    /// the root.
    Parent,
    /// An inode whose own fields contradict each other.
    Inode,
    /// An inode's allocated bytes.
    Allocated,
    /// An extent that belongs to no inode, or whose segments are impossible.
    Extents,
    /// Visible bytes past the end of a file.
    BehindEnd,
    /// Masks and the reclaim queue.
    Reclaim,
    /// References counted for a pack.
    Usage,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub problem: Problem,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.problem, self.what)
    }
}

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    Links(InodeNo, u32),
    DirectorySize(InodeNo, u64),
    Parent(InodeNo, InodeNo),
    Allocated(InodeNo, u64),
    Queue(DataId, Orphan),
    Unqueue(DataId),
    /// Changes of the superblock's totals.
    Counts {
        inodes: i64,
        allocated: i64,
    },
    /// Change of a pack's count.
    Usage(PackId, i64),
}

impl Repair {
    /// Returns whether the repair relies on directory entries.
    pub(super) fn is_of_the_tree(&self) -> bool {
        match self {
            Self::Links(..) | Self::DirectorySize(..) | Self::Parent(..) => true,
            // An inode that is missing may own them.
            Self::Queue(_, orphan) => orphan.inode.is_none(),
            Self::Allocated(..) | Self::Unqueue(_) | Self::Counts { .. } | Self::Usage(..) => false,
        }
    }

    /// Returns the inode whose row the repair changes.
    pub(super) fn inode(&self) -> Option<InodeNo> {
        match self {
            Self::Links(ino, _)
            | Self::DirectorySize(ino, _)
            | Self::Parent(ino, _)
            | Self::Allocated(ino, _) => Some(*ino),
            Self::Queue(..) | Self::Unqueue(_) | Self::Counts { .. } | Self::Usage(..) => None,
        }
    }
}

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub further: u64,
    pub inodes: u64,
    pub entries: u64,
    pub records: u64,
    pub allocated: u64,
    /// The repairs that need no choice, see [`super::repair`].
    #[serde(skip)]
    pub repairs: Vec<Repair>,
    /// Problems of all findings, including those that are not stored.
    #[serde(skip)]
    pub(super) problems: BTreeSet<Problem>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn add(&mut self, problem: Problem, what: impl Into<String>) {
        self.problems.insert(problem);
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { problem, what: what.into() });
        } else {
            self.further += 1;
        }
    }

    pub(super) fn decoded<R: Row>(&mut self, what: &str, row: &[u8]) -> Option<R> {
        R::decode(row).map_err(|error| self.add(Problem::Row, format!("{what}: {error}"))).ok()
    }
}
