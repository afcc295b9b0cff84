//! Verifies a dataset's database against its invariants, from nothing but its rows.
//!
//! The verified invariants:
//! - `S`: numbers below their reservations, counts equal to what is there.
//! - Every inode but the root is named: a file by `nlink` entries, a directory by exactly one,
//!   which is in its `parent`; a directory's `nlink`
//!   is 2 plus its subdirectories, its `size` the number of its entries. Parents lead to the root.
//! - Every entry lies at its name's hash, names an inode that exists, of its kind; no directory has
//!   a name twice (R21).
//! - `allocated` of a file is the sum of its extents' segment lengths, masked ones included until
//!   reclaim has deleted them; the superblock's is the sum over inodes, orphans excluded. No
//!   visible byte lies past a file's size: it would reappear when the file grows (R5).
//! - Every extent belongs to one inode or is queued under `O`; segments are in order, inside their
//!   extent, and as long as what they refer to.
//! - `U` counts the segments that refer to each pack, orphans' included (R4).
//!
//! Memory: inodes are taken [`PART`] at a time, entries and extents are read once for each part;
//! beside that the directories' parents, the orphans, and one count for each pack. It does not read
//! packs: that is scrubbing.
//!
//! [`repair`] repairs the problems that leave no choice.
//!
//! The rows must be of one point in time: a checkpoint, a database that nobody writes, or a
//! [`View`] of an open one.

mod data;
mod finding;
mod repair;
mod tree;

pub use finding::{Finding, Problem, Repair, Report};
pub use repair::{Repaired, repair};

use super::FsError;
use super::db::{Reader, View};
use super::key::{self, DataId, Key};
use super::row::{Inode, Orphan, Reply, Superblock, Usage};
use crate::types::{InodeNo, PackId};
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};

/// Inodes held in memory at a time: about 100 bytes each.
const PART: usize = 1 << 19;
/// Rows read at a time.
const PAGE: usize = 2048;

