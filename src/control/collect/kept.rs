//! Tombstones that wait, in words: why, and what can be done about it.

use super::Listing;
use crate::catalog::Snapshot;
use crate::types::{FamilyId, Incarnation, SnapshotId};
use serde::Serialize;
use std::fmt;
use std::time::{Duration, SystemTime};

/// Most names of clones that retain a snapshot which are listed; more are only counted.
const NAMED_MAX: usize = 8;

/// A tombstone that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub what: String,
    pub why: String,
}

/// The dependants that retain a tombstone.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Names of clones and read-only volumes.
    pub(super) clones: Vec<String>,
    /// The dataset that it was taken of.
    pub(super) restores: Option<String>,
    pub(super) readers: usize,
}

impl Needs {
    pub(super) fn is_empty(&self) -> bool {
        self.clones.is_empty() && self.restores.is_none() && self.readers == 0
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let shown = self.clones.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        match (self.clones.len(), self.clones.len().saturating_sub(NAMED_MAX)) {
            (0, _) => {}
            (1, _) => parts.push(format!("clone {shown} stands on it")),
            (_, 0) => parts.push(format!("clones {shown} stand on it")),
            (_, more) => parts.push(format!("clones {shown} and {more} more stand on it")),
        }
        parts.extend(self.restores.iter().map(|name| format!("dataset {name} restores from it")));
        match self.readers {
            0 => {}
            1 => parts.push("1 reader, forgotten an hour after it was last seen".to_owned()),
            n => parts.push(format!("{n} readers, each forgotten an hour after it was last seen")),
        }
        f.write_str(&parts.join("; "))
    }
}

/// The reason why a family's packs stay, and what the caller that began the snapshot can do.
pub(super) fn unborn(
    catalog: &Listing,
    family: FamilyId,
    id: SnapshotId,
    given_up: Duration,
) -> Kept {
    let snapshot = catalog.snapshots.iter().find(|s| s.id() == id);
    let dataset = catalog.datasets.iter().find(|d| d.incarnation == id.dataset);
    let (Some(snapshot), Some(dataset)) = (snapshot, dataset) else {
        return Kept {
            what: format!("dead packs of family {family}"),
            why: format!("snapshot {id} is being made"),
        };
    };
    let begun = humantime::format_rfc3339_seconds(SystemTime::from(snapshot.created));
    let (of, name) = (&dataset.name, &snapshot.name);
    let cure = match catalog.datasets.iter().find(|d| d.origin == Some(id) && snapshot.implied) {
        Some(clone) => format!(
            "clone {} of {of} was begun {begun} and is not finished: repeat the call",
            clone.name
        ),
        None if snapshot.implied => {
            format!("a clone of {of} was begun {begun} and will not be finished")
        }
        None => format!(
            "snapshot {of}@{name} was begun {begun} and is not finished: repeat `dataset snapshot \
             create {of} {name}`, or delete it"
        ),
    };
    let what = format!("dead packs of {of}, its clones and what it was cloned from");
    Kept {
        what,
        why: format!("{cure}; it is given up after {}", humantime::format_duration(given_up)),
    }
}

/// Returns the name for the operator: the implied snapshot of a clone of a live dataset has a
/// generated name.
pub(super) fn snapshot_name(catalog: &Listing, snapshot: &Snapshot) -> String {
    let of = dataset_name(catalog, snapshot.dataset.incarnation);
    match snapshot.implied {
        true => format!(
            "what was cloned of {of} at {}",
            humantime::format_rfc3339_seconds(SystemTime::from(snapshot.created))
        ),
        false => format!("snapshot {} of {of}", snapshot.name),
    }
}

fn dataset_name(catalog: &Listing, incarnation: Incarnation) -> String {
    let found = catalog.datasets.iter().find(|d| d.incarnation == incarnation);
    found.map_or_else(|| incarnation.to_string(), |d| format!("dataset {}", d.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_keeps_a_snapshot_is_named_as_far_as_one_reads() {
        let needs = |clones: usize, readers| Needs {
            clones: (0..clones).map(|n| format!("c{n}")).collect(),
            readers,
            restores: None,
        };
        assert_eq!(needs(2, 0).to_string(), "clones c0, c1 stand on it");
        assert!(needs(10, 0).to_string().ends_with("c7 and 2 more stand on it"));
        assert_eq!(
            needs(0, 7).to_string(),
            "7 readers, each forgotten an hour after it was last seen"
        );
        let restores = Needs { restores: Some("web".to_owned()), ..needs(1, 0) };
        assert_eq!(restores.to_string(), "clone c0 stands on it; dataset web restores from it");
    }
}
