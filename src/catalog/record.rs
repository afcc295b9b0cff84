//! The records: their fields are the format (`tests/format`). A field is added with a default,
//! never changed in meaning.

use crate::chunk::Codec;
use crate::crypto::WrappedKey;
use crate::types::*;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// The pool's own record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    pub id: PoolId,
    pub created: Timestamp,
    /// Features that a program must know to open the pool.
    pub features: Vec<String>,
    /// The wrapped master key and the KDF's parameters; absent: the pool is not encrypted.
    pub encryption: Option<WrappedKey>,
    /// The dataset of commands and mounts that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_dataset: Option<DatasetId>,
}

/// A mode of a later version is served as the safest one of this version.
fn known_sync<'de, D: Deserializer<'de>>(input: D) -> Result<Option<SyncMode>, D::Error> {
    let name = Option::<String>::deserialize(input)?;
    Ok(name.map(|name| name.parse().unwrap_or(SyncMode::Always)))
}

/// The properties of a dataset, chosen at creation (StorageClass parameters, CLI options) or later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// `None`: by access modes.
    #[serde(default, deserialize_with = "known_sync")]
    pub sync: Option<SyncMode>,
    pub record_bytes: u32,
    pub codec: Codec,
    pub quota_inodes: Option<u64>,
    pub root_uid: u32,
    pub root_gid: u32,
    pub root_mode: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    pub snapdir: Snapdir,
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: IoLimits,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Visibility of `.snapshots` in a listing of the root directory, in ZFS's terms. The name leads
/// there either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Snapdir {
    #[default]
    Hidden,
    Visible,
}

impl Snapdir {
    pub const ALL: [Self; 2] = [Self::Hidden, Self::Visible];

    /// The name by which people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Visible => "visible",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use hidden or visible")]
pub struct SnapdirError;

impl std::str::FromStr for Snapdir {
    type Err = SnapdirError;

    fn from_str(text: &str) -> Result<Self, SnapdirError> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or(SnapdirError)
    }
}

/// By `cargo bench --bench content -- 256 16,32,64,128 folder` (two shared cores, encrypted), for
/// 16, 32, 64 and 128 KiB: sequential write 2.5, 2.0, 1.6 and 1.5 CPU s a GiB; sequential read,
/// cold, 1.7, 1.2, 1.2 and 1.2; a read of 4 KiB that is in no cache 81, 71, 71 and 127 µs; a write
/// of 4 KiB at random 15 to 17, 19 to 24, 12 to 14 and 12 to 17 µs. Below 64 KiB only plain random
/// reads gain (81 to 53 µs at 32 KiB).
const RECORD_BYTES: u32 = 64 << 10;

