//! A client of NFSv3 and MOUNT servers, ours and others': many calls in flight over one TCP
//! connection.
//!
//! For `demo` without a kernel mount, `bench`, and tests. It does not reconnect, retry or cache:
//! the caller gets the server's answer.

mod connection;
mod dial;
mod procedures;
mod setup;
mod types;

pub use connection::{Client, ClientError};
pub use dial::Credentials;
pub use setup::{mount, mount_at, port_of};
pub use types::{
    Committed, FileHandle, FsInfo, FsStat, Node, Page, PageEntry, PathConf, ReadReply,
};
