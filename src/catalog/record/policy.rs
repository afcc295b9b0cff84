//! The records of snapshot policies and of their runs.

use crate::types::{DatasetId, Incarnation, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

/// The snapshot policy of a dataset, below the dataset's incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    pub dataset: DatasetId,
    /// `None`: it was deleted. The record goes with its dataset.
    pub policy: Option<SnapshotPolicy>,
    /// When it was last set or deleted.
    pub changed: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPolicy {
    /// The five fields of cron, or an interval like `15min`.
    pub schedule: String,
    /// By its IANA name: that of the schedule, and of the days, weeks and months of `keep`.
    pub time_zone: String,
    /// The prefix of the names of its snapshots.
    pub prefix: String,
    /// Make none while nothing has changed since its last one.
    pub skip_empty: bool,
    pub keep: KeepRules,
}

/// The snapshots that a policy keeps: each rule keeps some, and the others go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepRules {
    /// The newest ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Keep>,
    /// The newest one of each hour, day, week or month that has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly: Option<Keep>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<Keep>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weekly: Option<Keep>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly: Option<Keep>,
}

/// How many a rule keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    Count(u32),
    /// Those that are at most this much older than the newest.
    Secs(u64),
}

/// Which process runs the policies of the pool, and what has been done. The holder writes it again
/// while it runs them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRun {
    /// `None`: no process at the moment.
    pub holder: Option<SessionId>,
    /// The node of the last holder, for people.
    pub node: String,
    /// A claim that has not changed for this long has expired.
    pub lease_millis: u64,
    /// Every slot up to here is done, …
    pub done: Option<Timestamp>,
    /// … except for these datasets, whose last slot failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<Incarnation>,
}
