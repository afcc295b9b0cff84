//! Limits a rate of bytes.

use std::time::Duration;
use tokio::time::Instant;

/// Limits a rate to a number of bytes per second since it was made, or not at all.
pub(super) struct Pace {
    rate: Option<u64>,
    begun: Instant,
    bytes: u64,
}

impl Pace {
    /// `rate`: none, or 0: no limit.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), begun: Instant::now(), bytes: 0 }
    }

    /// Accounts for `bytes`, and waits until they are due.
    pub async fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        if let Some(rate) = self.rate {
            let due = Duration::try_from_secs_f64(self.bytes as f64 / rate as f64)
                .unwrap_or(Duration::MAX);
            tokio::time::sleep(due.saturating_sub(self.begun.elapsed())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_takes_as_long_as_the_rate_says_and_no_longer_for_what_is_slow_by_itself() {
        let began = Instant::now();
        let mut pace = Pace::new(Some(1000));
        for _ in 0..3 {
            pace.spend(500).await;
        }
        assert!((1500..=1510).contains(&began.elapsed().as_millis()));
        tokio::time::sleep(Duration::from_secs(10)).await;
        pace.spend(500).await;
        assert!(began.elapsed() < Duration::from_millis(11_520), "the time was there");
        for rate in [None, Some(0)] {
            let (now, mut pace) = (Instant::now(), Pace::new(rate));
            pace.spend(u64::MAX).await;
            assert_eq!(now.elapsed(), Duration::ZERO);
        }
    }
}
