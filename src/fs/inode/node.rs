//! Inodes in memory.
//!
//! Lock order, for every task of a volume:
//! 1. the volume's rename lock (only for a directory that moves to another directory);
//! 2. [`Node::lock`] of all nodes that the operation changes, in ascending order of inode number,
//!    files and directories alike. An operation that needs a node that a name leads to looks the
//!    name up without locks, takes all locks in order, and looks the name up again
//!    ([`crate::fs::names`]);
//! 3. [`Node::row`] or the directory's entries: one at a time;
//! 4. the content's own lock, with the row's where both must be consistent.
//!
//! `lock` is held across awaits, the locks after it never.

use super::content::Content;
use super::entries::Entries;
use crate::fs::api::{Attr, FileKind, FileRef};
use crate::fs::committer::Ticket;
use crate::fs::row::Inode;
use crate::types::InodeNo;
use std::sync::atomic::{AtomicU64, Ordering};

/// One inode in memory: the row as of the last submitted batch or accepted WRITE. There is at most
/// one of an inode in a process.
pub struct Node {
    pub file: FileRef,
    /// Held for the length of every operation that changes the inode.
    pub lock: tokio::sync::Mutex<()>,
    /// The row that is presented. Changed only under `lock`; read without it (one hit per GETATTR).
    pub row: parking_lot::RwLock<Inode>,
    /// A regular file's data that is not in the database yet.
    pub content: Content,
    /// The cached entries of a directory; absent for other kinds.
    pub entries: Option<Box<Entries>>,
    last: AtomicU64,
}

impl Node {
    /// `last`: a batch at or after the one that wrote the row. For a row that was read the writing
    /// batch is unknown, and whether it is durable: the last batch submitted when the row had been
    /// read is no earlier, and waiting for it costs nothing when all is durable.
    pub fn new(ino: InodeNo, row: Inode, last: Ticket) -> Self {
        Self {
            file: FileRef { ino, generation: row.generation },
            lock: tokio::sync::Mutex::default(),
            content: Content::default(),
            entries: (row.kind == FileKind::Directory).then(|| Box::new(Entries::of(&row))),
            row: parking_lot::RwLock::new(row),
            last: AtomicU64::new(last.0),
        }
    }

    /// Takes apart a node that is evicted: nothing of its content waits to be flushed.
    pub fn into_parts(self) -> (Inode, Ticket, Option<Box<Entries>>) {
        (self.row.into_inner(), Ticket(self.last.into_inner()), self.entries)
    }

    /// The row to put into a batch: `row` with the size and allocation that the batches so far
    /// account for, because a size is never ahead of the data.
    pub fn stored(&self, row: &Inode) -> Inode {
        self.content.stored(row)
    }

    /// The attributes that stat(2) returns now.
    pub fn attr(&self) -> Attr {
        attr(self.file, &self.row.read())
    }

    /// Remembers that a batch changed what this node shows (R15). Called under `lock` by the
    /// operation that submits one.
    pub fn submitted(&self, ticket: Ticket) {
        self.last.fetch_max(ticket.0, Ordering::AcqRel);
    }

    /// The last batch that changed what this node shows, or a later one.
    pub fn last(&self) -> Ticket {
        Ticket(self.last.load(Ordering::Acquire))
    }
}

/// The attributes of a row that stat(2) returns.
pub fn attr(file: FileRef, row: &Inode) -> Attr {
    Attr {
        file,
        kind: row.kind,
        mode: row.mode,
        uid: row.uid,
        gid: row.gid,
        nlink: row.nlink,
        size: row.size,
        allocated: row.allocated,
        rdev: row.rdev,
        atime: row.atime,
        mtime: row.mtime,
        ctime: row.ctime,
    }
}
