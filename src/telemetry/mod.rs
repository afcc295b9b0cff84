//! What the process tells of itself: logging, and the named steps at which tests make it fail.

mod failpoint;

pub use failpoint::{Failpoints, Injected};
