//! The NFS edge over real sockets: our server against our client, against broken peers, and against
//! misbehaving back ends.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod edge;
mod faults;
mod limits;
mod load;
mod malformed;
mod procedures;
mod quiesce;
#[path = "../support/mod.rs"]
mod support;
