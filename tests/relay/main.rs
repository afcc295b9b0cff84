//! One volume on several nodes: one owns it, and the others relay their calls to it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cost;
mod cut;
#[path = "../csi/driver.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod driver;
mod following;
mod kernel;
mod moves;
mod node;
mod refused;
mod requests;
#[path = "../support/setup.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod setup;
mod sharing;
#[path = "../nfs/wire.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod wire;
