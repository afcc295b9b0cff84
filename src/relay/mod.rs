//! Relays of NFS calls between nodes: a shared volume is mounted on many nodes, and one owns it.
//!
//! ```text
//! kernel ──TCP──▶ endpoint ─┬─ this node owns the volume ──socket pair──────▶ server
//!                           ├─ another node owns it ──TLS──▶ its listener ──▶ its server
//!                           └─ nobody is known who does: calls wait
//! ```
//! Nouns: an **endpoint** accepts the kernel's connections to one shared volume; its **route** says
//! who answers their calls; a **relayed connection** passes calls on and replies back, and holds
//! the calls that are **unanswered**; the **channel** is the TLS port on which a node accepts what
//! others relay.
//!
//! Invariants: a relay answers nothing itself. A call is passed on whole, and kept until its reply
//! has arrived whole; whenever the route changes or breaks, all unanswered calls are sent again in
//! their order, and the server recognises those that were carried out before by the client's host
//! ([`ClientHost::Node`](crate::nfs::ClientHost)), their number and their arguments (R20). A reply
//! of a server that has lost the volume is never passed on (R25). MNT is passed on only during our
//! own mount(2) (R23).
//!
//! Limits: calls and bytes unanswered of each connection, their bytes of each volume and of all
//! together (`budget`: a volume whose calls wait takes nothing from others), connections of an
//! endpoint and of a peer, the length of a record, the time of a handshake, and the time for which
//! either side may stall in the middle of a record.
//!
//! Whom a node trusts: a peer proves that it has the private key whose SHA-256 its session has
//! written into the bucket. There is no certificate and no authority: keys are raw (RFC 7250), made
//! at the start of a process and never stored.
//!
//! A crash leaves nothing: both sides see the connection break. Clients' kernels send unanswered
//! calls again.

mod budget;
mod connection;
mod dial;
mod endpoint;
mod hello;
mod identity;
mod listener;
mod outgoing;
mod served;
mod state;
mod unanswered;

pub use budget::RelayBudget;
pub use dial::Dialer;
pub use endpoint::{RelayEndpoint, RelayOptions, RelayPass};
pub use identity::{Identity, IdentityError};
pub use listener::{Found, Listener, OwnedDatasets};
pub use served::{Answers, Served, host_of};

use crate::control::channel::OwnerRoute;
use std::sync::Arc;

/// Who answers the calls of an endpoint.
#[derive(Clone, Default)]
pub enum Route {
    /// Nobody is known: calls wait.
    #[default]
    Held,
    Here(Arc<dyn Answers>),
    Owner(Arc<OwnerRoute>),
}

impl Route {
    /// Returns whether connections on this route may stay as they are on `other`.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Held, Self::Held) => true,
            (Self::Here(one), Self::Here(other)) => Arc::ptr_eq(one, other),
            (Self::Owner(one), Self::Owner(other)) => one == other,
            _ => false,
        }
    }
}
