//! What is known in memory of a directory's entries.

use crate::fs::row::Inode;

/// One directory's known entries.
pub struct Entries {}

impl Entries {
    pub fn of(_directory: &Inode) -> Self {
        Self {}
    }
}
