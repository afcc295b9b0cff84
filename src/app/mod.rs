//! Composition: configuration, wiring of the parts into one process, signals, health.
//!
//! A process is a **server** (everything, one machine), a **controller**, or a **node** plugin.
//! Nothing is decided here: this floor knows all others, and hands each the implementations of the
//! small traits that it owns.
//!
//! A crash leaves the remains of the parts; the state folder holds the journals and the node's
//! name, and one process at a time has it locked. The next process may take it over from the one
//! that serves ([`handover`]).

mod admin;
mod browse;
mod channel;
mod cluster;
mod collecting;
pub mod config;
mod controller;
mod credentials;
mod endpoints;
mod ephemeral;
pub mod handover;
mod health;
mod journals;
mod lifecycle;
mod logging;
mod memory;
mod metrics;
mod node;
mod parts;
mod period;
mod policies;
mod pools;
mod process;
mod process_pools;
mod registration;
mod role;
mod runtime;
mod serve;
mod served;
mod state_dir;

pub use admin::{AdminOptions, Exposure};
pub use browse::browse;
pub use config::{ChannelConfig, Config};
pub use controller::controller;
pub use endpoints::NfsEndpoints;
pub use health::ask_ready;
pub use logging::start as start_logging;
pub use memory::bound_allocator;
pub use node::{NodeOptions, node};
pub use parts::Parts;
pub use pools::{Missing, PASSPHRASE_ENV, open as open_pools, secret_in};
pub use process::Ready;
pub use runtime::{keep_private, run, stop_signal};
pub use serve::{ServeOptions, serve};
pub use state_dir::{StateDir, StateFolder};
