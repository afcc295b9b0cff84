//! Objects that a collection retains, in words: why, and what can be done about it.

use super::Listing;
use crate::catalog::Snapshot;
use crate::types::{FamilyId, Incarnation, SnapshotId};
use serde::Serialize;
use std::fmt;
use std::time::{Duration, SystemTime};

/// Most names of clones that are listed; more are only counted.
const NAMED_MAX: usize = 8;

/// A tombstone, or something else, that stays for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retained {
    pub what: String,
    pub why: String,
}

/// The dependants that keep a tombstoned snapshot from being removed.
#[derive(Debug, Default)]
pub(super) struct Blockers {
    /// Names of clones and read-only volumes.
    pub(super) clones: Vec<String>,
    /// The dataset that it was taken of, while that restores from it.
    pub(super) restoring: Option<String>,
    pub(super) readers: usize,
}

impl Blockers {
    pub(super) fn is_empty(&self) -> bool {
        self.clones.is_empty() && self.restoring.is_none() && self.readers == 0
    }
}

impl fmt::Display for Blockers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let shown = self.clones.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        match (self.clones.len(), self.clones.len().saturating_sub(NAMED_MAX)) {
            (0, _) => {}
            (1, _) => parts.push(format!("clone {shown} depends on it")),
            (_, 0) => parts.push(format!("clones {shown} depend on it")),
            (_, more) => parts.push(format!("clones {shown} and {more} more depend on it")),
        }
        parts.extend(
            self.restoring.iter().map(|name| format!("dataset {name} is restoring from it")),
        );
        match self.readers {
            0 => {}
            1 => parts.push("1 reader, which expires an hour after its last renewal".to_owned()),
            n => parts.push(format!("{n} readers, which expire an hour after their last renewal")),
        }
        f.write_str(&parts.join("; "))
    }
}

/// The reason why a family's packs stay, and what the caller that began the snapshot can do.
pub(super) fn pending_snapshot(
    catalog: &Listing,
    family: FamilyId,
    id: SnapshotId,
    abandoned_after: Duration,
) -> Retained {
    let snapshot = catalog.snapshots.iter().find(|s| s.id() == id);
    let dataset = catalog.datasets.iter().find(|d| d.incarnation == id.dataset);
    let (Some(snapshot), Some(dataset)) = (snapshot, dataset) else {
        return Retained {
            what: format!("dead packs of family {family}"),
            why: format!("snapshot {id} is being made"),
        };
    };
    let started = humantime::format_rfc3339_seconds(SystemTime::from(snapshot.created));
    let (of, name) = (&dataset.name, &snapshot.name);
    let cure = match catalog.datasets.iter().find(|d| d.origin == Some(id) && snapshot.implied) {
        Some(clone) => format!(
            "clone {} of {of} was started at {started} and is not finished: retry the call",
            clone.name
        ),
        None if snapshot.implied => {
            format!("a clone of {of} was started at {started} and will not be finished")
        }
        None => format!(
            "snapshot {of}@{name} was started at {started} and is not finished: retry `dataset \
             snapshot create {of} {name}`, or delete it"
        ),
    };
    let what = format!("dead packs of {of}, its clones and what it was cloned from");
    Retained {
        what,
        why: format!(
            "{cure}; it is abandoned after {}",
            humantime::format_duration(abandoned_after)
        ),
    }
}

/// Returns the name for the operator: the implied snapshot of a clone of a live dataset has a
/// generated name.
pub(super) fn snapshot_name(catalog: &Listing, snapshot: &Snapshot) -> String {
    let of = dataset_name(catalog, snapshot.dataset.incarnation);
    match snapshot.implied {
        true => format!(
            "the snapshot of {of} cloned at {}",
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
    fn blockers_are_named_as_far_as_one_reads() {
        let blockers = |clones: usize, readers| Blockers {
            clones: (0..clones).map(|n| format!("c{n}")).collect(),
            readers,
            restoring: None,
        };
        assert_eq!(blockers(2, 0).to_string(), "clones c0, c1 depend on it");
        assert!(blockers(10, 0).to_string().ends_with("c7 and 2 more depend on it"));
        assert_eq!(
            blockers(0, 7).to_string(),
            "7 readers, which expire an hour after their last renewal"
        );
        let restoring = Blockers { restoring: Some("web".to_owned()), ..blockers(1, 0) };
        assert_eq!(
            restoring.to_string(),
            "clone c0 depends on it; dataset web is restoring from it"
        );
    }
}
