//! The NFS edge over real sockets: our server against our client, against broken peers, and against misbehaving back ends.

#[path = "../support/memfs.rs"]
mod memfs;

mod load;
mod procedures;
mod support;
