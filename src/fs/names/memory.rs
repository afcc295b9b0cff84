//! The memory for inodes and directories that all open datasets share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Shared by the tables of a process.
pub struct NamesMemory {
    bytes: u64,
    held: AtomicU64,
    tables: AtomicUsize,
}

impl NamesMemory {
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, held: AtomicU64::new(0), tables: AtomicUsize::new(0) })
    }

    /// Bytes that all tables hold now, about.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// The memory of one table. A table may fill what the others leave, and always has its even share:
/// one that holds more than its share gives it back as it takes in new entries. So all together may
/// hold twice the bytes for a while.
pub struct Part {
    memory: Arc<NamesMemory>,
    held: AtomicU64,
}

impl Part {
    pub fn of(memory: Arc<NamesMemory>) -> Self {
        memory.tables.fetch_add(1, Ordering::Relaxed);
        Self { memory, held: AtomicU64::new(0) }
    }

    /// Most bytes that the table may hold now.
    pub fn max(&self) -> u64 {
        let even = self.memory.bytes / self.memory.tables.load(Ordering::Relaxed).max(1) as u64;
        let others = self.memory.held().saturating_sub(self.held.load(Ordering::Relaxed));
        even.max(self.memory.bytes.saturating_sub(others))
    }

    /// The table's bytes have changed.
    pub fn change(&self, before: u64, after: u64) {
        for held in [&self.held, &self.memory.held] {
            if after >= before {
                held.fetch_add(after - before, Ordering::Relaxed);
            } else {
                held.fetch_sub(before - after, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.held.load(Ordering::Relaxed), Ordering::Relaxed);
        self.memory.tables.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_may_have_what_the_others_leave_and_each_its_even_part() {
        let memory = NamesMemory::new(1000);
        let busy = Part::of(memory.clone());
        assert_eq!(busy.max(), 1000);
        let idle = Part::of(memory.clone());
        idle.change(0, 100);
        assert_eq!((busy.max(), idle.max()), (900, 1000));
        busy.change(0, 900);
        assert_eq!(idle.max(), 500, "whatever the other has");
        idle.change(100, 500);
        assert_eq!((busy.max(), memory.held()), (500, 1400));
        busy.change(900, 500);
        drop(idle);
        assert_eq!((busy.max(), memory.held()), (1000, 500));
    }
}
