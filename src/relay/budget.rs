//! The bytes of unanswered calls that the shared volumes of a node hold together, fair between
//! volumes.
//!
//! A volume may hold as many bytes as it leaves free: one volume alone half of the budget, two a
//! third each, and each of N one part of N + 1 (dynamic thresholds: Choudhury and Hahne, IEEE/ACM
//! Transactions on Networking 6(2), 1998). So a volume whose calls wait, for a limit or for an owner
//! that cannot be reached, does not take the room of others, however few or many they are. With
//! many such volumes a part becomes small: below [`VOLUME_MIN`] a volume may always take another
//! call.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::futures::Notified;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, Notify};

/// A volume that holds less than this may take another call, whatever others hold: with that call
/// it holds less than what the memory of a process counts for each volume.
const VOLUME_MIN: usize = 1 << 20;

/// The bytes of unanswered calls of all volumes together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RelayBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    max: usize,
    /// Bytes held; locked also while those of a volume change.
    used: Mutex<usize>,
    fewer: Notify,
}

/// The part of one volume. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VolumeShare {
    all: Arc<BudgetState>,
    used: Arc<AtomicUsize>,
    turn: Arc<AsyncMutex<()>>,
}

impl RelayBudget {
    pub fn new(max: usize) -> Self {
        Self(Arc::new(BudgetState { max, used: Mutex::new(0), fewer: Notify::new() }))
    }

    /// The part of a further volume.
    pub fn share(&self) -> VolumeShare {
        VolumeShare { all: self.0.clone(), used: Arc::default(), turn: Arc::default() }
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        *self.0.used.lock()
    }
}

impl VolumeShare {
    /// Returns whether the volume may take a small call.
    pub fn has_room(&self) -> bool {
        self.fits(*self.all.used.lock(), 1)
    }

    /// Takes bytes if there is room for them.
    pub fn try_take(&self, bytes: usize) -> bool {
        let mut all = self.all.used.lock();
        let fits = self.fits(*all, bytes);
        if fits {
            self.change(&mut all, 0, bytes);
        }
        fits
    }

    fn fits(&self, all: usize, bytes: usize) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        used < VOLUME_MIN || used.saturating_add(bytes) <= self.all.max.saturating_sub(all)
    }

    /// Holds `bytes` in place of `before`.
    pub fn replace(&self, before: usize, bytes: usize) {
        self.change(&mut self.all.used.lock(), before, bytes);
        if bytes < before {
            self.all.fewer.notify_waiters();
        }
    }

    fn change(&self, all: &mut usize, before: usize, bytes: usize) {
        *all = *all + bytes - before;
        self.used.store(self.used.load(Ordering::Relaxed) + bytes - before, Ordering::Relaxed);
    }

    pub fn give_back(&self, bytes: usize) {
        self.replace(bytes, 0);
    }

    /// The turn of one of the volume's connections to wait for room. Without it, a connection whose
    /// calls are answered would take their room again before others notice.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Resolves when any volume has given bytes back.
    pub fn fewer(&self) -> Notified<'_> {
        self.all.fewer.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Takes as many MiB as there is room for.
    fn fill(share: &VolumeShare) -> usize {
        std::iter::repeat_with(|| share.try_take(MIB)).take_while(|taken| *taken).count()
    }

    fn held(share: &VolumeShare) -> usize {
        share.used.load(Ordering::Relaxed) / MIB
    }

    #[test]
    fn a_volume_that_waits_leaves_others_as_much_as_it_holds() {
        let budget = RelayBudget::new(32 * MIB);
        let (slow, other) = (budget.share(), budget.share());
        assert_eq!(fill(&slow), 16);
        assert_eq!(fill(&other), 8);
        // Each takes what the other gives back, until both hold the same.
        for _ in 0..32 {
            slow.give_back(MIB);
            fill(&other);
            fill(&slow);
            assert!(budget.used() <= 32 * MIB);
        }
        assert_eq!((held(&slow), held(&other)), (11, 11));
        other.give_back(11 * MIB);
        assert_eq!(fill(&slow), 5, "it may hold half of them again");
    }

    #[test]
    fn a_call_of_the_largest_size_passes_beside_any_number_of_waiting_volumes() {
        let budget = RelayBudget::new(32 * MIB);
        let slow: Vec<VolumeShare> = (0..200).map(|_| budget.share()).collect();
        for share in &slow {
            assert!(fill(share) >= 1);
        }
        assert!(budget.used() <= (32 + 200) * MIB, "{}", budget.used());
        let other = budget.share();
        assert!(other.has_room() && other.try_take(MIB) && !other.try_take(MIB));
        // Small calls that wait do not keep it from passing.
        other.replace(MIB, 1000);
        assert!(other.try_take(MIB) && !other.has_room());
    }
}
