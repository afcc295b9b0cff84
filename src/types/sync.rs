//! The dataset property `sync`.

use std::fmt;
use std::str::FromStr;

/// The durability of acknowledged changes, in ZFS's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncMode {
    #[default]
    Standard,
    Always,
    Disabled,
}

impl SyncMode {
    pub const ALL: [Self; 3] = [Self::Standard, Self::Always, Self::Disabled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Always => "always",
            Self::Disabled => "disabled",
        }
    }
}

impl fmt::Display for SyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use standard, always or disabled")]
pub struct SyncModeError;

impl FromStr for SyncMode {
    type Err = SyncModeError;

    fn from_str(text: &str) -> Result<Self, SyncModeError> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or(SyncModeError)
    }
}
