//! Requests to the process that may act on a dataset, and their replies: the same for every
//! carrier, and the bytes that the mailbox writes.

use super::restore::{Replaced, RestoreInPlace};
use crate::control::ControlError;
use crate::fs::Restored;
use crate::fs::db::Detached;
use crate::types::{ClaimId, DatasetName, Epoch, Incarnation, PackId};
use serde::{Deserialize, Serialize};

/// Work on a dataset that only its owner may do, or a maintenance claim where it has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::control) enum OwnerRequest {
    /// A checkpoint of everything acknowledged, named after the snapshot.
    Checkpoint { snapshot: Incarnation },
    /// Make no new use of packs (R12). Done when that is durable.
    Seal {
        #[serde(with = "pack_names")]
        packs: Vec<PackId>,
    },
    /// Rewrite a clone so that it no longer depends on its origin (R13).
    Detach,
    Restore {
        #[serde(flatten)]
        wanted: RestoreInPlace,
        replaced: Replaced,
    },
    /// Stop the restore of this call, if it runs.
    StopRestore { call: Incarnation },
    /// Close and release a volume that is not in use there. Void for any other claim (R31).
    HandOver { claim: ClaimId },
    /// Say whether the volume is open there.
    Ping,
    /// Apply the properties in the dataset's record.
    ApplyProperties,
    /// Present the volume's files with a group (R28).
    MountGroup { gid: u32 },
    /// Write out what the node's mounts and the file system hold, so that a checkpoint during a
    /// freeze has little to do.
    PrepareFreeze,
    /// Begin no change until `Thaw`, or for this long. The asker chooses the token of an open
    /// volume, so that it can end a freeze whose reply was lost.
    Freeze { token: Incarnation, limit_millis: u32 },
    /// As `Checkpoint`, while the freeze is unbroken. Mounts are not synced: their writes wait.
    CheckpointFrozen { snapshot: Incarnation, freeze: FreezeToken },
    /// End a freeze. Done only if it was unbroken until now.
    Thaw { freeze: FreezeToken },
}

/// Names one freeze of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::control) enum FreezeToken {
    /// The checkpoint of an open volume.
    Open(Incarnation),
    /// The checkpoint of a released dataset, which nobody changes as long as nobody opens it: the
    /// writer epoch that its database has while that is so.
    Released(Epoch),
}

impl OwnerRequest {
    /// For messages.
    pub(super) fn describe(&self, dataset: &str) -> String {
        match self {
            Self::Checkpoint { .. } => format!("snapshot of volume {dataset}"),
            Self::Seal { .. } => format!("sealing of packs of volume {dataset}"),
            Self::Detach => format!("detaching of volume {dataset}"),
            Self::Restore { .. } => format!("restore into volume {dataset}"),
            Self::StopRestore { .. } => format!("end of a restore into volume {dataset}"),
            Self::HandOver { .. } => format!("hand-over of volume {dataset}"),
            Self::Ping => format!("volume {dataset}"),
            Self::ApplyProperties => format!("properties of volume {dataset}"),
            Self::MountGroup { .. } => format!("group of volume {dataset}"),
            Self::PrepareFreeze
            | Self::Freeze { .. }
            | Self::CheckpointFrozen { .. }
            | Self::Thaw { .. } => format!("group snapshot with volume {dataset}"),
        }
    }

    /// The request that stops it while it runs.
    pub(super) fn stop(&self) -> Option<Self> {
        match self {
            Self::Restore { wanted, .. } => Some(Self::StopRestore { call: wanted.call }),
            _ => None,
        }
    }

    /// Returns whether it takes minutes, so that an owner starts it and goes on with other
    /// requests.
    pub(super) fn is_long(&self) -> bool {
        self.is_awaited() || matches!(self, Self::Detach)
    }

    /// Returns whether the caller waits for the end of a long request; otherwise it gets the result
    /// when it makes the request again.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Restore { .. })
    }

    /// Returns whether it is part of a group snapshot, whose next request follows at once and is
    /// waited for by everybody who writes.
    pub(super) fn is_urgent(&self) -> bool {
        matches!(
            self,
            Self::PrepareFreeze
                | Self::Freeze { .. }
                | Self::CheckpointFrozen { .. }
                | Self::Thaw { .. }
        )
    }

    /// Returns whether others may wait for it in a freeze.
    pub(super) fn ends_freeze(&self) -> bool {
        matches!(self, Self::CheckpointFrozen { .. } | Self::Thaw { .. })
    }

    /// Returns whether doing it late or twice has the same effect as doing it once. A restore puts
    /// old files over those that were written since. A late freeze costs writers its time limit.
    pub(super) fn is_repeatable(&self) -> bool {
        !self.is_awaited()
    }
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::control) enum OwnerReply {
    Done,
    Checkpoint(Checkpointed),
    Frozen(FreezeToken),
    /// During a freeze: the token under which the freeze goes on.
    CheckpointFrozen(Checkpointed, FreezeToken),
    Detached(Detached),
    Restored(Restored),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct Checkpointed {
    /// The bytes of a [`CheckpointId`](crate::fs::db::CheckpointId).
    pub checkpoint: [u8; 16],
    /// Bytes in use; `None` where they have not been counted.
    pub referenced: Option<u64>,
}

/// The kind of reply that a request has.
pub(in crate::control) trait FromReply: Sized {
    fn from_reply(reply: OwnerReply) -> Option<Self>;
}

macro_rules! from_reply {
    ($($pattern:pat => $reply:ty: $value:expr,)*) => {
        $(impl FromReply for $reply {
            fn from_reply(reply: OwnerReply) -> Option<Self> {
                match reply {
                    $pattern => Some($value),
                    _ => None,
                }
            }
        })*
    };
}

from_reply! {
    OwnerReply::Done => (): (),
    OwnerReply::Checkpoint(made) => Checkpointed: made,
    OwnerReply::Frozen(freeze) => FreezeToken: freeze,
    OwnerReply::CheckpointFrozen(made, freeze) => (Checkpointed, FreezeToken): (made, freeze),
    OwnerReply::Detached(detached) => Detached: detached,
    OwnerReply::Restored(restored) => Restored: restored,
}

/// The reply as the kind that was asked for.
pub(super) fn expect<T: FromReply>(
    request: &OwnerRequest,
    dataset: &DatasetName,
    reply: OwnerReply,
) -> Result<T, ControlError> {
    let unexpected = format!("{}: unexpected reply {reply:?}", request.describe(dataset.as_str()));
    T::from_reply(reply).ok_or(ControlError::Internal(unexpected))
}

/// Serialises packs by the names of their objects below the family.
mod pack_names {
    use super::PackId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(packs: &[PackId], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(packs.iter().map(ToString::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<PackId>, D::Error> {
        let names = Vec::<String>::deserialize(d)?;
        names.iter().map(|name| name.parse().map_err(Error::custom)).collect()
    }
}
