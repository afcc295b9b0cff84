//! Decides whether this process may still answer for a file system (R26).
//!
//! A dataset has one owner at a time, and another may take it once this one's lease must have
//! expired. The writer epoch fences writers; nothing but the lease keeps an owner that lost the
//! dataset, and does not know yet, from answering from memory. So every call asks before it begins
//! and again just before it answers ([`super::answer`]).

use futures::future::BoxFuture;

/// The lease under which a file system answers; the floor above renews it.
pub trait Lease: Send + Sync + 'static {
    /// Returns whether an answer may be given now. Every call asks twice, so the answer comes from
    /// memory.
    fn holds(&self) -> bool;

    /// Asks for a renewal before the next one is due.
    fn renew_soon(&self);

    /// Waits until an expired lease is acquired again; `false`: it never will be.
    fn reacquired(&self) -> BoxFuture<'_, bool>;
}

/// A lease that always holds: for tests, and for maintenance, which answers nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysHeld;

impl Lease for AlwaysHeld {
    fn holds(&self) -> bool {
        true
    }

    fn renew_soon(&self) {}

    fn reacquired(&self) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(true))
    }
}
