//! Decides whether this process may still answer for a file system (R26).
//!
//! A dataset has one owner at a time, and another may take it once this one's lease must have
//! ended. The engine fences writers; only the lease keeps an owner that lost the dataset, and does
//! not know it yet, from answering from memory. So every call asks before it begins and again just
//! before its outcome is returned ([`super::answer`]).

use futures::future::BoxFuture;

/// The questions that a file system asks about its ownership; the floor above answers them.
pub trait Tenure: Send + Sync + 'static {
    /// Returns whether an answer may be given now. Every call asks twice, so the answer comes from
    /// memory.
    fn holds(&self) -> bool;

    /// Requests a renewal before it is due.
    fn renew_soon(&self);

    /// Waits while the lease is expired and may be re-acquired; `false`: it never will be.
    fn regained(&self) -> BoxFuture<'_, bool>;
}

/// The ownership of a process without rivals: tests, and a controller whose claim yields to anyone
/// and which answers no client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unrivalled;

impl Tenure for Unrivalled {
    fn holds(&self) -> bool {
        true
    }

    fn renew_soon(&self) {}

    fn regained(&self) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(true))
    }
}
