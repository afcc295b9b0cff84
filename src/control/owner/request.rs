//! Requests to the process that may act on a dataset, and their replies: the same for every
//! carrier, and the bytes that the mailbox writes.

use super::restore::RestoreInPlace;
use crate::control::ControlError;
use crate::fs::Restored;
use crate::fs::db::Detached;
use crate::types::{ClaimId, DatasetName, Incarnation, PackId};
use serde::{Deserialize, Serialize};

/// Work on a dataset that only its owner may do, or a maintenance claim where it has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::control) enum OwnerRequest {
    /// A checkpoint of everything acknowledged, named after the snapshot.
    Checkpoint {
        snapshot: Incarnation,
    },
    /// Make no new use of packs (R12). Done when that is durable.
    Seal {
        #[serde(with = "pack_names")]
        packs: Vec<PackId>,
    },
    /// Rewrite a clone so that it no longer depends on its origin (R13).
    Detach,
    Restore(RestoreInPlace),
    /// Close and release a volume that is not in use there. Void for any other claim (R31).
    HandOver {
        claim: ClaimId,
    },
    /// Say whether the volume is open there.
    Ping,
}

impl OwnerRequest {
    /// For messages.
    pub(super) fn describe(&self, dataset: &str) -> String {
        match self {
            Self::Checkpoint { .. } => format!("snapshot of volume {dataset}"),
            Self::Seal { .. } => format!("sealing of packs of volume {dataset}"),
            Self::Detach => format!("detaching of volume {dataset}"),
            Self::Restore(_) => format!("restore into volume {dataset}"),
            Self::HandOver { .. } => format!("hand-over of volume {dataset}"),
            Self::Ping => format!("volume {dataset}"),
        }
    }

    /// Returns whether it takes minutes, so that an owner starts it and goes on with other
    /// requests.
    pub(super) fn is_long(&self) -> bool {
        matches!(self, Self::Detach | Self::Restore(_))
    }

    /// Returns whether the caller waits for the end of a long request; otherwise it gets the result
    /// when it makes the request again.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Self::Restore(_))
    }

    /// Returns whether doing it late or twice has the same effect as doing it once. A restore puts
    /// old files over those that were written since.
    pub(super) fn is_repeatable(&self) -> bool {
        !matches!(self, Self::Restore(_))
    }
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::control) enum OwnerReply {
    Done,
    Checkpoint(Checkpointed),
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
