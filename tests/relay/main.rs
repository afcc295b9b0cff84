//! One volume on several nodes: one owns it, and the others relay their calls to it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cost;
mod cut;
mod fair;
mod following;
mod moves;
mod node;
mod refused;
mod requests;
mod sharing;
#[path = "../support/mod.rs"]
mod support;
