//! Inodes in memory.
//!
//! Lock order: [`Node::lock`] of directories before that of their children, by inode number among equals, the volume's rename lock before any; then
//! [`Node::row`], then the content's own lock. `lock` is held across awaits, the others never.

use super::api::FileRef;
use super::content::Content;
use super::row::Inode;

/// One inode in memory: the row as of the last submitted batch or accepted WRITE.
pub struct Node {
    pub file: FileRef,
    /// Held for the length of every operation that changes the inode.
    pub lock: tokio::sync::Mutex<()>,
    /// What is presented. Changed only under `lock`; read without it (one hit per GETATTR).
    pub row: parking_lot::RwLock<Inode>,
    /// A regular file's data that is not in the database yet.
    pub content: Content,
}

impl Node {
    /// The row to put into a batch: `row` with the size and allocation that the batches so far back, because a size is never ahead of the data.
    pub fn stored(&self, row: &Inode) -> Inode {
        self.content.stored(row)
    }
}
