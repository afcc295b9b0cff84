//! A new process takes over from the one that serves: real processes on one state folder, with
//! clients at work, and either side failing at each step. The other side of a failing one is played
//! by the test, which knows the protocol only by its bytes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod breaking;
mod expired;
mod load;
mod peer;
mod process;
mod stopped;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;
