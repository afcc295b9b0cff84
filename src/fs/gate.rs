//! Admits calls until the file system closes or fails, and notifies when the last has left.

use super::FsError;
use super::freeze::Freeze;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// The bit of [`Gate::state`] that is set when the gate is shut; the others count the calls inside.
const SHUT: u64 = 1 << 63;

#[derive(Default)]
pub struct Gate {
    state: AtomicU64,
    reason: OnceLock<FsError>,
    left: Notify,
    /// Where changes wait before they enter.
    pub(super) freeze: Freeze,
}

/// One call inside.
pub struct Inside<'a>(&'a Gate);

impl Gate {
    /// # Errors
    /// The reason why it is shut.
    pub fn enter(&self) -> Result<Inside<'_>, FsError> {
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        let inside = Inside(self);
        if before & SHUT == 0 {
            Ok(inside)
        } else {
            Err(self.reason.get().cloned().unwrap_or(FsError::Stale))
        }
    }

    /// Shuts the gate for new calls. The first reason counts.
    pub fn shut(&self, reason: FsError) {
        let _first = self.reason.set(reason);
        self.state.fetch_or(SHUT, Ordering::AcqRel);
        self.freeze.break_off();
    }

    /// The reason why the gate is shut.
    pub fn shut_for(&self) -> Option<FsError> {
        let is_shut = self.state.load(Ordering::Acquire) & SHUT != 0;
        is_shut.then(|| self.reason.get().cloned().unwrap_or(FsError::Stale))
    }

    /// The reason why nothing may be answered, not even to calls already inside; a file system that
    /// closes, or is handed over to another process of its node, still answers those.
    pub fn lost(&self) -> Option<FsError> {
        if self.state.load(Ordering::Acquire) & SHUT == 0 {
            return None;
        }
        self.reason
            .get()
            .filter(|reason| !matches!(reason, FsError::Stale | FsError::Unavailable(_)))
            .cloned()
    }

    pub fn is_lost(&self) -> bool {
        self.state.load(Ordering::Acquire) & SHUT != 0 && self.lost().is_some()
    }

    /// Waits until no call is inside. To be called after [`Self::shut`].
    pub async fn idle(&self) {
        loop {
            let left = self.left.notified();
            if self.state.load(Ordering::Acquire) & !SHUT == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, Ordering::AcqRel) == SHUT + 1 {
            self.0.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn who_is_inside_finishes_and_nobody_else_comes_in() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter().unwrap();
        gate.shut(FsError::Fenced);
        gate.shut(FsError::Stale);
        assert!(matches!(gate.enter().map(|_| ()), Err(FsError::Fenced)));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(inside);
        waiting.await.unwrap();
    }
}
