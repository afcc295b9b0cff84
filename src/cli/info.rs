//! Prints datasets and snapshots.

use super::remote::{some, time};
use super::report::{table, when};
use crate::admin::grpc::proto;
use crate::catalog::{Dataset, Form, State};
use crate::control::browse::SnapshotFacts;
use crate::types::{ByteSize, VolumeHandle};
use serde::Serialize;

#[derive(Serialize)]
pub struct DatasetShown {
    pub name: String,
    pub handle: String,
    pub state: String,
    pub size_bytes: Option<u64>,
    pub created: String,
    /// The node that has it open.
    pub owner: Option<String>,
    /// The snapshot it was cloned from.
    pub origin: Option<String>,
    /// That snapshot by name.
    pub origin_name: Option<String>,
    /// Independent of its origin, which may be deleted.
    pub detached: bool,
    pub sync: Option<String>,
    pub record_bytes: u32,
    pub compression: String,
    /// The dataset is the snapshot that it was made from.
    pub read_only: bool,
    pub quota_inodes: Option<u64>,
    /// Bytes a second; `None`: unlimited, as in those below.
    pub max_read_bandwidth: Option<u64>,
    pub max_write_bandwidth: Option<u64>,
    pub max_iops: Option<u64>,
    pub access_modes: Vec<String>,
}

#[derive(Serialize)]
pub struct SnapshotShown {
    pub dataset: String,
    pub name: String,
    pub handle: String,
    pub state: String,
    pub created: String,
    /// The dataset's quota when it was taken.
    pub size_bytes: Option<u64>,
    /// Bytes that the dataset held when it was taken, if known.
    pub referenced_bytes: Option<u64>,
    /// Clones that depend on it.
    pub dependants: u64,
    /// A clone that is listed among the snapshots; the handle is a volume's.
    pub writable: bool,
    /// A policy made it.
    pub by_policy: bool,
    /// Tags of those who hold it.
    pub holds: Vec<String>,
}

fn state(state: &State) -> String {
    format!("{state:?}").to_lowercase()
}

/// As a server tells it.
fn told(state: proto::State) -> String {
    match state {
        proto::State::Creating => "creating",
        proto::State::Ready => "ready",
        proto::State::Deleting => "deleting",
        proto::State::Dead => "dead",
        proto::State::Unspecified => "unknown",
    }
    .to_owned()
}

impl From<proto::Dataset> for DatasetShown {
    fn from(dataset: proto::Dataset) -> Self {
        Self {
            state: told(dataset.state()),
            name: dataset.name,
            handle: dataset.handle,
            size_bytes: dataset.size_bytes,
            created: when(time(dataset.created)),
            owner: some(dataset.owner),
            origin: some(dataset.origin_id),
            origin_name: some(dataset.origin),
            detached: dataset.detached,
            sync: some(dataset.sync),
            record_bytes: dataset.record_bytes,
            compression: dataset.compression,
            read_only: dataset.read_only,
            quota_inodes: dataset.quota_inodes,
            max_read_bandwidth: dataset.max_read_bandwidth,
            max_write_bandwidth: dataset.max_write_bandwidth,
            max_iops: dataset.max_iops,
            access_modes: dataset.access_modes,
        }
    }
}

impl From<proto::Snapshot> for SnapshotShown {
    fn from(snapshot: proto::Snapshot) -> Self {
        Self {
            state: told(snapshot.state()),
            dataset: snapshot.dataset,
            name: snapshot.name,
            handle: snapshot.handle,
            created: when(time(snapshot.created)),
            size_bytes: snapshot.size_bytes,
            referenced_bytes: snapshot.referenced_bytes,
            dependants: snapshot.dependants,
            writable: snapshot.writable,
            by_policy: snapshot.by_policy,
            holds: snapshot.holds,
        }
    }
}

