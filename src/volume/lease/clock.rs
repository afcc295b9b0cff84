//! The clock that leases are measured by.

use std::time::Duration;

/// Time since a moment that stays the same while the process lives. The clock must go on while the
/// machine sleeps.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Duration;

    /// The boot id of the machine, if it has one.
    fn boot(&self) -> Option<String> {
        None
    }
}

/// CLOCK_BOOTTIME: monotonic, and goes on while the machine is suspended or its guest is paused,
/// unlike CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(at.tv_sec).unwrap_or(0), u32::try_from(at.tv_nsec).unwrap_or(0))
    }

    fn boot(&self) -> Option<String> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(boot.trim().to_owned()).filter(|boot| !boot.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let before = BootClock.now();
        std::thread::sleep(Duration::from_millis(2));
        let after = BootClock.now();
        assert!(before > Duration::ZERO && after >= before + Duration::from_millis(2));
    }
}
