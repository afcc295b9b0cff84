//! Leases (R26, R27): one node answers for a dataset, even when that node cannot be reached.
//!
//! ```text
//! owner   ──h1──────h2──────h3─ ─ ─ ×                  (dies, or is cut off)
//!                           ├─ lease − margin ─┤ answers no call
//! taker           looks: h3 ├──────── lease ────────┤ no change ──▶ swaps the record, opens, fences
//! ```
//! Nouns: a **heartbeat** is an object that a node session writes under a number that grows; a
//! **tenure** is an owner's right to answer for one dataset; it **lapses** when no renewal
//! succeeded in time, and is **regained**, or **ends**; a **watch** holds the observations of the
//! owner's heartbeats by a node that wants the dataset; an **expired lease** is its finding that
//! the owner must have stopped answering; a **revocation** tells an owner that may be alive to
//! release a dataset. The last two are about one claim, and void for any other (R31).
//!
//! Why it is safe. Time is each machine's own, from CLOCK_BOOTTIME, which goes on while a machine
//! sleeps or a guest is paused: no other machine's clock is trusted, only that all run at about one
//! rate (the margin is a sixth of the lease).
//! - An owner answers until `lease − margin` after the moment *before it sent* its last successful
//!   renewal. A watcher that saw that renewal's heartbeat as the newest, and still does in a read
//!   *sent* a whole lease later, knows that no later one had landed by then, so that the owner's
//!   time was up.
//! - An owner whose time was up may find the store again. It answers nothing until it has claimed
//!   the dataset again, under another id ([`crate::catalog::Owner::claim`]). A taker swaps the
//!   claim that it judged: whichever of the two comes first, the other one detects it.
//! - A revocation is in the owner's own folder, which each renewal lists after its heartbeat is
//!   written, and before the renewal counts. So a lease after the revocation was seen, the owner
//!   has read it, or its time was up.
//! - Whatever clocks do, the writer epoch fences: writes of an owner that was taken over never
//!   reach the dataset.
//!
//! Cost: while volumes of a pool are open in a process, one PUT, one LIST and one DELETE in a third
//! of a lease (15 s): 240 of each an hour, whatever the number of volumes. None while no volume is
//! open. A node that wants a dataset lists the owner's folder every two seconds.
//!
//! A crash leaves one heartbeat, or two, which the collector removes when they are a day old; and
//! possibly a revocation of a claim that has ended.

mod clock;
mod keeper;
mod tenure;
mod watch;

pub use clock::{BootClock, Clock};
pub(super) use keeper::Keeper;
pub use tenure::Tenure;
pub(super) use tenure::{End, Held};
#[cfg(test)]
pub(super) use watch::Seen;
pub use watch::{ExpiredLease, Verdict, Watch};

use std::sync::Arc;
use std::time::Duration;

/// The duration of a process's leases, and their clock.
#[derive(Clone)]
pub struct LeaseSettings {
    pub lease: Duration,
    pub clock: Arc<dyn Clock>,
}

impl LeaseSettings {
    /// Long enough that the store may be unreachable for 20 s before calls wait, short enough that
    /// NodeStage can wait for it inside one call of kubelet's (two minutes).
    pub const LEASE: Duration = Duration::from_secs(45);

    /// The time before the end of its lease at which an owner stops: it covers the time between the
    /// check and the answer, and clocks that run at different rates.
    fn margin(&self) -> Duration {
        self.lease / 6
    }

    /// Interval of renewals: two may fail before calls are held.
    pub fn interval(&self) -> Duration {
        self.lease / 3
    }

    /// Time limit of one renewal; anything it still writes later does not count.
    fn renewal_limit(&self) -> Duration {
        self.lease / 6
    }

    /// Pause between retries of a failed renewal.
    fn retry(&self) -> Duration {
        (self.lease / 30).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self { lease: Self::LEASE, clock: Arc::new(BootClock) }
    }
}
