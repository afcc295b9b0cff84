//! Snapshot policies: snapshots by a schedule, and which of them stay.
//!
//! ```text
//!  policies of the pool ─▶ agenda (pure): what is due? ─▶ claim ─▶ snapshot ─▶ retention (pure)
//!                              ▲                                                     │
//!                              └── every slot up to now is done ◀── the rest is deleted
//! ```
//!
//! Nouns: a **slot** is a time of a schedule; a snapshot of a policy carries the slot that it was
//! made for. A **rule** keeps some of the snapshots of a policy ([`retention`]). The **run claim**
//! says which process runs the policies of a pool, and up to when all slots are done ([`claim`]).
//! A **hold** is a tag that keeps a snapshot from being deleted.
//!
//! Invariants:
//! - A slot makes one snapshot, and of several that were missed only the newest makes one: its name
//!   is a function of the slot, so that whoever does it again finds it made.
//! - A policy deletes only what a policy made, never the newest that is ready, never what is held
//!   or cloned, and nothing for 24 hours after it was changed. What it deletes is looked at again
//!   by the compare-and-swap that deletes it.
//! - Age counts from the newest ready snapshot, and time in which slots were missed does not count:
//!   neither an outage nor a clock that jumps ahead expires anything.
//! - One process runs the policies of a pool at a time. Correctness does not depend on it: two
//!   would make the same snapshots and delete the same.
//! - An idle process lists the policies once in [`REFRESH`], and nothing else ([`runner`]).
//!
//! A crash leaves an intent of a snapshot, which the next run of the slot finishes, and a claim,
//! which expires.
//!
//! Deleting here is deleting as a caller does: the collector frees the space.

mod admin;
mod agenda;
mod claim;
mod duration;
mod retention;
mod rules;
mod runner;
mod schedule;
mod simulate;
mod slot_name;
#[cfg(test)]
mod tests;

pub use admin::{Ran, ShownPolicy};
pub use agenda::PolicyCounts;
pub use retention::{Reason, Verdict};
pub use rules::{DEFAULT_PREFIX, parse_keep, show_keep};
pub use runner::{PolicyRunner, PolicyStatus, REFRESH, RunOutcome};
pub use simulate::{SIMULATED_DAYS_MAX, Simulated, SimulatedSnapshot};

use std::time::Duration;

/// Clocks of two machines, or of one before and after it was set, that differ by no more than this
/// agree. A time further ahead was written by a clock that was wrong.
const CLOCK_SKEW: Duration = Duration::from_secs(600);
