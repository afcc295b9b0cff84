//! The administration interface, as clients use it: a real server, real connections.

// As the library: an open volume is a deep type.
#![recursion_limit = "256"]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod browsing;
mod command_breaks;
mod command_busy;
mod command_line;
mod command_tasks;
mod files;
mod grpc;
mod grpc_changes;
mod grpc_files;
mod http;
mod limits;
mod login;
mod objects;
mod policies;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod watching;