impl Default for Properties {
    fn default() -> Self {
        Self {
            sync: None,
            record_bytes: RECORD_BYTES,
            codec: Codec::Lz4,
            quota_inodes: None,
            root_uid: 0,
            root_gid: 0,
            root_mode: 0o755,
            snapdir: Snapdir::Hidden,
            limits: IoLimits::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The intent is written; the effect may or may not have happened (R3).
    Creating,
    Ready,
    /// Deletion was acknowledged; dependants may retain it.
    Deleting,
    /// Nothing depends on it; a cleaner is removing the effect (R3).
    Dead,
}

/// The owner of a dataset, and its claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub node: String,
    pub session: SessionId,
    /// Fresh whenever the record is claimed, also by the session that had it before, and also after
    /// its lease had expired: whatever was found out or decided about an earlier claim is void
    /// (R31).
    pub claim: ClaimId,
    /// The directory of its journals: only a process on that directory takes the dataset back
    /// without waiting. None: the owner has no journals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_dir_id: Option<JournalDirId>,
    /// The time without a new heartbeat of the session after which others may count it as dead
    /// (R26), in milliseconds; 0: an old version of the program without leases.
    #[serde(default)]
    pub lease_millis: u64,
}

impl Owner {
    /// A fresh claim of an owner without journals and without a lease of its own.
    pub fn new(node: &str, session: SessionId) -> Self {
        Self {
            node: node.to_owned(),
            session,
            claim: ClaimId::random(),
            journal_dir_id: None,
            lease_millis: 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// Its present name.
    pub name: DatasetName,
    pub incarnation: Incarnation,
    pub family: FamilyId,
    /// The snapshot that a clone started from.
    pub origin: Option<SnapshotId>,
    pub state: State,
    pub created: Timestamp,
    /// Byte quota.
    pub size: Option<u64>,
    pub properties: Properties,
    /// Every CSI access mode asked for at creation.
    pub access_modes: Vec<String>,
    /// `None`: released, cleanly closed (R16).
    pub owner: Option<Owner>,
    /// Secret that handle keys are made from, fresh for each clone (R7).
    pub handle_secret: [u8; 16],
    /// Parameters as the CSI caller gave them, to distinguish a retry from a conflict.
    pub parameters: BTreeMap<String, String>,
    /// The serial of the last snapshot begun: serials are never reused, whatever was deleted.
    #[serde(default)]
    pub snapshot_serial: u32,
    /// A clone whose database no longer reads its origin's (R13): the origin may be removed.
    #[serde(default)]
    pub detached: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub form: Form,
    /// Properties were changed since it was created: a retry of its creation is not compared with
    /// them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub modified: bool,
    /// Rows of this snapshot are being restored, or were when its owner died: the dataset is one of
    /// the snapshot's dependants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restoring: Option<SnapshotId>,
    /// An inline volume of one pod: its node deletes it when the pod goes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ephemeral: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub naming: Box<Naming>,
}

/// The state of a dataset that is renamed, or was, see [`super::rename`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    /// The key of its first name, which stays part of its id. `None`: it has that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<NameKey>,
    /// The rename in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<RenameIntent>,
    /// The dataset that has this one's first name since this one has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<Alias>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameIntent {
    pub name: DatasetName,
    /// Fresh for each attempt, so that an earlier one cannot complete.
    pub attempt: Incarnation,
}

/// The dataset that a name finds away from the name's own key. It counts only while the dataset has
/// that name, or is being renamed to it by that attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    pub dataset: DatasetId,
    pub attempt: Incarnation,
}

/// The chain of a name that no dataset has or had first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRecord {
    pub alias: Alias,
}

/// The location of a dataset's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// In a database of its own, which its one owner writes.
    #[default]
    Writable,
    /// The dataset is the snapshot that it was made from, read only: no database, no owner, read by
    /// any number of nodes.
    Snapshot,
}

impl Dataset {
    /// The key by which a name finds a dataset.
    pub fn key_of(name: &DatasetName) -> NameKey {
        NameKey::of("dataset", name.as_str())
    }

    /// Its id, which a rename does not change.
    pub fn id(&self) -> DatasetId {
        let key = self.naming.key.unwrap_or_else(|| Self::key_of(&self.name));
        DatasetId { key, incarnation: self.incarnation }
    }

