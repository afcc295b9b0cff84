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
mod calls;
mod commits;
mod committer;
mod journal;
mod outage;
mod process;
mod random;
mod repair;
mod script;
mod sealed;
mod steps;
mod storage;
#[path = "../support/mod.rs"]
mod support;
