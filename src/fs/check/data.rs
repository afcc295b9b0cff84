//! Checks extents: their owners, their contents, and their references.

use super::finding::{REPAIRS_MAX, Repair};
use super::{Facts, InodePart, Problem, Report, Rows, scan};
use crate::fs::FsError;
use crate::fs::api::FileKind;
use crate::fs::key::{DataId, Key};
use crate::fs::row::{Extent, Inode, Orphan, Row, Source, Superblock};
use crate::types::InodeNo;
use std::collections::HashMap;

/// Reads the extents, and verifies the part's allocated bytes. With the first part, orphans'
/// extents and references too.
pub(super) async fn check(
    rows: &impl Rows,
    mut part: InodePart,
    superblock: &Superblock,
    report: &mut Report,
    known: &mut Facts,
) -> Result<(), FsError> {
    let owners = owners(&part, report, known);
    let first = part.first;
    scan(rows, b'X', report, |report, key, row| {
        let Key::Extent(data, n) = key else { return };
        let owner = owners.get(&data).and_then(|ino| Some((*ino, part.inodes.get_mut(ino)?)));
        let decoded = Extent::decode(row);
        if first {
            report.records += 1;
            if data.0 >= superblock.next_data {
                report.add(
                    Problem::Reservation,
                    format!(
                        "data {}, but the next to be given out is {}",
                        data.0, superblock.next_data
                    ),
                );
            }
            match &decoded {
                Ok(extent) => count_references(extent, known),
                Err(error) => {
                    report.add(Problem::Row, format!("extent {n} of data {}: {error}", data.0));
                }
            }
        }
        let orphan = known.orphans.get(&data).is_some_and(|orphan| orphan.inode.is_none());
        let Some((ino, seen)) = owner else {
            known.owned_extents += u64::from(first && orphan);
            // An inode of a later part may own it.
            if part.whole && !orphan && known.lost.len() < REPAIRS_MAX {
                known.lost.insert(data);
            }
            return;
        };
        known.owned_extents += 1;
        let Ok(extent) = decoded else { return };
        seen.held = seen
            .held
            .saturating_add(extent.segments.iter().map(|segment| u64::from(segment.len)).sum());
        check_extent(ino, &seen.row, n, &extent, report);
    })
    .await?;
    known.held = part.inodes.values().fold(known.held, |sum, seen| sum.saturating_add(seen.held));
    for (ino, seen) in part.inodes.iter().filter(|(_, seen)| seen.row.allocated != seen.held) {
        report.repair(Repair::Allocated(*ino, seen.held));
        report.add(
            Problem::Allocated,
            format!(
                "inode {ino} counts {} allocated bytes, its extents hold {}",
                seen.row.allocated, seen.held
            ),
        );
    }
    Ok(())
}

/// The owner of each data id of the part's files.
fn owners(part: &InodePart, report: &mut Report, known: &Facts) -> HashMap<DataId, InodeNo> {
    let mut owners = HashMap::new();
    for (ino, seen) in part.inodes.iter().filter(|(_, seen)| seen.row.kind == FileKind::Regular) {
        let data = seen.row.data;
        if let Some(other) = owners.insert(data, *ino) {
            report.add(Problem::Extents, format!("inodes {ino} and {other} share data {}", data.0));
        }
        let orphan = known.orphans.get(&data);
        match orphan {
            Some(orphan) if orphan.inode != Some(*ino) => {
                report.repair(reclaim(*ino, &seen.row));
                report.add(
                    Problem::Reclaim,
                    format!("data {} of inode {ino} is queued to be reclaimed", data.0),
                );
            }
            None if !seen.row.masks.is_empty() => {
                report.repair(reclaim(*ino, &seen.row));
                report.add(
                    Problem::Reclaim,
                    format!("inode {ino} has masks, and its data {} is not queued", data.0),
                );
            }
            _ => {}
        }
    }
    owners
}

/// The queue entry that the data of an inode needs.
fn reclaim(ino: InodeNo, row: &Inode) -> Repair {
    match row.masks.iter().map(|mask| mask.first).min() {
        Some(from) => Repair::Queue(row.data, Orphan { from, inode: Some(ino) }),
        None => Repair::Unqueue(row.data),
    }
}

fn count_references(extent: &Extent, known: &mut Facts) {
    for segment in &extent.segments {
        if let Source::Chunk { chunk, .. } = &segment.source {
            *known.found.entry(chunk.pack).or_default() += 1;
        }
    }
}

fn check_extent(ino: InodeNo, row: &Inode, n: u64, extent: &Extent, report: &mut Report) {
    let mut end = 0;
    for segment in &extent.segments {
        let (start, len) = (u64::from(segment.start), u64::from(segment.len));
        let backed = match &segment.source {
            Source::Inline(bytes) => bytes.len() as u64 == len,
            Source::Chunk { chunk, from } => u64::from(*from) + len <= u64::from(chunk.raw_len),
        };
        if start < end || len == 0 || start + len > 1 << row.record_bits.min(32) || !backed {
            report.add(
                Problem::Extents,
                format!("inode {ino}, extent {n}: impossible segment at {start}"),
            );
            return;
        }
        end = start + len;
    }
    if extent.truncations > row.truncations {
        report.add(
            Problem::Extents,
            format!(
                "inode {ino}, extent {n}: written after truncation {}, of {}",
                extent.truncations, row.truncations
            ),
        );
    }
    let hidden =
        row.masks.iter().any(|mask| mask.first <= n && extent.truncations < mask.truncations);
    let behind = n
        .checked_shl(row.record_bits.into())
        .and_then(|start| start.checked_add(end))
        .is_none_or(|end| end > row.size);
    if end > 0 && !hidden && behind {
        report.add(
            Problem::BehindEnd,
            format!("inode {ino}, extent {n}: bytes behind the file's {}", row.size),
        );
    }
}
