//! The CSI services as kubelet and the sidecars call them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bad_input;
mod driver;
mod ephemeral;
mod groups;
mod handover;
mod mounting;
mod moving;
mod node;
mod registration;
mod restart;
mod roles;
#[path = "../support/setup.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod setup;
mod sizes;
mod snapshots;
mod stale;
mod volumes;
mod waiting;
#[path = "../nfs/wire.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod wire;
