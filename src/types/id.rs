//! Identifiers. 128-bit ones are written as 26 characters of lower-case base 32 (RFC 4648 §6, no
//! padding), short enough that a CSI snapshot handle, which holds four of them, stays within 128
//! bytes.

use data_encoding::Encoding;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = data_encoding::Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().expect("a constant specification")
});

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}")]
pub struct IdError {
    what: &'static str,
    text: String,
}

impl IdError {
    fn new(what: &'static str, text: &str) -> Self {
        // The quoted part is bounded: the text may come from anywhere.
        Self { what, text: text.chars().take(160).collect() }
    }
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// A fresh random value, never reused.
            pub fn random() -> Self {
                Self(rand::random())
            }

            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE32.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let bytes = BASE32.decode(text.as_bytes()).ok();
                let bytes = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
                bytes.map(Self).ok_or_else(|| IdError::new($what, text))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

id128! {
    /// A pool's identity, fixed when it is created.
    PoolId, "pool id"
}
id128! {
    /// A pure function of a dataset's or snapshot's name: it finds a record, of whichever
    /// incarnation (R2). A renamed dataset keeps the key of its first name.
    NameKey, "name key"
}
id128! {
    /// The identity of one dataset or snapshot among those of its name: random, never reused (R2).
    Incarnation, "incarnation"
}
id128! {
    /// A dataset and everything cloned from it: the incarnation of the first of them.
    FamilyId, "family id"
}
id128! {
    /// One run of a node plugin or server process.
    SessionId, "session id"
}
id128! {
    /// One claim of a dataset: the time for which one session owns it, from the version of the
    /// record that says so (R31). Never reused.
    ClaimId, "claim id"
}
id128! {
    /// The identity of a folder of journals, whichever process uses it: a restarted process finds
    /// the journals of the previous run (R16).
    JournalDirId, "journal directory id"
}

impl NameKey {
    /// The key of a name of a kind (`dataset`, `snapshot`, …). Names of different kinds never share
    /// a key.
    pub fn of(kind: &str, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("zerofs-csi 2026-11 name key");
        hasher.update(kind.as_bytes()).update(&[0]).update(name.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(key)
    }
}

impl From<Incarnation> for FamilyId {
    fn from(first: Incarnation) -> Self {
        Self(first.0)
    }
}

macro_rules! pair_text {
    ($name:ident, $what:literal, $separator:literal, $a:ident: $ta:ty, $b:ident: $tb:ty) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{}", $separator, "{}"), self.$a, self.$b)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let bad = || IdError::new($what, text);
                let (a, b) = text.split_once($separator).ok_or_else(bad)?;
                Ok(Self { $a: a.parse().map_err(|_| bad())?, $b: b.parse().map_err(|_| bad())? })
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

/// A dataset: the key of its record, and the incarnation of that name (R2). Text form
/// `<key>-<incarnation>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatasetId {
    pub key: NameKey,
    pub incarnation: Incarnation,
}
pair_text!(DatasetId, "dataset id", "-", key: NameKey, incarnation: Incarnation);

/// A snapshot of one incarnation of a dataset. Text form `<dataset
/// incarnation>:<key>-<incarnation>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId {
    pub dataset: Incarnation,
    pub snapshot: DatasetId,
}
pair_text!(SnapshotId, "snapshot id", ":", dataset: Incarnation, snapshot: DatasetId);

/// A group snapshot: the key of its name, and the incarnation of that name (R2). Text form
/// `<key>.<incarnation>`, which is no dataset's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupId {
    pub key: NameKey,
    pub incarnation: Incarnation,
}
pair_text!(GroupId, "group snapshot id", ".", key: NameKey, incarnation: Incarnation);

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $what:literal, $field:ident: $t:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            pub pool: PoolId,
            pub $field: $t,
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "v1:{}:{}", self.pool, self.$field)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let bad = || IdError::new($what, text);
                let rest = text.strip_prefix("v1:").ok_or_else(bad)?;
                let (pool, rest) = rest.split_once(':').ok_or_else(bad)?;
                Ok(Self {
                    pool: pool.parse().map_err(|_| bad())?,
                    $field: rest.parse().map_err(|_| bad())?,
                })
            }
        }
    };
}

handle! {
    /// A CSI volume id, `v1:<pool-id>:<dataset-id>`: 83 bytes.
    VolumeHandle, "volume id", dataset: DatasetId
}
handle! {
    /// A CSI snapshot id, `v1:<pool-id>:<snapshot-id>`: 110 bytes.
    SnapshotHandle, "snapshot id", snapshot: SnapshotId
}

handle! {
    /// A CSI group snapshot id, `v1:<pool-id>:<group-id>`: 83 bytes.
    GroupHandle, "group snapshot id", group: GroupId
}

/// The keyed BLAKE3 hash that names a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkHash(pub [u8; 32]);

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// Fences writers of one dataset: SlateDB's writer epoch, growing with every writable open.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An inode number: 44 bits, never reused within an epoch (R7). NFS's fileid is this number, with a
/// snapshot's serial in the 20 bits above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InodeNo(pub u64);

impl InodeNo {
    /// The root directory of every dataset.
    pub const ROOT: Self = Self(1);
    /// The directory of snapshots, `/.snapshots`: no dataset has a row of it.
    pub const SNAPSHOTS: Self = Self((1 << Self::BITS) - 1);
    /// The largest inode number.
    pub const MAX: Self = Self(Self::SNAPSHOTS.0 - 1);
    /// Bits of a number; a snapshot's serial is above them.
    pub const BITS: u32 = 44;

