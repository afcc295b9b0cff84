//! Leases (R26, R27): one node answers for a dataset, even when that node cannot be reached.
//!
//! ```text
//! owner   ──h1──────h2──────h3─ ─ ─ ×                 (dies, or is cut off)
//!                           ├─ lease − margin ─┤ answers nothing
//! taker           looks: h3 ├──────── lease ────────┤ no change ─▶ swaps the record, opens, fences
//! ```
//! Nouns: a **heartbeat** is an object that a node session writes under a growing number; an
//! **ownership** is an owner's right to answer for one dataset: it **expires** with the lease when
//! no renewal succeeded in time, is **reacquired** by claiming the record again, and **ends** when
//! another takes the dataset or the claim is revoked; the **generation** of a lease counts how
//! often it began, or began again after it had expired; a **watch** follows an owner's heartbeats
//! for whoever wants the dataset; an **expired lease** is its finding that the owner must have
//! stopped answering; a **revocation** tells an owner that may be alive to give a dataset up. The
//! last two are about one claim, and void for any other (R31).
//!
//! Why it is safe. Time is each machine's own, from CLOCK_BOOTTIME, which goes on while a machine
//! sleeps or a guest is paused: no clock of another is believed, only that all run at about the
//! same rate (the margin is a sixth of the lease).
//! - An owner answers until `lease − margin` after the moment *before it sent* its last successful
//!   renewal. Whoever saw that renewal's heartbeat as the newest, and still does in a look *sent* a
//!   whole lease later, knows that no later one had landed by then, so that the owner's lease had
//!   expired.
//! - An owner whose lease has expired may reach the store again. It answers nothing until it has
//!   claimed the dataset again, under another id ([`crate::catalog::Owner::claim`]). A taker swaps
//!   the claim that it judged: whichever of the two comes first, the other one detects it.
//! - A revocation is in the owner's own folder, which each renewal lists after its heartbeat is
//!   written, and before the renewal counts. So a lease after the revocation was seen, the owner
//!   has read it, or its lease has expired.
//! - Whatever clocks do, the writer epoch fences: nothing that an owner writes after a take-over
//!   reaches the dataset.
//!
//! Cost: while volumes of a pool are open in a process, one PUT, one LIST and one DELETE in a third
//! of a lease (15 s): 240 of each an hour, whatever the number of volumes. None while no volume is
//! open. Whoever wants a dataset lists the owner's folder every two seconds.
//!
//! A crash leaves one or two heartbeats, which the collector removes when they are a day old; and
//! possibly a revocation of a claim that has ended.

mod clock;
mod ownership;
mod renewer;
mod watch;

pub use clock::{BootClock, Clock};
pub use ownership::Ownership;
pub(super) use ownership::{LeaseGuard, OwnershipEnd};
pub(super) use renewer::LeaseRenewer;
#[cfg(test)]
pub(super) use watch::Observed;
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

    /// The time before its lease expires at which an owner stops: for the time between the check
    /// and the answer, and for clocks that run at different rates.
    fn margin(&self) -> Duration {
        self.lease / 6
    }

    /// From one renewal to the next: two may fail before calls wait.
    pub fn interval(&self) -> Duration {
        self.lease / 3
    }

    /// The time limit of one renewal; whatever it writes later does not count.
    fn renewal_limit(&self) -> Duration {
        self.lease / 6
    }

    /// Between attempts of a renewal that failed.
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
