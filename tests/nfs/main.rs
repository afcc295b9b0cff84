//! The NFS edge over real sockets: our server against our client, against broken peers, and against misbehaving back ends.

#[path = "../support/memfs.rs"]
mod memfs;

mod faults;
mod load;
mod malformed;
mod procedures;
mod support;
mod wire;
