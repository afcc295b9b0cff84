//! Objects of a root with their attributes.

use crate::fs::SnapshotInode;
use crate::fs::api::FileKind;
use crate::fs::row::Inode;
use crate::types::{Incarnation, InodeNo, Timestamp};
use std::fmt::Write;

/// An object of a root, found at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Absolute, as bytes: names need not be UTF-8.
    pub path: Vec<u8>,
    pub kind: FileKind,
    /// Permissions with the set-id and sticky bits, without the kind.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// Bytes of a file, bytes of a link's target, number of entries of a folder.
    pub size: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub atime: Timestamp,
    /// The numbers of a device, major and minor.
    pub rdev: (u32, u32),
    /// The target of a symbolic link.
    pub target: Option<Vec<u8>>,
    pub ino: u64,
    /// Tells apart the objects that had one inode number.
    pub generation: u64,
    /// Equal for equal content and attributes: two states of a file with one tag are the same.
    pub etag: String,
    object: SnapshotInode,
}

impl Entry {
    /// `dataset`: the incarnation of the dataset whose object it is.
    pub(super) fn new(path: Vec<u8>, ino: InodeNo, row: Inode, dataset: Incarnation) -> Self {
        Self {
            path,
            kind: row.kind,
            mode: row.mode & 0o7777,
            uid: row.uid,
            gid: row.gid,
            nlink: row.nlink,
            size: row.size,
            mtime: row.mtime,
            ctime: row.ctime,
            atime: row.atime,
            rdev: row.rdev,
            target: row.target.clone(),
            ino: ino.0,
            generation: row.generation,
            etag: etag(dataset, ino, &row),
            object: SnapshotInode { ino, row },
        }
    }

    /// The last name of the path; empty for the root folder.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    pub(super) fn object(&self) -> &SnapshotInode {
        &self.object
    }
}

/// Every change of an object sets its ctime (R8).
fn etag(dataset: Incarnation, ino: InodeNo, row: &Inode) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(dataset.as_bytes());
    for number in [ino.0, row.generation, row.size] {
        hasher.update(&number.to_be_bytes());
    }
    hasher.update(&row.ctime.as_nanos().to_be_bytes());
    let mut text = String::with_capacity(32);
    for byte in &hasher.finalize().as_bytes()[..16] {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
