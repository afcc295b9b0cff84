//! A new process takes over from the one that serves, on the same machine and the same state
//! folder, while that one still serves.
//!
//! ```text
//!  new process                                         process that serves
//!  loads its configuration, opens its pools
//!  Hello: version, role, node, pools      ──────────▶  can this one serve what I serve?
//!                                         ◀──────────  Accepted, or Refused (and serves on)
//!                                                      holds CSI calls; brings everything to the store, and serves on
//!                                                      quiesces every connection; leaves its volumes
//!                                         ◀──────────  Sockets … (listening ones, connections)
//!                                         ◀──────────  Yours, with the state folder unlocked
//!  locks the state folder
//!  Taken                                  ──────────▶  stands by
//!  opens the volumes, serves
//!  Serving                                ──────────▶  ends what is left of its services
//! ```
//!
//! Nouns: a **turn** is the right to serve, and what came with it; the **door** is the socket at
//! which the next process knocks; who has handed over **stands by** until it is told to stop, or
//! takes over again when the other process ends before that.
//!
//! Invariants. The lock on the state folder decides whose turn it is, and nothing else does:
//! whichever process fails, at whatever step, the one that has the lock serves, and the other one
//! does not (R16, R24). A process that breaks before its Hello is never noticed. Calls that arrive
//! meanwhile wait in the sockets, which are never closed; none is answered by a process that has
//! left its volumes.
//!
//! A crash of the new process before Taken: the old one goes on with its own sockets. A crash of
//! the old one: its lock is free, and the new one goes on with what it was given. Nothing of this
//! is kept on a disk but the door, which a dead process leaves behind.
//!
//! Versions: each side says which it speaks; without a common one nothing is handed over, and the
//! old process goes on.

mod channel;
mod door;
mod message;
mod sockets;
mod taking;

pub use channel::HandoverError;
pub use door::{Door, Standing, Successor, pass_on};
pub use message::{Hello, Role};
pub use sockets::{Listening, Service, Sockets};
pub use taking::{Predecessor, Turn, wait_for_turn};
