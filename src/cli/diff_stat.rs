//! `dataset diff --stat` and `--tree`: counts of differences in each folder.

use super::path;
use super::report::table;
use crate::fs::{Difference, PathDifference};
use crate::types::plural;
use serde::Serialize;
use std::collections::BTreeMap;

/// Most folders that are counted by themselves; differences in others count in `…`.
const FOLDERS_MAX: usize = 200_000;
/// The folder of all the others.
const OTHERS: &[u8] = "…".as_bytes();

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    added: u64,
    removed: u64,
    changed: u64,
    renamed: u64,
}

impl Counts {
    fn count(&mut self, difference: &Difference) {
        match difference {
            Difference::Added => self.added += 1,
            Difference::Removed => self.removed += 1,
            Difference::Changed(_) => self.changed += 1,
            Difference::Renamed(..) => self.renamed += 1,
        }
    }

    fn add(&mut self, more: Self) {
        self.added += more.added;
        self.removed += more.removed;
        self.changed += more.changed;
        self.renamed += more.renamed;
    }

    fn cells(self) -> [String; 4] {
        [self.added, self.removed, self.changed, self.renamed].map(|n| n.to_string())
    }
}

/// Whether a folder's counts include those of the folders in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each folder by itself.
    Flat,
    /// With everything below, indented.
    Tree,
}

/// The differences, counted by folder.
#[derive(Default)]
pub struct DiffStat {
    folders: BTreeMap<Vec<u8>, Counts>,
    total: Counts,
}

/// A folder's counts as JSON.
#[derive(Serialize)]
struct Folder {
    folder: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    folder_bytes: Option<String>,
    #[serde(flatten)]
    counts: Counts,
}

/// The counts of a comparison, as a report.
#[derive(Serialize)]
pub struct StatReport {
    folders: Vec<Folder>,
    total: Counts,
}

/// The folder around an object; the root's own is itself.
fn folder_of(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) | None => b"/",
        Some(end) => &path[..end],
    }
}

/// The folders around one, from the root on, and itself.
fn around(folder: &[u8]) -> impl Iterator<Item = &[u8]> {
    let inner = folder.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
    let root: &[u8] = if folder.starts_with(b"/") { b"/" } else { folder };
    let whole = (folder.len() > 1 && folder.starts_with(b"/")).then_some(folder);
    std::iter::once(root).chain(inner.map(|(end, _)| &folder[..end])).chain(whole)
}

impl DiffStat {
    pub fn count(&mut self, found: &PathDifference) {
        self.total.count(&found.difference);
        let folder = folder_of(&found.path);
        let is_full = self.folders.len() >= FOLDERS_MAX;
        let folder = if is_full && !self.folders.contains_key(folder) { OTHERS } else { folder };
        self.folders.entry(folder.to_vec()).or_default().count(&found.difference);
    }

    pub fn report(self, shape: Shape) -> StatReport {
        let folders = match shape {
            Shape::Flat => self.folders,
            Shape::Tree => {
                let mut sums: BTreeMap<Vec<u8>, Counts> = BTreeMap::new();
                for (folder, counts) in &self.folders {
                    for outer in around(folder) {
                        sums.entry(outer.to_vec()).or_default().add(*counts);
                    }
                }
                sums
            }
        };
        let mut folders: Vec<(Vec<u8>, Counts)> = folders.into_iter().collect();
        // A folder comes before those in it, and these before its neighbours.
        folders.sort_by(|(a, _), (b, _)| parts(a).cmp(parts(b)));
        let folder = |(folder, counts): (Vec<u8>, Counts)| Folder {
            folder: path::lossy(&folder),
            folder_bytes: path::bytes(&folder),
            counts,
        };
        StatReport { folders: folders.into_iter().map(folder).collect(), total: self.total }
    }
}

fn parts(folder: &[u8]) -> impl Iterator<Item = &[u8]> {
    folder.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
}

impl StatReport {
    pub fn text(&self, shape: Shape) -> String {
        let row = |folder: &Folder| {
            let name = match shape {
                Shape::Flat => path::shown(folder.folder.as_bytes()),
                Shape::Tree => indented(folder.folder.as_bytes()),
            };
            [vec![name], folder.counts.cells().to_vec()].concat()
        };
        let rows: Vec<_> = self.folders.iter().map(row).collect();
        let Counts { added, removed, changed, renamed } = self.total;
        format!(
            "{}{added} added, {removed} removed, {changed} changed, {renamed} renamed in {}\n",
            table(&["FOLDER", "ADDED", "REMOVED", "CHANGED", "RENAMED"], &rows),
            plural(self.folders.len() as u64, "folder")
        )
    }
}

/// The last name of a folder, as deep as the folder is.
fn indented(folder: &[u8]) -> String {
    let depth = parts(folder).count();
    match parts(folder).last() {
        Some(name) => format!("{}{}", "  ".repeat(depth), path::shown(name)),
        None => "/".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::api::FileKind;

    fn stat() -> DiffStat {
        let mut stat = DiffStat::default();
        for (path, difference) in [
            ("/a", Difference::Added),
            ("/etc/b", Difference::Removed),
            ("/etc/app/c", Difference::Changed(vec![])),
            ("/etc/app/d", Difference::Added),
            ("/etc-old/e", Difference::Renamed(b"/x"[..].into(), vec![])),
            ("/", Difference::Changed(vec![])),
        ] {
            let found = PathDifference {
                path: path.as_bytes().into(),
                kind: FileKind::Regular,
                difference,
            };
            stat.count(&found);
        }
        stat
    }

    #[test]
    fn each_folder_is_counted_by_itself() {
        let text = stat().report(Shape::Flat).text(Shape::Flat);
        assert_eq!(
            text,
            "FOLDER    ADDED  REMOVED  CHANGED  RENAMED\n\
             /         1      0        1        0\n\
             /etc      0      1        0        0\n\
             /etc/app  1      0        1        0\n\
             /etc-old  0      0        0        1\n\
             2 added, 1 removed, 2 changed, 1 renamed in 4 folders\n"
        );
    }

    #[test]
    fn a_tree_counts_what_is_below() {
        let text = stat().report(Shape::Tree).text(Shape::Tree);
        assert_eq!(
            text,
            "FOLDER     ADDED  REMOVED  CHANGED  RENAMED\n\
             /          2      1        2        1\n  \
             etc      1      1        1        0\n    \
             app    1      0        1        0\n  \
             etc-old  0      0        0        1\n\
             2 added, 1 removed, 2 changed, 1 renamed in 4 folders\n"
        );
    }
}
