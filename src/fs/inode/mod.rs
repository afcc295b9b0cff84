//! Inodes in memory: by number, one [`Node`] at most of each.
//!
//! Nouns: a **node** is an inode in memory ([`node`], with the lock order of a volume); the
//! **table** finds nodes by number and loads them ([`table`]); the **row cache** holds rows of
//! inodes that have no node ([`row_cache`]); **entries** are the cached part of a directory
//! ([`entries`]); **content** is the part of a file's data that is not in the database yet
//! ([`content`], in its [`buffer`]).
//!
//! Invariants: at most one node of an inode in a process; a node that is in use, or whose content
//! waits to be flushed, is not evicted; a cached row is the inode's newest. Memory is bounded for
//! all volumes together ([`memory`]).
//!
//! A crash loses all of it: the database has every batch, and clients resend buffered data (R17).
//!
//! Not here: the batches that operations write. Those are made above, in `names` and `content`.

mod buffer;
mod content;
mod entries;
mod memory;
mod node;
mod row_cache;
mod spread;
mod table;

pub(in crate::fs) use buffer::{Buffer, Pieces, by_extent};
pub(in crate::fs) use content::{ContentState, Freed, StoredSize};
pub use entries::{Bucket, Entry, EntryRef, Position, Resolved};
pub use memory::InodeMemory;
pub use node::{Node, attr};
pub use table::Inodes;
#[cfg(test)]
pub use table::{Loaded, Lookup};
