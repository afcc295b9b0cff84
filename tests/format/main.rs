//! Golden bytes of everything that is kept on the bucket: a change here is a change of the format.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod catalog;
mod rows;
