//! A client of NFSv3 and MOUNT servers, ours and others': many calls in flight over one TCP
//! connection.
//!
//! For `demo` without a kernel mount, `bench`, and tests. It does not reconnect, retry or cache:
//! what the server says is what the caller gets.

mod connection;
mod procedures;
mod setup;
mod types;

pub use connection::{Client, ClientError};
pub use setup::{Credentials, mount, mount_at, port_of};
pub use types::{
    Committed, FileHandle, FsInfo, FsStat, Node, Page, PageEntry, PathConf, ReadReply,
};
