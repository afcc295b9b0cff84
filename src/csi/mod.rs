//! The CSI edge: kubelet and the sidecars speak gRPC to it over a unix socket.
//!
//! The edge translates and never decides: a request becomes a checked value of the use cases in
//! `control`, an error class becomes a code in one place ([`status`]). Only CSI itself is handled
//! here: ids, capabilities, capacity ranges, pages.
//!
//! Invariants: messages with secrets cannot be printed (`build.rs` gives them no `Debug`), and none
//! of their content is logged; a use case that has begun runs to its end even when its caller goes
//! away; every list and every number of calls is bounded; nothing of version 1.12 that 1.13 removes
//! (VolumeCondition) is ever set.
//!
//! A crash leaves a socket without a server: the next start replaces it.

mod capability;
mod capacity;
mod controller;
mod convert;
mod ephemeral;
mod group;
mod identity;
mod node;
mod page;
mod parameters;
pub mod proto;
mod registration;
mod server;
mod status;

pub use crate::rpc::Living;
pub use controller::ControllerService;
pub use identity::{IdentityService, IsReady};
pub use node::{NodeInfo, NodeService};
pub use registration::{Registering, Registrar, RegistrationSocket, RegistrationState};
pub use server::{CsiServices, endpoint, serve};

/// The driver's name, unless the configuration says otherwise.
pub const DRIVER: &str = "zerofs.csi.dev";

/// CSI, GetPluginInfo: at most 63 characters, alphanumeric at both ends, with dashes, dots and
/// alphanumerics between.
pub fn is_driver_name(name: &str) -> bool {
    let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let (first, last) = (name.bytes().next(), name.bytes().last());
    let inside = name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.');
    name.len() <= 63 && ends(first) && ends(last) && inside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_names_are_those_of_the_specification() {
        assert!(is_driver_name(DRIVER) && is_driver_name("a") && is_driver_name(&"a".repeat(63)));
        for bad in ["", "-a", "a.", "a/b", "a b", "a_b", "é", &"a".repeat(64)] {
            assert!(!is_driver_name(bad), "{bad:?}");
        }
    }
}
