//! Decides when an owner polls its mailbox beside the renewals of its lease.
//!
//! - After a write, once: snapshots are requested of volumes in use, whose own requests outnumber
//!   this one. An owner that writes every two seconds answers within two.
//! - For half a minute after a volume was opened or a request was there, at every interval: one
//!   request is often followed by another.
//!
//! An idle volume meets neither condition, and costs nothing here.

use crate::types::{DatasetId, PoolId};
use crate::volume::Volumes;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Time for which further requests are expected.
const EXPECTED: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Polling(HashMap<PoolId, PoolActivity>);

#[derive(Default)]
struct PoolActivity {
    /// The number of changes of each open volume at the last poll.
    changes: HashMap<DatasetId, u64>,
    /// Until when more is expected.
    expected: Option<Instant>,
}

impl Polling {
    /// Returns whether the mailbox in a pool is due to be polled. Makes no request.
    pub fn is_due(&mut self, pool: PoolId, volumes: &Volumes) -> bool {
        let open = volumes.list().into_iter().filter(|volume| volume.pool == pool);
        let changes = open.map(|volume| (volume.dataset.id(), volume.fs.changes())).collect();
        self.0.entry(pool).or_default().is_due(changes, Instant::now())
    }

    pub fn expect_more(&mut self, pool: PoolId) {
        self.0.entry(pool).or_default().expected = Some(Instant::now() + EXPECTED);
    }
}

impl PoolActivity {
    fn is_due(&mut self, changes: HashMap<DatasetId, u64>, now: Instant) -> bool {
        if changes.keys().any(|volume| !self.changes.contains_key(volume)) {
            self.expected = Some(now + EXPECTED);
        }
        let written = changes.iter().any(|(volume, now)| self.changes.get(volume) != Some(now));
        self.changes = changes;
        !self.changes.is_empty() && (written || self.expected.is_some_and(|until| now < until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Incarnation, NameKey};

    #[test]
    fn an_idle_volume_is_not_polled_for() {
        let volume = |n| DatasetId {
            key: NameKey::from_bytes([n; 16]),
            incarnation: Incarnation::from_bytes([n; 16]),
        };
        let (mut activity, start) = (PoolActivity::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        let mut due = |open: &[(u8, u64)], secs| {
            activity.is_due(open.iter().map(|(n, at)| (volume(*n), *at)).collect(), at(secs))
        };
        assert!(!due(&[], 0));
        assert!(due(&[(1, 5)], 0) && due(&[(1, 5)], 29), "it was opened just now");
        assert!(!due(&[(1, 5)], 30) && !due(&[(1, 5)], 3600), "it is idle");
        assert!(due(&[(1, 6)], 3601), "it was written");
        assert!(!due(&[(1, 6)], 3602));
        assert!(due(&[(1, 6), (2, 0)], 3700) && due(&[(1, 6), (2, 0)], 3729), "another was opened");
        assert!(!due(&[(1, 6)], 3731) && !due(&[], 3732));
    }
}
