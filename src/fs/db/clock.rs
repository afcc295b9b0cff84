//! The time that a database's writes and tables carry.
//!
//! SlateDB refuses a write, a table or a compaction of an earlier time than the last one that is
//! stored, and stops: a node whose clock is seconds behind that of the last owner, or was set back,
//! could not open the dataset until its clock had caught up. Nothing here depends on that time (no
//! row expires), so a new owner's clock continues from the last owner's where its own is behind.

use chrono::{DateTime, Utc};
use slatedb_common::clock::{DefaultSystemClock, SystemClock, SystemClockTicker};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// This machine's clock, advanced where it is behind.
#[derive(Debug, Default)]
pub(super) struct Clock {
    own: DefaultSystemClock,
    /// Milliseconds. Never decreases, so that no time occurs twice.
    ahead: AtomicU64,
}

impl Clock {
    /// Moves the clock so that it returns no time before `millis` since 1970. `true`: it would
    /// have.
    pub fn go_on_from(&self, millis: i64) -> bool {
        let behind = millis.saturating_sub(self.own.now().timestamp_millis());
        let ahead = u64::try_from(behind).unwrap_or(0);
        self.ahead.fetch_max(ahead, Ordering::Relaxed) < ahead
    }
}

impl SystemClock for Clock {
    fn now(&self) -> DateTime<Utc> {
        self.own.now() + Duration::from_millis(self.ahead.load(Ordering::Relaxed))
    }

    fn sleep<'a>(&'a self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        self.own.sleep(duration)
    }

    fn ticker<'a>(&'a self, duration: Duration) -> SystemClockTicker<'a> {
        SystemClockTicker::new(self, duration)
    }
}