    /// The serial of the snapshot that a fileid is in (0: the live file system), and the number
    /// there.
    pub fn split(self) -> (u32, Self) {
        // 20 bits are left.
        ((self.0 >> Self::BITS) as u32, Self(self.0 & ((1 << Self::BITS) - 1)))
    }

    /// The fileid of this inode in a snapshot; `None` when either does not fit.
    pub fn in_snapshot(self, serial: u32) -> Option<Self> {
        let fits = self <= Self::MAX && (1..=SNAPSHOT_SERIAL_MAX).contains(&serial);
        fits.then(|| Self((u64::from(serial) << Self::BITS) | self.0))
    }
}

/// The largest serial of a snapshot: 20 bits of a fileid hold it, and 0 is the live file system.
pub const SNAPSHOT_SERIAL_MAX: u32 = (1 << 20) - 1;

impl fmt::Display for InodeNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A pack: its creator, the epoch, and its number in the epoch (R9). Sorts in the order of writing
/// for one creator. Text form, also its object's path below the family: `<creator>/<epoch>-<seq>`,
/// the numbers as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackId {
    #[serde(with = "raw_incarnation")]
    pub creator: Incarnation,
    pub epoch: Epoch,
    pub seq: u64,
}

/// In binary rows an incarnation is 16 bytes, not its text.
mod raw_incarnation {
    use super::Incarnation;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(id: &Incarnation, s: S) -> Result<S::Ok, S::Error> {
        id.as_bytes().serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Incarnation, D::Error> {
        <[u8; 16]>::deserialize(d).map(Incarnation::from_bytes)
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}-{:016x}", self.creator, self.epoch.0, self.seq)
    }
}

impl FromStr for PackId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::new("pack id", text);
        let number = |hex: &str| {
            (hex.len() == 16
                && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
            .then(|| u64::from_str_radix(hex, 16).ok())
            .flatten()
        };
        let (creator, rest) = text.split_once('/').ok_or_else(bad)?;
        let (epoch, seq) = rest.split_once('-').ok_or_else(bad)?;
        Ok(Self {
            creator: creator.parse().map_err(|_| bad())?,
            epoch: Epoch(number(epoch).ok_or_else(bad)?),
            seq: number(seq).ok_or_else(bad)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset() -> DatasetId {
        DatasetId {
            key: NameKey::of("dataset", "pvc-1"),
            incarnation: Incarnation::from_bytes([7; 16]),
        }
    }

    #[test]
    fn handles_round_trip_and_fit_csi() {
        let pool = PoolId::from_bytes([255; 16]);
        let volume = VolumeHandle { pool, dataset: dataset() };
        assert_eq!(volume.to_string().parse(), Ok(volume));
        assert_eq!(volume.to_string().len(), 83);
        let id = SnapshotId { dataset: dataset().incarnation, snapshot: dataset() };
        let snapshot = SnapshotHandle { pool, snapshot: id };
        assert_eq!(snapshot.to_string().parse(), Ok(snapshot));
        assert_eq!(snapshot.to_string().len(), 110);
        assert!(snapshot.to_string().parse::<VolumeHandle>().is_err());
        assert!(volume.to_string().parse::<SnapshotHandle>().is_err());
        let DatasetId { key, incarnation } = dataset();
        let group = GroupHandle { pool, group: GroupId { key, incarnation } };
        assert_eq!((group.to_string().parse(), group.to_string().len()), (Ok(group), 83));
        assert!(group.to_string().parse::<VolumeHandle>().is_err());
        assert!(volume.to_string().parse::<GroupHandle>().is_err());
    }

    #[test]
    fn a_foreign_id_is_quoted_back_in_part() {
        let error = "x".repeat(5000).parse::<VolumeHandle>().unwrap_err();
        assert!(error.to_string().len() < 200);
    }

    #[test]
    fn pack_ids_round_trip_and_are_canonical() {
        let pack =
            PackId { creator: Incarnation::from_bytes([1; 16]), epoch: Epoch(3), seq: 0xabc };
        assert_eq!(pack.to_string().parse(), Ok(pack));
        assert!(pack.to_string().to_uppercase().parse::<PackId>().is_err());
        assert!(pack.to_string().replace("-0", "-+").parse::<PackId>().is_err());
    }

    #[test]
    fn a_fileid_holds_serial_and_inode() {
        for (serial, ino) in
            [(1, InodeNo::ROOT), (SNAPSHOT_SERIAL_MAX, InodeNo::MAX), (77, InodeNo(1 << 40))]
        {
            assert_eq!(ino.in_snapshot(serial).map(InodeNo::split), Some((serial, ino)));
        }
        assert_eq!(InodeNo::SNAPSHOTS.split(), (0, InodeNo::SNAPSHOTS));
        assert_eq!(InodeNo::MAX.split(), (0, InodeNo::MAX));
        assert!(
            InodeNo(1).in_snapshot(0).is_none()
                && InodeNo(1).in_snapshot(SNAPSHOT_SERIAL_MAX + 1).is_none()
        );
        assert!(InodeNo::SNAPSHOTS.in_snapshot(1).is_none());
    }

    #[test]
    fn name_keys_depend_on_kind_and_name() {
        assert_eq!(NameKey::of("dataset", "a"), NameKey::of("dataset", "a"));
        assert_ne!(NameKey::of("dataset", "a"), NameKey::of("snapshot", "a"));
        assert_ne!(NameKey::of("dataset", "a"), NameKey::of("dataset", "b"));
    }
}