impl DatasetShown {
    pub fn of(handle: VolumeHandle, dataset: &Dataset, origin_name: Option<String>) -> Self {
        Self {
            name: dataset.name.to_string(),
            handle: handle.to_string(),
            state: state(&dataset.state),
            size_bytes: dataset.size,
            created: when(dataset.created),
            owner: dataset.owner.as_ref().map(|owner| owner.node.clone()),
            origin: dataset.origin.map(|origin| origin.to_string()),
            origin_name,
            detached: dataset.detached,
            sync: dataset.properties.sync.map(|sync| sync.to_string()),
            record_bytes: dataset.properties.record_bytes,
            compression: dataset.properties.codec.as_str().to_owned(),
            read_only: dataset.form == Form::Snapshot,
            quota_inodes: dataset.properties.quota_inodes,
            max_read_bandwidth: dataset.properties.limits.max_read_bandwidth,
            max_write_bandwidth: dataset.properties.limits.max_write_bandwidth,
            max_iops: dataset.properties.limits.max_iops,
            access_modes: dataset.access_modes.clone(),
        }
    }

    fn form(&self) -> String {
        if self.read_only { "read-only" } else { "writable" }.to_owned()
    }

    /// The limits that it has.
    fn limits(&self) -> impl Iterator<Item = (&'static str, String)> {
        let bandwidth = |bytes: Option<u64>| bytes.map(|bytes| format!("{}/s", ByteSize(bytes)));
        let limits = [
            ("max read", bandwidth(self.max_read_bandwidth)),
            ("max write", bandwidth(self.max_write_bandwidth)),
            ("max IOPS", self.max_iops.map(|iops| iops.to_string())),
        ];
        limits.into_iter().filter_map(|(name, limit)| Some((name, limit?)))
    }

    pub fn text(&self) -> String {
        let size =
            self.size_bytes.map_or("unlimited".to_owned(), |size| ByteSize(size).to_string());
        let none = || "-".to_owned();
        let origin = match &self.origin_name {
            Some(name) if self.detached => format!("{name} (detached)"),
            name => name.clone().unwrap_or_else(none),
        };
        let rows = [
            ("name", self.name.clone()),
            ("handle", self.handle.clone()),
            ("state", self.state.clone()),
            ("size", size),
            ("created", self.created.clone()),
            ("owner", self.owner.clone().unwrap_or_else(none)),
            ("form", self.form()),
            ("origin", origin),
            ("sync", self.sync.clone().unwrap_or_else(|| "by access modes".to_owned())),
            ("record size", ByteSize(u64::from(self.record_bytes)).to_string()),
            ("compression", self.compression.clone()),
        ];
        rows.into_iter()
            .chain(self.limits())
            .map(|(name, value)| format!("{name:<12} {value}\n"))
            .collect()
    }
}

pub fn datasets(shown: &[DatasetShown]) -> String {
    let row = |d: &DatasetShown| {
        let size = d.size_bytes.map_or("-".to_owned(), |size| ByteSize(size).to_string());
        let none = || "-".to_owned();
        let owner = d.owner.clone().unwrap_or_else(none);
        // A detached clone retains nothing of its origin.
        let origin = d.origin_name.clone().filter(|_| !d.detached).unwrap_or_else(none);
        vec![d.name.clone(), size, d.form(), d.state.clone(), owner, d.created.clone(), origin]
    };
    table(
        &["NAME", "SIZE", "FORM", "STATE", "OWNER", "CREATED", "ORIGIN"],
        &shown.iter().map(row).collect::<Vec<_>>(),
    )
}

impl SnapshotShown {
    pub fn of(snapshot: &SnapshotFacts) -> Self {
        Self {
            dataset: snapshot.dataset.clone(),
            name: snapshot.name.clone(),
            handle: snapshot.handle(),
            state: state(&snapshot.state),
            created: when(snapshot.created),
            size_bytes: snapshot.size,
            referenced_bytes: snapshot.referenced,
            dependants: snapshot.dependants,
            writable: snapshot.is_writable(),
            by_policy: snapshot.by_policy,
            holds: snapshot.holds.clone(),
        }
    }
}

pub fn snapshots(shown: &[SnapshotShown]) -> String {
    let row = |s: &SnapshotShown| {
        let size = s.size_bytes.map_or("-".to_owned(), |size| ByteSize(size).to_string());
        let kind = if s.writable { "writable" } else { "read-only" }.to_owned();
        vec![
            format!("{}@{}", s.dataset, s.name),
            kind,
            size,
            s.dependants.to_string(),
            s.state.clone(),
            s.created.clone(),
        ]
    };
    table(
        &["NAME", "KIND", "SIZE", "CLONES", "STATE", "CREATED"],
        &shown.iter().map(row).collect::<Vec<_>>(),
    )
}
