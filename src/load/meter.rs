//! Times of many operations.

use std::time::{Duration, Instant};

/// Samples kept; later ones only count.
const SAMPLES_MAX: usize = 8 << 20;

/// The latencies of a workload's operations.
#[derive(Clone, Debug)]
pub struct Meter {
    started: Instant,
    micros: Vec<u32>,
    pub operations: u64,
}

impl Default for Meter {
    fn default() -> Self {
        Self { started: Instant::now(), micros: Vec::new(), operations: 0 }
    }
}

impl Meter {
    pub fn add(&mut self, took: Duration) {
        self.operations += 1;
        if self.micros.len() < SAMPLES_MAX {
            self.micros.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.operations += other.operations;
        self.micros.extend(other.micros);
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The time that this many per mille of the operations stayed below.
    pub fn quantile(&mut self, per_mille: usize) -> Duration {
        self.micros.sort_unstable();
        let at = (self.micros.len().saturating_sub(1) * per_mille + 500) / 1000;
        Duration::from_micros(self.micros.get(at).copied().unwrap_or(0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_include_all_callers() {
        let mut all = Meter::default();
        assert_eq!(all.quantile(500), Duration::ZERO);
        for caller in 0..2 {
            let mut meter = Meter::default();
            for i in 0..50u64 {
                meter.add(Duration::from_micros(i * 2 + caller));
            }
            all.merge(meter);
        }
        assert_eq!(all.operations, 100);
        assert_eq!(all.quantile(500), Duration::from_micros(50));
        assert_eq!(all.quantile(990), Duration::from_micros(98));
        assert_eq!(all.quantile(1000), Duration::from_micros(99));
    }
}
