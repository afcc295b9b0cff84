//! Decides when the next flush begins (R17).
//!
//! One flush is in flight at a time, and callers that want durability meanwhile share the next.
//! Without more, loops that each wait for their own flush fall into two groups that take turns, and
//! each of them waits for two flushes. So a flush waits a moment for the expected callers: all that
//! were waiting when the last flush ended, including those it answered, because they are the ones
//! that return. The moment is a small fraction of the flush's own time, and a lone caller never
//! waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest wait, as a fraction of the last flush's time …
const SHARE: u32 = 8;
/// … and in absolute terms.
const MOMENT_MAX: Duration = Duration::from_millis(5);
/// Waits up to this long by yielding to the runtime's other tasks; a timer is no finer than a
/// millisecond.
const SPIN: Duration = Duration::from_micros(250);

/// Counts the callers that wait for durability.
#[derive(Default)]
pub(super) struct Demand {
    asked: AtomicU64,
    waiting: AtomicU64,
}

/// Held while waiting.
pub(super) struct Waiting<'a>(&'a Demand);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Demand {
    pub fn ask(&self) -> Waiting<'_> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// The flush task's memory of the last flush.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gather {
    began: Instant,
    asked_by_then: u64,
    ended: Instant,
    /// Longest time after the end for which the next flush may wait for the expected callers.
    moment: Duration,
    expected: u64,
}

impl Gather {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { began: now, asked_by_then: 0, ended: now, moment: Duration::ZERO, expected: 0 }
    }

    /// Waits until the expected callers have arrived, or the time is over.
    pub async fn wait(&self, demand: &Demand) {
        while let Some(left) = self.left(Instant::now(), demand.asked()) {
            if self.ended.elapsed() < SPIN {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(left.min(Duration::from_millis(1))).await;
            }
        }
    }

    fn left(&self, now: Instant, asked: u64) -> Option<Duration> {
        let there = asked.saturating_sub(self.asked_by_then);
        let left = self.moment.saturating_sub(now.saturating_duration_since(self.ended));
        (there < self.expected && !left.is_zero()).then_some(left)
    }

    pub fn begin(&mut self, demand: &Demand) {
        self.began = Instant::now();
        self.asked_by_then = demand.asked();
    }

    /// Called before the callers that the flush answers are woken.
    pub fn end(&mut self, demand: &Demand) {
        self.ended(Instant::now(), demand.waiting());
    }

    fn ended(&mut self, now: Instant, waiting: u64) {
        let took = now.saturating_duration_since(self.began);
        self.ended = now;
        self.moment = (took / SHARE).min(MOMENT_MAX);
        self.expected = waiting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(expected: u64, took: Duration) -> (Gather, Instant) {
        let mut gather = Gather::new();
        gather.asked_by_then = 10;
        let end = gather.began + took;
        gather.ended(end, expected);
        (gather, end)
    }

    #[test]
    fn who_is_alone_is_not_kept() {
        let (gather, end) = after(1, Duration::from_millis(20));
        assert_eq!(gather.left(end, 11), None);
        assert_eq!(Gather::new().left(Instant::now(), 0), None);
    }

    #[test]
    fn those_expected_are_waited_for_a_moment() {
        let took = Duration::from_millis(8);
        let (gather, end) = after(16, took);
        assert_eq!(gather.left(end, 11), Some(took / 8));
        assert_eq!(gather.left(end, 25), Some(took / 8));
        assert_eq!(gather.left(end, 26), None);
        assert_eq!(gather.left(end + took / 8, 11), None);
    }

    #[test]
    fn a_slow_store_is_not_made_slower_by_much() {
        let (gather, end) = after(16, Duration::from_secs(10));
        assert_eq!(gather.left(end, 11), Some(MOMENT_MAX));
    }

    #[tokio::test]
    async fn the_moment_ends_when_nobody_comes() {
        let demand = Demand::default();
        let waiting = (0..3).map(|_| demand.ask()).collect::<Vec<_>>();
        let mut gather = Gather::new();
        gather.begin(&demand);
        gather.end(&demand);
        drop(waiting);
        assert_eq!((demand.asked(), demand.waiting(), gather.expected), (3, 0, 3));
        gather.wait(&demand).await;
    }
}
