//! Directories.
mod entries;

pub use entries::Entries;
