//! The NFS edge over real sockets: our server against our client, against broken peers, and against
//! misbehaving back ends.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "../support/memfs.rs"]
mod memfs;

mod faults;
mod limits;
mod load;
mod malformed;
mod procedures;
mod quiesce;
mod support;
mod wire;
