//! Crash tier: death at every named durable step, outages of the store, torn journals, damaged and
//! sealed databases. What was acknowledged is there afterwards, nothing is half done, and the
//! repeated call does.
//!
//! `ZEROFS_TEST_SIZE` (1) scales how many times of each step are met; `CRASH_SEEDS` the random
//! histories of the committer.
// As the library: an open volume is a deep type.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod answers;
mod commits;
mod committer;
#[path = "../support/fault.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod fault;
mod journal;
mod outage;
mod process;
mod random;
mod repair;
#[path = "../support/s3/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod s3;
mod script;
mod sealed;
#[path = "../support/setup.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod setup;
mod steps;
#[path = "../support/volume.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod volume;

fn size() -> u64 {
    std::env::var("ZEROFS_TEST_SIZE").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}
