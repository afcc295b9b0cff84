//! The CSI edge: kubelet and the sidecars speak gRPC to it over a unix socket.
//!
//! It translates and never decides: a request becomes a checked value of the use cases in `control`, an error class
//! becomes a code in one place ([`status`]). What it knows by itself is CSI: ids, capabilities, capacity ranges, pages.
//!
//! Invariants: messages with secrets cannot be printed (`build.rs` gives them no `Debug`), and none of their content is
//! logged; a use case that has begun runs to its end even when its caller goes away; every list and every number of calls
//! is bounded; nothing of version 1.12 that 1.13 removes (VolumeCondition) is ever set.
//!
//! A crash leaves a socket that nobody serves: the next start replaces it.

mod capability;
mod capacity;
mod controller;
mod identity;
mod node;
mod page;
mod parameters;
pub mod proto;
mod registration;
mod server;
mod socket;
mod status;

pub use controller::ControllerService;
pub use identity::IdentityService;
pub use node::{NodeInfo, NodeService};
pub use registration::Registrar;
pub use server::{CsiServices, endpoint, serve};

/// The driver's name, unless the configuration says otherwise.
pub const DRIVER: &str = "zerofs.csi.dev";
