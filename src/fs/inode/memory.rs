//! The memory for inodes and directories that all open datasets share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Shared by the tables of a process.
pub struct InodeMemory {
    bytes: u64,
    held: AtomicU64,
    tables: AtomicUsize,
}

impl InodeMemory {
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, held: AtomicU64::new(0), tables: AtomicUsize::new(0) })
    }

    /// Approximate bytes that all tables hold now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// The bytes that one table holds. Half of the memory is divided evenly: a table has its part of
/// that whatever the others do. It may fill the rest too, as far as the others leave it; a table
/// that holds more than its part gives it back as it takes in new entries. So all together stay
/// within the memory, however many there are.
pub struct MemoryShare {
    memory: Arc<InodeMemory>,
    held: AtomicU64,
}

impl MemoryShare {
    pub fn of(memory: Arc<InodeMemory>) -> Self {
        memory.tables.fetch_add(1, Ordering::Relaxed);
        Self { memory, held: AtomicU64::new(0) }
    }

    /// Most bytes that the table may hold now.
    pub fn max(&self) -> u64 {
        let tables = self.memory.tables.load(Ordering::Relaxed).max(1) as u64;
        let even = self.memory.bytes / 2 / tables;
        let others = self.memory.held().saturating_sub(self.held.load(Ordering::Relaxed));
        let shared = self.memory.bytes - even * (tables - 1);
        even.max(shared.saturating_sub(others))
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

impl Drop for MemoryShare {
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
        let memory = InodeMemory::new(1000);
        let busy = MemoryShare::of(memory.clone());
        assert_eq!(busy.max(), 1000);
        let idle = MemoryShare::of(memory.clone());
        idle.change(0, 100);
        assert_eq!((busy.max(), idle.max()), (650, 750));
        busy.change(0, 650);
        assert_eq!(idle.max(), 250, "whatever the other has");
        idle.change(100, 250);
        assert_eq!((busy.max(), memory.held()), (500, 900));
        busy.change(650, 500);
        drop(idle);
        assert_eq!((busy.max(), memory.held()), (1000, 500));
    }

    #[test]
    fn all_together_stay_within_the_bytes() {
        let memory = InodeMemory::new(1 << 20);
        let parts: Vec<MemoryShare> = (0..256).map(|_| MemoryShare::of(memory.clone())).collect();
        for _ in 0..4 {
            for part in &parts {
                let held = part.held.load(Ordering::Relaxed);
                part.change(held, part.max());
                assert!(memory.held() <= 1 << 20, "{}", memory.held());
                assert!(part.max() >= 2 << 10, "its even part");
            }
        }
    }
}