/// Rows of one point in time.
pub trait Rows: Sync {
    /// Rows of `from..to` in order, at most `limit`.
    fn page(
        &self,
        from: Bytes,
        to: Bytes,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(Bytes, Bytes)>, FsError>> + Send;
}

impl Rows for Reader {
    async fn page(
        &self,
        from: Bytes,
        to: Bytes,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        self.scan(from, to, limit).await
    }
}

impl Rows for View {
    async fn page(
        &self,
        from: Bytes,
        to: Bytes,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, FsError> {
        self.scan(from, to, limit).await
    }
}

/// Verifies all rows. An `Err` means that they could not be read; problems found in them are in the
/// report.
pub async fn check(rows: &impl Rows) -> Result<Report, FsError> {
    check_parts(rows, PART).await
}

async fn check_parts(rows: &impl Rows, part: usize) -> Result<Report, FsError> {
    let mut report = Report::default();
    let mut known = Facts::default();
    let superblock = rows.page(key::superblock(), key::after(&key::superblock()), 1).await?;
    let Some(superblock) =
        superblock.first().and_then(|(_, row)| report.decoded::<Superblock>("S", row))
    else {
        report.add(Problem::Superblock, "there is none");
        return Ok(report);
    };
    read_small(rows, &mut report, &mut known).await?;
    let mut from = key::inode(InodeNo(0));
    let mut first = true;
    loop {
        let (inodes, next) =
            read_inodes(rows, from, part, &superblock, &mut report, &mut known).await?;
        let part = InodePart { inodes, first, whole: first && next.is_none() };
        let part = tree::check(rows, part, &superblock, &mut report).await?;
        data::check(rows, part, &superblock, &mut report, &mut known).await?;
        first = false;
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    tree::check_parents(&known.parents, &mut report);
    finish(&superblock, &known, &mut report);
    report.keep_safe_repairs();
    Ok(report)
}

/// State carried across the parts, beside a part's own inodes.
#[derive(Default)]
struct Facts {
    usage: HashMap<PackId, Usage>,
    /// References found in extents.
    found: HashMap<PackId, u64>,
    orphans: HashMap<DataId, Orphan>,
    parents: HashMap<InodeNo, InodeNo>,
    allocated: u64,
    /// Bytes that the inodes' extents hold.
    held: u64,
    /// Extents that belong to an inode of some part, or to an orphan.
    owned_extents: u64,
    /// Data ids whose extents belong to no inode, where all inodes are seen at once.
    lost: BTreeSet<DataId>,
}

/// Some of the inodes.
struct InodePart {
    inodes: HashMap<InodeNo, Seen>,
    /// Set for the first part only, with which everything that does not depend on inodes is
    /// verified.
    first: bool,
    /// All inodes are in it.
    whole: bool,
}

/// An inode, and the entries and extents found for it.
struct Seen {
    row: Inode,
    entries: u64,
    named_in: Option<InodeNo>,
    children: u64,
    subdirectories: u64,
    held: u64,
}

/// Calls `each` with all rows of a tag.
async fn scan(
    rows: &impl Rows,
    tag: u8,
    report: &mut Report,
    mut each: impl FnMut(&mut Report, Key, &Bytes),
) -> Result<(), FsError> {
    let (mut from, to) = (Bytes::copy_from_slice(&[tag]), Bytes::copy_from_slice(&[tag + 1]));
    loop {
        let page = rows.page(from, to.clone(), PAGE).await?;
        for (row_key, row) in &page {
            match Key::parse(row_key) {
                Some(parsed) => each(report, parsed, row),
                None => report.add(
                    Problem::Key,
                    format!("a key of {} bytes under {:?}", row_key.len(), char::from(tag)),
                ),
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => from = key::after(last),
            _ => return Ok(()),
        }
    }
}

async fn read_small(
    rows: &impl Rows,
    report: &mut Report,
    known: &mut Facts,
) -> Result<(), FsError> {
    scan(rows, b'U', report, |report, row_key, row| {
        if let (Key::Usage(pack), Some(usage)) =
            (row_key, report.decoded(&format!("{row_key:?}"), row))
        {
            known.usage.insert(pack, usage);
        }
    })
    .await?;
    scan(rows, b'O', report, |report, row_key, row| {
        if let (Key::Orphan(data), Some(orphan)) =
            (row_key, report.decoded(&format!("{row_key:?}"), row))
        {
            known.orphans.insert(data, orphan);
        }
    })
    .await?;
    scan(rows, b'R', report, |report, row_key, row| {
        let _: Option<Reply> = report.decoded(&format!("{row_key:?}"), row);
    })
    .await
}

/// Reads at most `part` inodes. Returns them and the start of the next part.
async fn read_inodes(
    rows: &impl Rows,
    mut from: Bytes,
    part: usize,
    superblock: &Superblock,
    report: &mut Report,
    known: &mut Facts,
) -> Result<(HashMap<InodeNo, Seen>, Option<Bytes>), FsError> {
    let to = Bytes::from_static(b"J");
    let mut inodes = HashMap::new();
    loop {
        let limit = PAGE.min(part - inodes.len().min(part - 1));
        let page = rows.page(from, to.clone(), limit).await?;
        for (row_key, row) in &page {
            let Some(Key::Inode(ino)) = Key::parse(row_key) else {
                report.add(
                    Problem::Key,
                    format!("a key of {} bytes among the inodes", row_key.len()),
                );
                continue;
            };
            report.inodes += 1;
            let Some(row) = report.decoded::<Inode>(&format!("inode {ino}"), row) else { continue };
            tree::check_inode(ino, &row, superblock, report);
            known.allocated = known.allocated.saturating_add(row.allocated);
            if row.kind == super::api::FileKind::Directory {
                known.parents.insert(ino, row.parent);
            }
            inodes.insert(
                ino,
                Seen { row, entries: 0, named_in: None, children: 0, subdirectories: 0, held: 0 },
            );
        }
        let more = page.len() == limit;
        match page.last() {
            Some((last, _)) if more && inodes.len() < part => from = key::after(last),
            Some((last, _)) if more => return Ok((inodes, Some(key::after(last)))),
            _ => return Ok((inodes, None)),
        }
    }
}

fn finish(superblock: &Superblock, known: &Facts, report: &mut Report) {
    if superblock.inodes != report.inodes {
        report.add(
            Problem::Counts,
            format!(
                "the superblock counts {} inodes, there are {}",
                superblock.inodes, report.inodes
            ),
        );
    }
    if superblock.allocated != known.allocated {
        let text = format!(
            "the superblock counts {} allocated bytes, the inodes {}",
            superblock.allocated, known.allocated
        );
        report.add(Problem::Counts, text);
    }
    report.allocated = known.allocated;
    report.repair_counts(superblock, known.held);
    let lost = report.records.saturating_sub(known.owned_extents);
    if lost > 0 {
        report.add(
            Problem::Extents,
            format!("{lost} extents belong to no inode and are not queued for reclaim"),
        );
    }
    for data in &known.lost {
        report.repair(Repair::Queue(*data, Orphan { from: 0, inode: None }));
    }
    for (pack, usage) in &known.usage {
        let found = known.found.get(pack).copied().unwrap_or_default();
        if usage.refs != found {
            report.add(
                Problem::Usage,
                format!("pack {pack}: {} references are counted, {found} are there", usage.refs),
            );
            report.repair_usage(*pack, usage.refs, found);
        }
    }
    for (pack, found) in known.found.iter().filter(|(pack, _)| !known.usage.contains_key(pack)) {
        report.add(
            Problem::Usage,
            format!("pack {pack}: no references are counted, {found} are there"),
        );
        report.repair_usage(*pack, 0, *found);
    }
}

#[cfg(test)]
mod tests;