    /// Returns whether several nodes may have it mounted at a time, one of which owns it.
    pub fn is_shared(&self) -> bool {
        self.form == Form::Writable
            && self.access_modes.iter().any(|mode| mode.starts_with("MULTI_NODE"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: SnapshotName,
    pub incarnation: Incarnation,
    /// The dataset it is of.
    pub dataset: DatasetId,
    pub family: FamilyId,
    pub state: State,
    pub created: Timestamp,
    /// SlateDB's checkpoint, known once `ready`. Its name is the snapshot's incarnation.
    pub checkpoint: Option<[u8; 16]>,
    /// The dataset's quota at the snapshot.
    pub size: Option<u64>,
    /// Bytes accounted at the snapshot.
    pub referenced: Option<u64>,
    pub properties: Properties,
    /// Clones made from it that still need it, and other dependants (R14).
    pub dependants: Vec<Incarnation>,
    /// Unique, never reused within the dataset: the upper bits of fileids below `.snapshots`.
    pub serial: u32,
    /// Made implicitly for a clone of a volume: removed with its last use.
    pub implied: bool,
    /// The slot of its dataset's policy that it was made for. `None`: somebody asked for it, and no
    /// policy ever deletes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Timestamp>,
    /// Tags of those who hold it: it cannot be deleted until each has released it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub holds: BTreeSet<String>,
    /// The group snapshot that it is part of: it becomes ready, and is deleted, with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
}

impl Snapshot {
    pub fn id(&self) -> SnapshotId {
        let key = NameKey::of("snapshot", self.name.as_str());
        SnapshotId {
            dataset: self.dataset.incarnation,
            snapshot: DatasetId { key, incarnation: self.incarnation },
        }
    }
}

/// Snapshots of several datasets at one point in time. Its name is each one's name in its dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSnapshot {
    pub name: SnapshotName,
    pub incarnation: Incarnation,
    /// Its members follow it: none is ready before, and all are tombstoned before it is removed.
    pub state: State,
    /// When it was begun; of a ready one, the time that it shows.
    pub created: Timestamp,
    /// In the order of their datasets.
    pub members: Vec<GroupMember>,
}

impl GroupSnapshot {
    pub fn key_of(name: &SnapshotName) -> NameKey {
        NameKey::of("group-snapshot", name.as_str())
    }

    pub fn id(&self) -> GroupId {
        GroupId { key: Self::key_of(&self.name), incarnation: self.incarnation }
    }

    /// The ids of its snapshots.
    pub fn snapshots(&self) -> impl Iterator<Item = SnapshotId> {
        let key = NameKey::of("snapshot", self.name.as_str());
        self.members.iter().map(move |member| SnapshotId {
            dataset: member.dataset.incarnation,
            snapshot: DatasetId { key, incarnation: member.snapshot },
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    pub dataset: DatasetId,
    /// The incarnation of its snapshot.
    pub snapshot: Incarnation,
    /// As in the snapshot's record, which gets them from here once the group is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<[u8; 16]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referenced: Option<u64>,
}

/// The snapshot that has a CSI name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotNameClaim {
    pub name: String,
    pub snapshot: SnapshotId,
}

/// A heartbeat of a node session. The lease depends on new ones appearing, not on their content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub node: String,
    pub lease_millis: u64,
    /// The boot id of the machine, as Kubernetes shows it of a Node: tells this machine from
    /// another of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

/// Where a session accepts relayed calls and requests for its volumes, and the key by which others
/// recognise it. A key belongs to one run of a process, so that it is replaced with each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeChannel {
    pub node: String,
    /// None: nowhere. It asks, and owns no volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Whether it has staged a shared volume, so that the calls on those that it owns may be
    /// relayed to it.
    #[serde(default)]
    pub relays: bool,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), in hexadecimal.
    pub key_sha256: String,
}

/// The reason why an owner that may be alive has to release a dataset (R27).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationReason {
    /// An administrator forced it.
    Administrator,
    /// The Node object was deleted.
    NodeGone,
    /// The node has the out-of-service taint.
    OutOfService,
    /// No pod that uses the claim is on the node.
    NoPods,
}

/// Ends a claim: its owner must release the dataset, and others may take it once the owner must
/// have read this. Never changed, and void for every other claim (R31).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub dataset: DatasetId,
    pub claim: ClaimId,
    pub why: RevocationReason,
    /// Names the writer, for people.
    pub by: String,
    pub created: Timestamp,
}

/// Tells controllers that a volume is damaged: its node has no other way to them. Never changed;
/// removed by the controller that has posted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamageReport {
    pub dataset: DatasetId,
    pub node: String,
    /// For people.
    pub why: String,
    pub created: Timestamp,
}

/// Which process collects in the pool. The holder writes it again while it collects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorClaim {
    /// `None`: no process at the moment.
    pub holder: Option<SessionId>,
    /// The node of the last holder, for people.
    pub node: String,
    /// A claim that has not changed for this long has expired.
    pub lease_millis: u64,
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_sync_mode_is_the_safest() {
        let mut record = serde_json::to_value(Properties::default()).unwrap();
        for (name, mode) in [("standard", SyncMode::Standard), ("eventual", SyncMode::Always)] {
            record["sync"] = name.into();
            let properties: Properties = serde_json::from_value(record.clone()).unwrap();
            assert_eq!(properties.sync, Some(mode));
        }
        record["sync"] = serde_json::Value::Null;
        assert_eq!(serde_json::from_value::<Properties>(record).unwrap().sync, None);
    }
}
