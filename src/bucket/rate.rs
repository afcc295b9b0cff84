//! The transfer rate of bodies. A body gets the time that it needs at this rate
//! ([`super::limits`]), so that even on a slow link every body completes: when an attempt timed out
//! although the store answers, the rate is lowered, and large bodies are sent one at a time until
//! they are fast again. The rate is remembered, so that the next body has enough time at once.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Smallest body that is used to measure the rate, and that takes turns with others on a slow link.
const LARGE: u64 = 1 << 20;
/// The slowest link on which large bodies end: 128 kbit/s.
const SLOWEST: u64 = 16 << 10;
/// Factor by which the rate is lowered after an attempt that timed out.
const SLOWER: u64 = 4;

#[derive(Debug)]
pub(super) struct Rate {
    /// Bytes per second, unless measured to be slower.
    usual: u64,
    now: Mutex<u64>,
    turns: Semaphore,
}

impl Rate {
    pub fn new(usual: u64) -> Self {
        let usual = usual.max(1);
        Self { usual, now: Mutex::new(usual), turns: Semaphore::new(1) }
    }

    pub fn is_large(bytes: u64) -> bool {
        bytes >= LARGE
    }

    /// Bytes per second.
    pub fn now(&self) -> u64 {
        *self.now.lock()
    }

    /// The time-out of a body of this size.
    pub fn time(&self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / self.now())
    }

    /// Waits for the turn of a large body on a slow link.
    pub async fn turn(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        if !Self::is_large(bytes) || self.now() >= self.usual {
            return None;
        }
        self.turns.acquire().await.ok()
    }

    /// Lowers the rate after a body timed out at `rate` although the store answers. `false`: the
    /// rate is at its minimum already.
    pub fn was_too_slow(&self, rate: u64) -> bool {
        let mut now = self.now.lock();
        if *now < rate {
            // Another body has lowered the rate meanwhile.
            return true;
        }
        let slower = (rate / SLOWER).max(SLOWEST.min(self.usual));
        let changed = slower < *now;
        *now = slower;
        changed
    }

    /// Updates the rate after a transfer.
    pub fn moved(&self, bytes: u64, took: Duration) {
        if !Self::is_large(bytes) {
            return;
        }
        let seen =
            u64::try_from(u128::from(bytes) * 1000 / took.as_millis().max(1)).unwrap_or(u64::MAX);
        let mut now = self.now.lock();
        // The next one may be half as fast.
        *now = (*now).max(seen / 2).min(self.usual);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_is_seen() {
        let rate = Rate::new(1 << 20);
        assert_eq!(rate.time(16 << 20), Duration::from_secs(16));
        // Two bodies that timed out together.
        assert!(rate.was_too_slow(1 << 20) && rate.was_too_slow(1 << 20));
        assert_eq!(rate.now(), 256 << 10);
        rate.moved(1000, Duration::from_nanos(1));
        assert_eq!(rate.now(), 256 << 10, "what is small says nothing");
        rate.moved(16 << 20, Duration::from_secs(16));
        assert_eq!(rate.now(), 512 << 10);
        rate.moved(16 << 20, Duration::from_secs(60));
        assert_eq!(rate.now(), 512 << 10);
        rate.moved(16 << 20, Duration::from_secs(1));
        assert_eq!(rate.now(), 1 << 20);
        let mut steps = 0;
        while rate.was_too_slow(rate.now()) {
            steps += 1;
        }
        assert_eq!((steps, rate.now()), (3, SLOWEST));
        rate.moved(16 << 20, Duration::ZERO);
        assert_eq!(rate.now(), 1 << 20);
    }

    #[tokio::test]
    async fn large_bodies_take_turns_on_a_slow_link() {
        let rate = Rate::new(1 << 20);
        assert!(rate.turn(16 << 20).await.is_none(), "not on a quick one");
        rate.was_too_slow(1 << 20);
        let first = rate.turn(16 << 20).await;
        assert!(first.is_some() && rate.turn(1000).await.is_none());
        assert!(
            tokio::time::timeout(Duration::from_millis(20), rate.turn(16 << 20)).await.is_err()
        );
        drop(first);
        assert!(rate.turn(16 << 20).await.is_some());
    }
}
