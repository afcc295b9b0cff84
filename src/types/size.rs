//! Sizes as people write them.

use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// Bytes: `4096`, `64k`, `20Gi`, `20GiB`, `1.5Ti`. All units are binary, as in ZFS and as `Ki` is
/// in Kubernetes: `64k`, `64K`, `64Ki` and `64KiB` are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Written")]
pub struct ByteSize(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for ByteSize {
    type Error = SizeError;
    fn try_from(written: Written) -> Result<Self, SizeError> {
        match written {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: write bytes, or a number with Ki, Mi, Gi, Ti or Pi, like 20Gi")]
pub struct SizeError(String);

impl FromStr for ByteSize {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let bad = || SizeError(text.chars().take(60).collect());
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = unit.to_ascii_lowercase();
        let factor: u64 = match unit.strip_suffix('b').unwrap_or(&unit) {
            "" => 1,
            "k" | "ki" => 1 << 10,
            "m" | "mi" => 1 << 20,
            "g" | "gi" => 1 << 30,
            "t" | "ti" => 1 << 40,
            "p" | "pi" => 1 << 50,
            _ => return Err(bad()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if fraction.is_empty() || fraction.len() > 6 {
            return Err(bad());
        }
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let part: u64 = fraction.parse().map_err(|_| bad())?;
        let scale = 10u64.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
        let part = u128::from(part) * u128::from(factor) / u128::from(scale);
        let bytes = u128::from(whole) * u128::from(factor) + part;
        u64::try_from(bytes).map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let (mut unit, mut scale) = (0, 1u64);
        while unit + 1 < units.len() && self.0 / scale >= 1024 {
            (unit, scale) = (unit + 1, scale * 1024);
        }
        match self.0 % scale {
            0 => write!(f, "{} {}", self.0 / scale, units[unit]),
            rest => write!(
                f,
                "{}.{} {}",
                self.0 / scale,
                u128::from(rest) * 10 / u128::from(scale),
                units[unit]
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("64k", 65536),
            ("1m", 1 << 20),
            ("20Gi", 20 << 30),
            ("20GiB", 20 << 30),
            ("1.5Ki", 1536),
            ("64K", 65536),
            ("64Ki", 65536),
            ("64KB", 65536),
            ("1G", 1 << 30),
            ("2T", 2 << 40),
            ("8B", 8),
            (" 1Mi ", 1 << 20),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in
            ["", "-1", "1x", "64i", "Gi", "1.Gi", "1..5Gi", "99999999999Pi", "1 Gi", "0x10", "1e3"]
        {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        let shown = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (20 << 30, "20 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ];
        for (bytes, text) in shown {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }
}
