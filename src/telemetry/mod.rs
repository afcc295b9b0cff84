//! Failpoints: the named steps at which tests make the process fail.

mod failpoint;

pub use failpoint::{Failpoints, Injected};
