//! Prints datasets and snapshots.

use super::names::Names;
use super::report::{table, when};
use crate::catalog::{Dataset, Form, Snapshot, State};
use crate::control::Pool;
use crate::types::ByteSize;
use crate::types::{SnapshotHandle, VolumeHandle};
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
    pub dependants: usize,
    /// A clone that is listed among the snapshots; the handle is a volume's.
    pub writable: bool,
}

fn state(state: &State) -> String {
    format!("{state:?}").to_lowercase()
}

impl DatasetShown {
    pub fn of(pool: &Pool, dataset: &Dataset, names: &Names) -> Self {
        Self {
            name: dataset.name.to_string(),
            handle: VolumeHandle { pool: pool.id(), dataset: dataset.id() }.to_string(),
            state: state(&dataset.state),
            size_bytes: dataset.size,
            created: when(dataset.created),
            owner: dataset.owner.as_ref().map(|owner| owner.node.clone()),
            origin: dataset.origin.map(|origin| origin.to_string()),
            origin_name: dataset.origin.map(|origin| names.snapshot(origin)),
            detached: dataset.detached,
            sync: dataset.properties.sync.map(|sync| sync.to_string()),
            record_bytes: dataset.properties.record_bytes,
            compression: format!("{:?}", dataset.properties.codec).to_lowercase(),
            read_only: dataset.form == Form::Snapshot,
            quota_inodes: dataset.properties.quota_inodes,
            access_modes: dataset.access_modes.clone(),
        }
    }

    fn form(&self) -> String {
        if self.read_only { "read-only" } else { "writable" }.to_owned()
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
        rows.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect()
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
    pub fn of(pool: &Pool, dataset: &str, snapshot: &Snapshot) -> Self {
        Self {
            dataset: dataset.to_owned(),
            name: snapshot.name.to_string(),
            handle: SnapshotHandle { pool: pool.id(), snapshot: snapshot.id() }.to_string(),
            state: state(&snapshot.state),
            created: when(snapshot.created),
            size_bytes: snapshot.size,
            referenced_bytes: snapshot.referenced,
            dependants: snapshot.dependants.len(),
            writable: false,
        }
    }

    /// A clone named `DATASET@NAME`.
    pub fn of_writable(pool: &Pool, dataset: &str, name: &str, clone: &Dataset) -> Self {
        Self {
            dataset: dataset.to_owned(),
            name: name.to_owned(),
            handle: VolumeHandle { pool: pool.id(), dataset: clone.id() }.to_string(),
            state: state(&clone.state),
            created: when(clone.created),
            size_bytes: clone.size,
            referenced_bytes: None,
            dependants: 0,
            writable: true,
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
