//! The properties of a dataset, as records hold them.

use super::is_default;
use crate::chunk::Codec;
use crate::types::{IoLimits, SyncMode};
use serde::{Deserialize, Deserializer, Serialize};

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
