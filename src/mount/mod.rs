//! The kernel edge: mounting and unmounting, with time limits.

mod mounter;

pub use mounter::{MountError, MountPoint, Mounter, NfsMount};
