//! Clocks of processes under test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use zerofs_csi::volume::{BootClock, Clock};

/// A clock that goes on when it is told to.
#[derive(Default)]
pub struct Driven(AtomicU64);

impl Driven {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for Driven {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

/// A clock that runs this many times faster.
pub struct Fast(pub u32);

impl Clock for Fast {
    fn now(&self) -> Duration {
        BootClock.now() * self.0
    }
}

/// The clock of one run of a machine.
pub struct Booted {
    pub clock: Arc<dyn Clock>,
    pub boot: &'static str,
}

impl Clock for Booted {
    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn boot(&self) -> Option<String> {
        Some(self.boot.to_owned())
    }
}
