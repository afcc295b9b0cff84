//! Growing pauses between retries.

use std::time::Duration;

/// The least part of a pause that is waited. Many that failed together do not return together.
const JITTER_MIN: f64 = 0.75;

/// Pauses between retries: each twice as long as the one before, up to a longest, less a random
/// part.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// Returns the pause before the next retry.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(rand::random_range(JITTER_MIN..=1.0))
    }

    /// Begins with the shortest pause again.
    pub const fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_begin_again() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(350));
        let mut backoff = Backoff::new(min, max);
        for whole in [100, 200, 350, 350] {
            let whole = Duration::from_millis(whole);
            let pause = backoff.pause();
            assert!((whole.mul_f64(JITTER_MIN)..=whole).contains(&pause), "{pause:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= min);
    }
}
