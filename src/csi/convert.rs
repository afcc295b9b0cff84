//! Ids and snapshots in CSI's messages. Pure.

use super::capacity::signed;
use super::proto::v1::Snapshot;
use super::status::{RequestError, invalid};
use crate::control::SnapshotInfo;
use crate::types::{GroupHandle, SnapshotHandle, Timestamp, VolumeHandle};

pub(super) fn required<'a>(field: &str, value: &'a str) -> Result<&'a str, RequestError> {
    if value.is_empty() { Err(invalid(format!("{field} is missing"))) } else { Ok(value) }
}

/// An id that is none of ours names a volume that does not exist.
pub(super) fn volume_id(id: &str) -> Result<VolumeHandle, RequestError> {
    required("volume_id", id)?
        .parse()
        .map_err(|error| RequestError::NotFound(format!("{error}: no such volume")))
}

pub(super) fn snapshot_id(id: &str) -> Result<SnapshotHandle, RequestError> {
    required("snapshot_id", id)?
        .parse()
        .map_err(|error| RequestError::NotFound(format!("{error}: no such snapshot")))
}

pub(super) fn snapshot(info: &SnapshotInfo) -> Snapshot {
    let record = &info.snapshot;
    let pool = info.handle.pool;
    let of = VolumeHandle { pool, dataset: record.dataset };
    Snapshot {
        // The least size of a volume made from it: the quota at that time.
        size_bytes: record.size.map_or(0, signed),
        snapshot_id: info.handle.to_string(),
        source_volume_id: of.to_string(),
        creation_time: Some(timestamp(record.created)),
        ready_to_use: record.state == crate::catalog::State::Ready,
        group_snapshot_id: record
            .group
            .map(|group| GroupHandle { pool, group }.to_string())
            .unwrap_or_default(),
        // Usable from every node.
        accessible_topology: Vec::new(),
    }
}

pub(super) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.subsec_nanos()).unwrap_or_default();
    prost_types::Timestamp { seconds: at.secs(), nanos }
}
