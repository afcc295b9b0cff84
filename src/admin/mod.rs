//! The administration edge: what people and scripts reach beside the command line, over HTTP.
//!
//! - [`auth`]: who may do what. [`access`]: from a request to its caller.
//! - [`listener`]: connections and their limits.
//! - [`grpc`]: the interface for programs, and [`Client`] its client.
//! - [`rest`]: the interface in JSON. [`web`]: the page that stands on it.
//!
//! Requests become calls of the use cases of `control`; only who may ask is decided here.
//! Nothing of it is kept on a disk or in the bucket: a crash ends sessions and requests in
//! progress.

pub mod access;
pub mod auth;
mod client;
mod config;
pub mod grpc;
pub mod listener;
mod paced;
mod problem;
pub mod rest;
mod state;
mod strangers;
mod watch;
mod web;

pub use client::{Authorized, Client, ClientError, Reading, RootName, Token};
pub use config::AdminConfig;
pub use problem::Problem;
pub use state::{Admin, audited};
