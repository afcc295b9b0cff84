//! The NFS edge over the real file system, as one user-space client sees it: calls that come again
//! after a restart or a take-over, one file under random use through restarts, and POSIX's rules as
//! a table.
//!
//! `ZEROFS_TEST_SIZE` multiplies the random ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod again;
mod exerciser;
mod limits;
mod owners;
mod posix;
mod refused;
mod served;
mod small_files;
#[path = "../support/mod.rs"]
mod support;
mod times;
