//! The JSON of the interface: field names are its contract (`docs/openapi.json`).
//!
//! Sizes are bytes, times RFC 3339. Names and paths that are not UTF-8 are shown with replacement
//! characters, and their bytes come in a second field, in base 64.

use crate::catalog::{Form, State};
use crate::control::browse::{DatasetFacts, Entry, SnapshotFacts, kind_name};
use crate::fs::{Aspect, Difference, PathDifference};
use crate::types::Timestamp;
use data_encoding::BASE64;
use serde::Serialize;
use utoipa::ToSchema;

/// A part of a list.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Where the list goes on: the `cursor` of the next request. Null at the end.
    pub next: Option<String>,
}

impl<T> Page<T> {
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next: None }
    }
}

pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The bytes of what is not UTF-8.
pub fn raw(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).is_err().then(|| BASE64.encode(bytes))
}

pub fn state(state: &State) -> String {
    format!("{state:?}").to_lowercase()
}

/// A dataset.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetShape {
    pub name: String,
    /// Its id in CSI.
    handle: String,
    /// `creating`, `ready` or `deleting`.
    state: String,
    /// The quota; null: none.
    size_bytes: Option<u64>,
    /// Bytes that its files hold; null where no process here has it open.
    used_bytes: Option<u64>,
    created: String,
    /// The node that has it open.
    owner: Option<String>,
    /// The snapshot it was cloned from, `DATASET@SNAPSHOT`.
    origin: Option<String>,
    /// Whether the clone no longer depends on its origin.
    detached: bool,
    /// Whether the dataset stands for the snapshot that it was made from.
    read_only: bool,
    /// Null: by access modes.
    sync: Option<String>,
    record_bytes: u32,
    compression: String,
    /// `hidden` or `visible`: whether a listing of the root folder shows `.snapshots`.
    snapdir: String,
    quota_inodes: Option<u64>,
    /// Bytes read in a second; null: unlimited.
    max_read_bandwidth: Option<u64>,
    /// Bytes written in a second; null: unlimited.
    max_write_bandwidth: Option<u64>,
    /// READ and WRITE calls in a second; null: unlimited.
    max_iops: Option<u64>,
    snapshot_count: u64,
    /// When the newest snapshot was taken.
    newest_snapshot: Option<String>,
}

impl DatasetShape {
    pub fn using(self, used_bytes: Option<u64>) -> Self {
        Self { used_bytes, ..self }
    }
}

impl From<DatasetFacts> for DatasetShape {
    fn from(facts: DatasetFacts) -> Self {
        let dataset = facts.dataset;
        Self {
            name: dataset.name.to_string(),
            handle: facts.handle.to_string(),
            state: state(&dataset.state),
            size_bytes: dataset.size,
            used_bytes: None,
            created: dataset.created.rfc3339(),
            owner: dataset.owner.as_ref().map(|owner| owner.node.clone()),
            origin: facts.origin_name,
            detached: dataset.detached,
            read_only: dataset.form == Form::Snapshot,
            sync: dataset.properties.sync.map(|sync| sync.to_string()),
            record_bytes: dataset.properties.record_bytes,
            compression: dataset.properties.codec.as_str().to_owned(),
            snapdir: dataset.properties.snapdir.as_str().to_owned(),
            quota_inodes: dataset.properties.quota_inodes,
            max_read_bandwidth: dataset.properties.limits.max_read_bandwidth,
            max_write_bandwidth: dataset.properties.limits.max_write_bandwidth,
            max_iops: dataset.properties.limits.max_iops,
            snapshot_count: facts.snapshots,
            newest_snapshot: facts.newest_snapshot.map(Timestamp::rfc3339),
        }
    }
}

/// A snapshot.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotShape {
    pub dataset: String,
    pub name: String,
    /// Its id in CSI: of a snapshot, or of a volume if it is writable.
    handle: String,
    state: String,
    created: String,
    /// The dataset's quota when it was taken.
    size_bytes: Option<u64>,
    /// Bytes that the dataset held when it was taken, if known.
    referenced_bytes: Option<u64>,
    /// Clones and others that depend on it.
    clones: u64,
    /// A clone that is listed among the snapshots.
    writable: bool,
    /// The tags of those who hold it: it cannot be deleted.
    holds: Vec<String>,
    /// A policy took it.
    by_policy: bool,
}

