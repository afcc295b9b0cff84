//! Limits of a volume's reads and writes.

use super::{ByteSize, SizeError};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Limits of the READ and WRITE calls of a volume; `None`: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimits {
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_read_bandwidth: Option<u64>,
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_write_bandwidth: Option<u64>,
    /// Calls a second, of both kinds together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_iops: Option<u64>,
}

/// At least one call of the largest size a second: with less, calls would wait beyond a client's
/// patience.
const BANDWIDTH: RangeInclusive<u64> = 1 << 20..=1 << 40;
const IOPS: RangeInclusive<u64> = 10..=10_000_000;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoLimitsError {
    #[error("{name} of {bytes} bytes a second: use 1Mi to 1Ti")]
    Bandwidth { name: &'static str, bytes: u64 },
    #[error("maxIops {0}: use 10 to 10000000")]
    Iops(u64),
}

impl IoLimits {
    /// Checks limits from outside.
    ///
    /// # Errors
    /// One of them is out of its range.
    pub fn check(&self) -> Result<(), IoLimitsError> {
        let bandwidths = [
            ("maxReadBandwidth", self.max_read_bandwidth),
            ("maxWriteBandwidth", self.max_write_bandwidth),
        ];
        for (name, bytes) in bandwidths {
            if let Some(bytes) = bytes.filter(|bytes| !BANDWIDTH.contains(bytes)) {
                return Err(IoLimitsError::Bandwidth { name, bytes });
            }
        }
        match self.max_iops.filter(|iops| !IOPS.contains(iops)) {
            Some(iops) => Err(IoLimitsError::Iops(iops)),
            None => Ok(()),
        }
    }
}

/// A bandwidth as people write it: the bytes of a second (`50Mi`), or `none`.
///
/// # Errors
/// Neither of both.
pub fn parse_bandwidth(text: &str) -> Result<Option<u64>, SizeError> {
    match text {
        "none" => Ok(None),
        text => text.parse::<ByteSize>().map(|size| Some(size.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_bounds() {
        let with = |max_write_bandwidth, max_iops| {
            IoLimits { max_write_bandwidth, max_iops, ..IoLimits::default() }.check()
        };
        with(None, None).unwrap();
        with(Some(1 << 20), Some(10)).unwrap();
        with(Some(1 << 40), Some(10_000_000)).unwrap();
        for bytes in [0, (1 << 20) - 1, (1 << 40) + 1] {
            let refused = with(Some(bytes), None).unwrap_err().to_string();
            assert!(refused.contains("maxWriteBandwidth"), "{refused}");
        }
        for iops in [0, 9, 10_000_001] {
            assert_eq!(with(None, Some(iops)), Err(IoLimitsError::Iops(iops)));
        }
    }

    #[test]
    fn a_bandwidth_is_a_size_or_none() {
        assert_eq!(parse_bandwidth("none"), Ok(None));
        assert_eq!(parse_bandwidth("50Mi"), Ok(Some(50 << 20)));
        for bad in ["", "fast", "-1", "50Mi/s"] {
            assert!(parse_bandwidth(bad).is_err(), "{bad}");
        }
    }
}
