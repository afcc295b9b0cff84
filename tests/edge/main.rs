//! The NFS edge over the real file system, as one user-space client sees it: calls that come again after a restart or a take-over.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod again;
mod served;
#[path = "../support/volume.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod volume;
#[path = "../nfs/wire.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod wire;

