//! The results of calls.

use crate::fs::api::{DirCookie, Stability};
use crate::nfs::attr::FileAttr;
use crate::nfs::handle::HANDLE_BYTES_MAX;
use crate::nfs::xdr::{Cursor, Result};
use bytes::Bytes;

/// A server's name for an object: at most 64 bytes that mean something to it alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle(Bytes);

impl FileHandle {
    /// A handle from stored or arbitrary bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn decode(from: &mut Cursor<'_>) -> Result<Self> {
        from.opaque(HANDLE_BYTES_MAX).map(Self::from_bytes)
    }

    pub(super) fn decode_option(from: &mut Cursor<'_>) -> Result<Option<Self>> {
        if from.bool()? { Self::decode(from).map(Some) } else { Ok(None) }
    }
}

/// An object that was found or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub handle: FileHandle,
    pub attr: Option<FileAttr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadReply {
    pub data: Bytes,
    pub eof: bool,
    pub attr: Option<FileAttr>,
}

/// The result of a WRITE or COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Bytes written; 0 for COMMIT.
    pub count: u32,
    pub stability: Stability,
    /// If it differs from an earlier one, uncommitted data must be sent again.
    pub verifier: [u8; 8],
    pub attr: Option<FileAttr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageEntry {
    pub fileid: u64,
    pub name: Bytes,
    pub cookie: DirCookie,
    pub attr: Option<FileAttr>,
    pub handle: Option<FileHandle>,
}

/// Part of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<PageEntry>,
    pub eof: bool,
    pub verifier: [u8; 8],
    pub attr: Option<FileAttr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStat {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub available_bytes: u64,
    pub total_files: u64,
    pub free_files: u64,
    pub available_files: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsInfo {
    pub read_max: u32,
    pub write_max: u32,
    pub dir_preferred: u32,
    pub file_bytes_max: u64,
    pub properties: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathConf {
    pub links_max: u32,
    pub name_max: u32,
    pub no_trunc: bool,
    pub chown_restricted: bool,
    pub case_insensitive: bool,
    pub case_preserving: bool,
}
