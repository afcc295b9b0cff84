//! The findings of a check.

use super::repair::Mend;
use crate::fs::row::Row;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// Most findings listed; more are only counted.
const FINDINGS_MAX: usize = 1000;

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
    pub mends: Vec<Mend>,
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