impl From<SnapshotFacts> for SnapshotShape {
    fn from(facts: SnapshotFacts) -> Self {
        let (handle, writable) = (facts.handle(), facts.is_writable());
        Self {
            dataset: facts.dataset,
            name: facts.name,
            handle,
            state: state(&facts.state),
            created: facts.created.rfc3339(),
            size_bytes: facts.size,
            referenced_bytes: facts.referenced,
            clones: facts.dependants,
            writable,
            holds: facts.holds,
            by_policy: facts.by_policy,
        }
    }
}

/// An object of a folder.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EntryShape {
    name: String,
    /// The bytes of a name that is not UTF-8, in base 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_bytes: Option<String>,
    /// `file`, `folder`, `link`, `block device`, `character device`, `fifo` or `socket`.
    kind: &'static str,
    /// Octal.
    #[schema(example = "0644")]
    mode: String,
    uid: u32,
    gid: u32,
    links: u32,
    /// Bytes of a file or of a link's target, number of entries of a folder.
    size: u64,
    /// When the content was last changed.
    modified: String,
    /// When content or attributes were last changed.
    changed: String,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_bytes: Option<String>,
}

impl From<&Entry> for EntryShape {
    fn from(entry: &Entry) -> Self {
        let target = entry.target.as_deref();
        Self {
            name: lossy(entry.name()),
            name_bytes: raw(entry.name()),
            kind: kind_name(entry.kind),
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            links: entry.nlink,
            size: entry.size,
            modified: entry.mtime.rfc3339(),
            changed: entry.ctime.rfc3339(),
            target: target.map(lossy),
            target_bytes: target.and_then(raw),
        }
    }
}

/// A version of a path: what it led to from one state of the dataset to another.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionShape {
    /// The oldest snapshot that has it; null: only the dataset itself has it.
    pub first: Option<String>,
    /// The newest one; null: it is what is there now.
    pub last: Option<String>,
    /// Number of states that have it.
    pub snapshots: u32,
    /// Null: the path led to nothing.
    pub kind: Option<&'static str>,
    pub size: Option<u64>,
    pub modified: Option<String>,
}

/// An object that a search has found.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HitShape {
    /// The snapshot; null: the dataset itself.
    pub snapshot: Option<String>,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    pub kind: &'static str,
    pub size: u64,
    pub modified: String,
}

/// The result of a search.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hits {
    pub items: Vec<HitShape>,
    /// Always null: a search has one page.
    pub next: Option<String>,
    /// There may be more: the limit of hits, or of entries looked at, was reached.
    pub truncated: bool,
    /// Entries that were looked at.
    pub visited: u64,
}

/// A difference between two states.
#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DifferenceShape {
    /// `added`, `removed`, `changed` or `renamed`.
    pub change: &'static str,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<String>,
    /// The path that a renamed object had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_bytes: Option<String>,
    pub kind: &'static str,
    /// `content`, `entries`, `mode`, `owner`, `times`, `links` or `replaced`.
    #[schema(value_type = Vec<String>)]
    pub aspects: Vec<Aspect>,
}

impl From<&PathDifference> for DifferenceShape {
    fn from(found: &PathDifference) -> Self {
        let (change, from, aspects): (_, Option<&[u8]>, &[Aspect]) = match &found.difference {
            Difference::Added => ("added", None, &[]),
            Difference::Removed => ("removed", None, &[]),
            Difference::Changed(aspects) => ("changed", None, aspects),
            Difference::Renamed(from, aspects) => ("renamed", Some(from), aspects),
        };
        Self {
            change,
            path: lossy(&found.path),
            path_bytes: raw(&found.path),
            from: from.map(lossy),
            from_bytes: from.and_then(raw),
            kind: kind_name(found.kind),
            aspects: aspects.to_vec(),
        }
    }
}

/// The differences between two states: a part of them, with the counts of all.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Differences {
    pub items: Vec<DifferenceShape>,
    pub next: Option<String>,
    pub counts: DifferenceCounts,
}

#[derive(Clone, Copy, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DifferenceCounts {
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    pub renamed: u64,
    /// There are more differences than were counted.
    pub truncated: bool,
}

impl DifferenceCounts {
    pub fn add(&mut self, found: &PathDifference) {
        match found.difference {
            Difference::Added => self.added += 1,
            Difference::Removed => self.removed += 1,
            Difference::Changed(_) => self.changed += 1,
            Difference::Renamed(..) => self.renamed += 1,
        }
    }

    pub fn sum(&self) -> u64 {
        self.added + self.removed + self.changed + self.renamed
    }
}
