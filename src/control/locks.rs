//! One operation at a time for one object, in this process: a second one is refused, or waits.

use super::ControlError;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Weak};
use tokio::sync::OwnedMutexGuard;

/// The objects that an operation is in progress for.
#[derive(Clone, Default)]
pub(super) struct OperationLocks {
    names: Arc<Mutex<HashSet<String>>>,
}

/// An operation in progress; its object is free again when this is dropped.
pub(super) struct OperationLock {
    locks: OperationLocks,
    name: String,
}

impl OperationLocks {
    /// # Errors
    /// [`ControlError::InProgress`] while another operation on it is in progress: CSI wants
    /// `ABORTED`, not a queue.
    pub(super) fn try_lock(&self, name: String) -> Result<OperationLock, ControlError> {
        if self.names.lock().insert(name.clone()) {
            Ok(OperationLock { locks: self.clone(), name })
        } else {
            Err(ControlError::InProgress { what: name })
        }
    }
}

impl Drop for OperationLock {
    fn drop(&mut self) {
        self.locks.names.lock().remove(&self.name);
    }
}

/// A fair mutex for each key.
pub(super) struct KeyedMutex<K> {
    /// The mutexes that a caller holds or waits for.
    mutexes: Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for KeyedMutex<K> {
    fn default() -> Self {
        Self { mutexes: Mutex::default() }
    }
}

impl<K: Eq + Hash> KeyedMutex<K> {
    /// Locks the mutex of the key until the guard is dropped. A caller that stops waiting leaves
    /// the queue.
    pub(super) async fn lock(&self, key: K) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut mutexes = self.mutexes.lock();
            mutexes.retain(|_, mutex| mutex.strong_count() > 0);
            match mutexes.get(&key).and_then(Weak::upgrade) {
                Some(mutex) => mutex,
                None => {
                    let mutex = Arc::default();
                    mutexes.insert(key, Arc::downgrade(&mutex));
                    mutex
                }
            }
        };
        mutex.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_operation_is_refused_until_the_first_ends() {
        let locks = OperationLocks::default();
        let first = locks.try_lock("volume a".into()).ok().unwrap();
        assert!(matches!(locks.try_lock("volume a".into()), Err(ControlError::InProgress { .. })));
        assert!(locks.try_lock("volume b".into()).is_ok());
        drop(first);
        assert!(locks.try_lock("volume a".into()).is_ok());
    }

    #[tokio::test]
    async fn a_key_is_locked_in_the_order_of_asking_and_forgotten_afterwards() {
        let mutexes = KeyedMutex::default();
        let first = mutexes.lock("a").await;
        let other = mutexes.lock("b").await;
        let mut second = Box::pin(mutexes.lock("a"));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        drop(other);
        drop(mutexes.lock("c").await);
        assert_eq!(mutexes.mutexes.lock().len(), 1, "only the last one asked for");
    }
}
