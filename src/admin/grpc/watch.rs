//! Changes as the proto tells them.

use super::super::watch::WatchEvent;
use super::convert;
use super::proto::WatchResponse;
use super::proto::watch_response::Change;
use crate::control::browse::{DatasetFacts, SnapshotFacts};
use crate::control::{Pool, Task};

fn told(change: Change) -> WatchResponse {
    WatchResponse { change: Some(change) }
}

impl WatchEvent for WatchResponse {
    fn task(task: Task) -> Self {
        told(Change::Task(convert::task(task)))
    }

    fn dataset(pool: &Pool, facts: DatasetFacts) -> Self {
        told(Change::Dataset(convert::dataset(pool, facts)))
    }

    fn snapshot(pool: &Pool, facts: SnapshotFacts) -> Self {
        told(Change::Snapshot(convert::snapshot(pool, facts)))
    }

    fn removed(name: String) -> Self {
        told(Change::Removed(name))
    }
}
