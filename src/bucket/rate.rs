//! The transfer rate of bodies. A body of some size has the time that it takes at this rate
//! ([`super::limits`]), and no link is so slow that a body never ends: where an attempt ran out of
//! time and the store answers all the same, the rate is taken for lower, and large bodies move one
//! after the other until they are seen to be fast again. It is remembered, so that the next body
//! has its time at once.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// A body that says something about the rate, and takes turns with others on a slow link.
const LARGE: u64 = 1 << 20;
/// The slowest link on which large bodies end: 128 kbit/s.
const SLOWEST: u64 = 16 << 10;
/// By how much it is taken for slower after an attempt that ran out of time.
const SLOWER: u64 = 4;

#[derive(Debug)]
pub(super) struct Rate {
    /// Bytes a second, unless it is seen to be slower.
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

    /// Bytes a second.
    pub fn now(&self) -> u64 {
        *self.now.lock()
    }

    /// The time-out of a body of this size.
    pub fn time(&self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / self.now())
    }

    /// For a large body on a slow link: its turn.
    pub async fn turn(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        if !Self::is_large(bytes) || self.now() >= self.usual {
            return None;
        }
        self.turns.acquire().await.ok()
    }

    /// A body did not end in its time at `rate`, and the store answers. `false`: it is as slow as
    /// it is taken for already.
    pub fn was_too_slow(&self, rate: u64) -> bool {
        let mut now = self.now.lock();
        if *now < rate {
            // Another body was seen to be slow meanwhile.
            return true;
        }
        let slower = (rate / SLOWER).max(SLOWEST.min(self.usual));
        let changed = slower < *now;
        *now = slower;
        changed
    }

    /// A body moved.
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
        // Two bodies that ran out of time together.
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
