//! The NFS edge: NFSv3 and MOUNT (RFC 1813) over TCP, and a client for both.
//!
//! **What it is.** Translates calls into operations of [`crate::fs::api::FileSystem`] and answers
//! back into replies; it decides nothing. Our own XDR: the structs of the known crates allocate
//! from lengths that they have not checked, and encode replies through a copy.
//!
//! **Nouns.** An *export* is an open file system under an id and a handle key. A *table* finds the
//! exports; the floor above provides it. A *server* is one listener with its connections; an
//! *endpoint* is the table of a server for one staged volume. A *handle* is a capability for one
//! object of one export.
//!
//! **Invariants.** Every length from the wire is checked before anything is allocated. Memory is
//! bounded per connection and per server ([`Limits`]). A call that has begun is finished, even if
//! its connection is gone. No copy of a call takes effect after its answer was sent: one that
//! arrives while the first is in progress joins it (R36), and later the file system recognises it
//! (R20), or for a WRITE this edge. A GETATTR never waits behind READs. The write verifier is the
//! file system's, new for each writable open (R18): a client resends uncommitted data.
//!
//! **After a crash** nothing is left: the edge holds no state. Handles stay valid, since they name
//! export, inode and generation and are checked by MAC (R7).
//!
//! **What it does not do.** Locks (NLM), NFSv4, UDP, Kerberos, permission checks (the file
//! system's).

mod args;
mod attr;
mod budget;
mod call;
pub mod client;
mod connection;
mod data;
mod dispatch;
mod duplicate;
mod export;
mod handle;
mod in_process;
mod limited;
mod listing;
mod mount;
mod mounted;
mod names;
mod objects;
mod outbox;
mod peer;
mod record;
mod reply;
mod rpc;
mod server;
mod shared;
mod status;
mod stream;
#[doc(hidden)]
pub mod untrusted;
mod xdr;

pub use attr::{FileAttr, Wcc};
pub use budget::{Budget, Limits};
pub use export::{
    Endpoint, Export, ExportTable, Found, Listed, MountPass, MountPoint, MountRefused, Registry,
};
pub use handle::ExportId;
pub use in_process::InProcessServer;
pub use peer::{Peers, Trust};
pub use record::{LARGE_RECORD_BYTES, RECORD_BYTES_MAX, RecordError, RecordReader};
pub use rpc::{ClientHost, is_mount_request, is_reply, is_retry_later, xid_of};
pub use server::Server;
pub use shared::{IdleConnection, Options, Squash};
pub use status::NfsStat;
pub use stream::Stream;
