//! The one place where tests build what they work on. Include it with
//! `#[path = "../support/mod.rs"] mod support;`.
//!
//! - `world`: processes on a pool; `clock`: the time that they see; `run`: the runtimes that they
//!   run in.
//! - `fault`: a store that fails on purpose; `s3`: a server of S3's API that does; `rule`: which
//!   requests do.
//! - `volume`: a dataset without a pool; `files`: calls on files by name; `memfs`: a file system
//!   in memory behind a server.
//! - `driver`: a whole driver in this process; `program`: the program as a process; `nfs`: files
//!   through a client; `wire`: calls as bytes; `kernel`: a client that sends them again
//!   as a kernel does.

#![allow(dead_code, reason = "no test uses all of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

pub mod clock;
pub mod driver;
pub mod fault;
pub mod files;
pub mod kernel;
pub mod memfs;
pub mod nfs;
pub mod program;
mod rule;
pub mod run;
pub mod s3;
pub mod volume;
pub mod wire;
pub mod world;
