//! Whether this process may still tell what a file system answers (R26).
//!
//! A dataset has one owner at a time, and another may take it once this one's lease must have
//! ended. The engine fences writers; nothing but the lease keeps an owner that was taken from, and
//! does not know yet, from answering what it remembers. So every call asks before it begins and
//! again just before its outcome is told ([`super::answer`]).

use futures::future::BoxFuture;

/// What a file system asks about its ownership; the floor above keeps it.
pub trait Tenure: Send + Sync + 'static {
    /// Whether an answer may be given now. Asked by every call, twice: from memory.
    fn holds(&self) -> bool;

    /// Has it renewed without waiting for its time.
    fn renew_soon(&self);

    /// Waits while it does not hold and may again; `false`: it never will.
    fn regained(&self) -> BoxFuture<'_, bool>;
}

/// Of who has no rivals: tests, and a controller whose claim yields to anyone and who answers
/// nobody.
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
