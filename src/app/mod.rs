//! Composition: configuration, wiring of the parts into one process, signals, health.
//!
//! A process is a **server** (everything, one machine), a **controller**, or a **node** plugin.
//! Nothing is decided here: this floor knows all others, and hands each the implementations of the
//! small traits it owns.
//!
//! A crash leaves what the parts leave; the state folder holds the journals and the node's name,
//! and one process at a time has it (a lock). The next process may take it over from the one that
//! serves ([`handover`]).

pub mod cluster;
mod collecting;
pub mod config;
mod endpoints;
mod exports;
pub mod handover;
mod health;
mod journals;
mod life;
mod logging;
mod memory;
mod node;
mod parts;
mod pools;
mod processes;
mod runtime;
mod serve;
mod size;
mod state_dir;
mod unlock;

pub use config::Config;
pub use endpoints::NfsEndpoints;
pub use health::ask_ready;
pub use logging::start as start_logging;
pub use memory::bound_allocator;
pub use node::{NodeOptions, node};
pub use parts::Parts;
pub use pools::{Missing, PASSPHRASE_ENV, open as open_pools};
pub use processes::{Ready, controller};
pub use runtime::{keep_private, run, stop_signal};
pub use serve::{ServeOptions, serve};
pub use size::{ByteSize, SizeError};
pub use state_dir::{StateDir, StateFolder};
