//! ctimes (R8).
//!
//! The NFSv3 client's change attribute is ctime: one that stands still or goes back means stale caches for ever. So ctime grows with every
//! change of an object, also when the clock goes back, and also when the object's owner dies: no ctime above the ceiling in the durable `S`
//! was ever shown, and the next owner starts above it. A clean close lowers the ceiling to what was shown; after a crash ctimes run ahead of
//! the clock by at most [`WINDOW`].

use crate::fs::FsError;
use crate::types::Timestamp;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// How far a ceiling is ahead of the clock when it is raised. Raising is free while there are writes: a new ceiling rides in any `S`.
const WINDOW: Duration = Duration::from_secs(300);
/// An operation may take this long between [`Clock::is_covered`] and the ctime that it asks for.
const MARGIN: Duration = Duration::from_secs(10);

pub(super) struct Clock {
    /// The last owner may have shown anything up to here.
    floor: i64,
    /// The ceiling in the durable `S`.
    durable: AtomicI64,
    /// The ceiling in the newest `S`.
    ceiling: AtomicI64,
    shown: AtomicI64,
    now: fn() -> Timestamp,
}

impl Clock {
    /// Above a ceiling found in `S`. Shows nothing before a raised ceiling is durable.
    pub fn above(floor: Timestamp) -> Self {
        Self::with(floor, Timestamp::now)
    }

    fn with(floor: Timestamp, now: fn() -> Timestamp) -> Self {
        let nanos = floor.as_nanos();
        let at = || AtomicI64::new(nanos);
        Self { floor: nanos, durable: at(), ceiling: at(), shown: at(), now }
    }

    /// Whether a ctime of now may be shown.
    pub fn is_covered(&self) -> bool {
        let now = (self.now)().as_nanos().max(self.floor);
        self.durable.load(Ordering::Acquire) > now.saturating_add(nanos(MARGIN))
    }

    /// The ceiling for an `S` that is being written, raised if half the window is used up.
    pub fn ceiling(&self) -> Timestamp {
        let now = (self.now)().as_nanos().max(self.floor);
        let ceiling = self.ceiling.load(Ordering::Relaxed);
        if ceiling.saturating_sub(now) < nanos(WINDOW) / 2 {
            self.ceiling.store(now.saturating_add(nanos(WINDOW)).max(ceiling), Ordering::Relaxed);
        }
        Timestamp::from_nanos(self.ceiling.load(Ordering::Relaxed))
    }

    /// An `S` with this ceiling is in the store.
    pub fn raised(&self, ceiling: Timestamp) {
        self.durable.fetch_max(ceiling.as_nanos(), Ordering::AcqRel);
    }

    /// See [`super::Committer::ctime`]. Where the ceiling is too low for now, which a caller that awaited `ready` never sees, the time shown
    /// stays behind the clock, and grows all the same.
    pub fn ctime(&self, last: Timestamp) -> Result<Timestamp, FsError> {
        let least = last.as_nanos().max(self.floor).saturating_add(1);
        let ceiling = self.durable.load(Ordering::Acquire);
        if least > ceiling {
            return Err(FsError::Busy("the time ceiling is being raised"));
        }
        let ctime = (self.now)().as_nanos().clamp(least, ceiling);
        self.shown.fetch_max(ctime, Ordering::AcqRel);
        Ok(Timestamp::from_nanos(ctime))
    }

    /// The highest ctime that was shown, for the last `S` of a clean close.
    pub fn shown(&self) -> Timestamp {
        Timestamp::from_nanos(self.shown.load(Ordering::Acquire))
    }
}

fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at_1000() -> Timestamp {
        Timestamp::from_nanos(1000 * SECOND)
    }

    #[test]
    fn nothing_is_shown_before_the_ceiling_is_durable() {
        let clock = Clock::with(Timestamp::from_nanos(0), at_1000);
        assert!(!clock.is_covered());
        assert!(clock.ctime(Timestamp::from_nanos(5)).is_err());
        let ceiling = clock.ceiling();
        assert_eq!(ceiling.as_nanos(), 1300 * SECOND);
        assert!(clock.ctime(Timestamp::from_nanos(5)).is_err());
        clock.raised(ceiling);
        assert!(clock.is_covered());
        assert_eq!(clock.ctime(Timestamp::from_nanos(5)).unwrap(), at_1000());
    }

    #[test]
    fn ctime_grows_when_the_clock_does_not() {
        let clock = Clock::with(Timestamp::from_nanos(0), at_1000);
        clock.raised(clock.ceiling());
        let first = clock.ctime(at_1000()).unwrap();
        let second = clock.ctime(first).unwrap();
        assert_eq!((first.as_nanos(), second.as_nanos()), (1000 * SECOND + 1, 1000 * SECOND + 2));
        assert_eq!(clock.shown(), second);
    }

    #[test]
    fn a_new_owner_starts_above_the_old_ceiling() {
        let clock = Clock::with(Timestamp::from_nanos(5000 * SECOND), at_1000);
        clock.raised(clock.ceiling());
        assert_eq!(clock.ctime(Timestamp::from_nanos(1)).unwrap().as_nanos(), 5000 * SECOND + 1);
    }

    #[test]
    fn ctime_never_passes_the_ceiling() {
        let clock = Clock::with(Timestamp::from_nanos(0), at_1000);
        clock.raised(Timestamp::from_nanos(900 * SECOND));
        assert_eq!(clock.ctime(Timestamp::from_nanos(1)).unwrap().as_nanos(), 900 * SECOND);
        assert!(clock.ctime(Timestamp::from_nanos(900 * SECOND)).is_err());
    }
}
