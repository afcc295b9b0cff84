//! Points in time, as file systems keep them.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970-01-01T00:00:00Z, negative before. Covers the years 1678 to 2262; NFSv3
/// itself carries 1970 to 2106 (RFC 1813 §2.5, nfstime3).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const MAX: Self = Self(i64::MAX);

    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// From whole seconds and nanoseconds below one second; saturates at the ends of the range.
    pub fn from_parts(secs: i64, nanos: u32) -> Self {
        Self(secs.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos)))
    }

    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    pub const fn subsec_nanos(self) -> u32 {
        self.0.rem_euclid(1_000_000_000) as u32
    }

    /// The time of day in UTC, to the second, as RFC 3339 writes it; 1970 for anything earlier.
    pub fn rfc3339(self) -> String {
        humantime::format_rfc3339_seconds(SystemTime::from(self.max(Self(0)))).to_string()
    }

    /// Time since an earlier one; zero if it is a later one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub fn saturating_add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(at: SystemTime) -> Self {
        let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
        match at.duration_since(UNIX_EPOCH) {
            Ok(after) => Self(nanos(after)),
            Err(before) => Self(-nanos(before.duration())),
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(at: Timestamp) -> Self {
        if at.0 >= 0 {
            UNIX_EPOCH + Duration::from_nanos(at.0.unsigned_abs())
        } else {
            UNIX_EPOCH - Duration::from_nanos(at.0.unsigned_abs())
        }
    }
}

/// The machine's clock as it tells the time of day: it may jump, forward and back. A test sets it
/// forward or back.
#[derive(Clone, Debug, Default)]
pub struct WallClock {
    ahead_nanos: Arc<AtomicI64>,
}

impl WallClock {
    pub fn now(&self) -> Timestamp {
        Timestamp(Timestamp::now().0.saturating_add(self.ahead_nanos.load(Ordering::Relaxed)))
    }

    /// Sets it so far ahead of the machine's clock; negative: behind. For tests.
    pub fn set_ahead(&self, nanos: i64) {
        self.ahead_nanos.store(nanos, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_before_the_epoch_round_towards_the_past() {
        let at = Timestamp::from_nanos(-1);
        assert_eq!((at.secs(), at.subsec_nanos()), (-1, 999_999_999));
        assert_eq!(Timestamp::from_parts(at.secs(), at.subsec_nanos()), at);
        assert_eq!(Timestamp::from(SystemTime::from(at)), at);
    }
}
