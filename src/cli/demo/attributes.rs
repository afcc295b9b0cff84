//! The attributes of objects, as they are set and compared.

use crate::fs::api::FileKind;
use crate::types::Timestamp;

/// The attributes of stat(2) that are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub nlink: u32,
    pub mtime: Timestamp,
    pub fileid: u64,
}

/// NewAttributes to set after everything else was done to an object.
#[derive(Clone, Copy, Debug)]
pub struct NewAttributes {
    pub mode: Option<u32>,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
}
