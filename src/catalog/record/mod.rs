//! The records: their fields are the format (`tests/format`). A field is added with a default,
//! never changed in meaning.

use crate::crypto::WrappedKey;
use crate::types::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

mod policy;
mod properties;

pub use policy::*;
pub use properties::*;

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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
