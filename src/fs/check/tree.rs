//! Inodes and the entries that name them.

use super::finding::Repair;
use super::{InodePart, Problem, Report, Rows, scan};
use crate::fs::FsError;
use crate::fs::api::FileKind;
use crate::fs::key::{Key, NameHash};
use crate::fs::row::{DirEntryRow, Inode, MASKS_MAX, Superblock};
use crate::types::{EntryName, InodeNo};
use std::collections::{HashMap, HashSet};

/// Checks an inode's row on its own.
pub(super) fn check_inode(ino: InodeNo, row: &Inode, superblock: &Superblock, report: &mut Report) {
    if ino.0 >= superblock.next_inode && ino != InodeNo::ROOT {
        report.add(
            Problem::Reservation,
            format!("inode {ino}, but the next to be given out is {}", superblock.next_inode),
        );
    }
    if row.kind == FileKind::Regular && row.data.0 >= superblock.next_data {
        report.add(
            Problem::Reservation,
            format!(
                "inode {ino} has data {}, the next to be given out is {}",
                row.data.0, superblock.next_data
            ),
        );
    }
    if row.kind == FileKind::Symlink
        && row.target.as_ref().map(Vec::len) != usize::try_from(row.size).ok()
    {
        report.add(
            Problem::Inode,
            format!("symbolic link {ino} of {} bytes has a target of another length", row.size),
        );
    }
    if row.kind == FileKind::Regular && !(12..=20).contains(&row.record_bits) {
        report
            .add(Problem::Inode, format!("inode {ino} has records of 2^{} bytes", row.record_bits));
    }
    if row.masks.len() > MASKS_MAX
        || row.masks.iter().any(|mask| mask.truncations > row.truncations)
    {
        report.add(Problem::Inode, format!("inode {ino} has impossible masks"));
    }
}

/// Reads the entries, and verifies the part's link counts and sizes.
pub(super) async fn check(
    rows: &impl Rows,
    mut part: InodePart,
    superblock: &Superblock,
    report: &mut Report,
) -> Result<InodePart, FsError> {
    let mut names = SiblingNames::default();
    scan(rows, b'D', report, |report, key, row| {
        let Key::DirEntry { dir, hash, .. } = key else { return };
        if part.first {
            report.entries += 1;
        }
        let Ok(entry) = <DirEntryRow as crate::fs::row::Row>::decode(row) else {
            if part.first {
                let _: Option<DirEntryRow> =
                    report.decoded(&format!("entry of directory {dir}"), row);
            }
            return;
        };
        if part.first {
            names.check(dir, hash, &entry.name, superblock, report);
        }
        count(&mut part, dir, &entry, report);
    })
    .await?;
    for (ino, seen) in &part.inodes {
        let row = &seen.row;
        if row.kind == FileKind::Directory {
            check_directory(*ino, seen, report);
        } else if seen.entries != u64::from(row.nlink) {
            report.add(
                Problem::Links,
                format!(
                    "inode {ino} has {} links, and {} entries name it",
                    row.nlink, seen.entries
                ),
            );
            // An inode that nothing names is the only trace of a file: only the file's owner can
            // say whether it may be deleted.
            if seen.entries > 0 {
                report.repair_links(*ino, seen.entries);
            }
        }
    }
    Ok(part)
}

fn count(part: &mut InodePart, dir: InodeNo, entry: &DirEntryRow, report: &mut Report) {
    match part.inodes.get_mut(&dir) {
        Some(seen) => {
            seen.children += 1;
            seen.subdirectories += u64::from(entry.kind == FileKind::Directory);
            if seen.row.kind != FileKind::Directory {
                report.add(Problem::Entry, format!("inode {dir} has entries and is no directory"));
            }
        }
        None if part.whole => {
            report
                .add(Problem::Entry, format!("an entry of directory {dir}, which does not exist"));
        }
        None => {}
    }
    match part.inodes.get_mut(&entry.ino) {
        Some(seen) => {
            seen.entries += 1;
            seen.named_in = Some(dir);
            if seen.row.kind != entry.kind {
                report.add(
                    Problem::Entry,
                    format!(
                        "directory {dir} says {:?} of inode {}, a {:?}",
                        entry.kind, entry.ino, seen.row.kind
                    ),
                );
            }
        }
        None if part.whole => {
            report.add(
                Problem::Entry,
                format!("directory {dir} names inode {}, which does not exist", entry.ino),
            );
        }
        None => {}
    }
}

fn check_directory(ino: InodeNo, seen: &super::Seen, report: &mut Report) {
    let row = &seen.row;
    if row.size != seen.children {
        report.repair(Repair::DirectorySize(ino, seen.children));
        report.add(
            Problem::DirectorySize,
            format!("directory {ino} counts {} entries and has {}", row.size, seen.children),
        );
    }
    if u64::from(row.nlink) != 2 + seen.subdirectories {
        report.repair_links(ino, 2 + seen.subdirectories);
        report.add(
            Problem::Links,
            format!(
                "directory {ino} has {} links and {} subdirectories",
                row.nlink, seen.subdirectories
            ),
        );
    }
    let expected = u64::from(ino != InodeNo::ROOT);
    if seen.entries != expected {
        report.add(
            Problem::Links,
            format!("{} entries name directory {ino}, not {expected}", seen.entries),
        );
    }
    if let Some(named) = seen.named_in.filter(|named| *named != row.parent) {
        if seen.entries == 1 {
            report.repair(Repair::Parent(ino, named));
        }
        report.add(
            Problem::Parent,
            format!("directory {ino} says that its parent is {}", row.parent),
        );
    }
}

/// SiblingNames of one directory and hash, which are adjacent.
#[derive(Default)]
struct SiblingNames {
    at: Option<(InodeNo, NameHash)>,
    names: HashSet<EntryName>,
}

impl SiblingNames {
    fn check(
        &mut self,
        dir: InodeNo,
        hash: NameHash,
        name: &EntryName,
        superblock: &Superblock,
        report: &mut Report,
    ) {
        if NameHash::of(&superblock.name_key, name.as_bytes()) != hash {
            report.add(
                Problem::Entry,
                format!("directory {dir} has an entry at another name's hash"),
            );
        }
        if self.at.replace((dir, hash)) != Some((dir, hash)) {
            self.names.clear();
        }
        if !self.names.insert(name.clone()) {
            report.add(Problem::Entry, format!("directory {dir} has a name twice"));
        }
    }
}

/// Checks that from every directory the parents lead to the root.
pub(super) fn check_parents(parents: &HashMap<InodeNo, InodeNo>, report: &mut Report) {
    let mut good: HashSet<InodeNo> = HashSet::from([InodeNo::ROOT]);
    let mut bad: HashSet<InodeNo> = HashSet::new();
    for start in parents.keys() {
        let mut way = Vec::new();
        let mut seen = HashSet::new();
        let mut at = *start;
        let leads = loop {
            if good.contains(&at) {
                break true;
            }
            // Seen on this path: a cycle.
            if bad.contains(&at) || !seen.insert(at) {
                break false;
            }
            way.push(at);
            match parents.get(&at) {
                Some(parent) => at = *parent,
                None => break false,
            }
        };
        if !leads && !bad.contains(start) {
            report.add(Problem::Parent, format!("no way leads from directory {start} to the root"));
        }
        if leads { good.extend(way) } else { bad.extend(way) }
    }
    if !parents.contains_key(&InodeNo::ROOT) {
        report.add(Problem::Inode, "there is no root directory");
    }
}
