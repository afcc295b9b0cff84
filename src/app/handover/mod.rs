//! A new process takes over from the one that serves, on the same machine and the same state
//! folder, while that one still serves.
//!
//! ```text
//!  new process                                   active process
//!  loads its configuration, opens its pools
//!  Hello: version, role, node, pools  ────────▶  can this process serve my volumes?
//!                                     ◀────────  Accepted, or Refused (and serves on)
//!                                                holds CSI calls; flushes, still serving
//!                                                quiesces its connections; closes its volumes
//!                                     ◀────────  Sockets … (listening, and idle connections)
//!                                     ◀────────  Released: the state folder is unlocked
//!  locks the state folder
//!  Acquired                           ────────▶  on standby
//!  opens the volumes, serves
//!  Serving                            ────────▶  ends the rest of its services
//! ```
//!
//! Nouns: the **active** process has the state folder, and an **activation** is the right to serve
//! with everything that came with it. The **hand-over listener** is the socket on which the next
//! process asks. A process that has handed over is on **standby** until it is told to stop, or is
//! active again because the other one exits before that.
//!
//! Invariants. Only the lock on the state folder decides which process is active: whichever fails,
//! at whatever step, the one with the lock serves, and the other one does not (R16, R24). A process
//! that fails before its Hello is never noticed. Calls that arrive meanwhile wait in the sockets,
//! which are never closed; no process answers them after it has closed its volumes.
//!
//! If the new process dies before Acquired, the old one resumes with its own sockets. If the old
//! one dies, its lock is free, and the new one continues with the sockets that it has received.
//! Nothing of this is on a disk except the hand-over socket, which a dead process leaves behind.
//!
//! Each side says which versions it supports; without a common one nothing is handed over, and the
//! old process keeps serving.

mod channel;
mod listener;
mod message;
mod sockets;
mod standby;
mod successor;

pub use channel::HandoverError;
pub use listener::{HandoverListener, Successor};
pub use message::{HandoverRole, Hello, Service};
pub use sockets::{Listening, Sockets};
pub use standby::{Standby, transfer};
pub use successor::{Activation, Predecessor, wait_until_active};
