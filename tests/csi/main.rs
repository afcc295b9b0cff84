//! The CSI services as kubelet and the sidecars call them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bad_input;
mod ephemeral;
mod exported;
mod groups;
mod handover;
mod mounting;
mod moving;
mod node;
mod registration;
mod restart;
mod roles;
mod sizes;
mod snapshots;
mod stale;
#[path = "../support/mod.rs"]
mod support;
mod volumes;
mod waiting;
