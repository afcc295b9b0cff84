//! One call at a time for one object, in this process: a second one is refused, or waits for its
//! turn.

use super::ControlError;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Weak};
use tokio::sync::OwnedMutexGuard;

/// The objects that a call is running for.
#[derive(Clone, Default)]
pub(super) struct Busy {
    names: Arc<Mutex<HashSet<String>>>,
}

/// A running call; its object is free again when this is dropped.
pub(super) struct Call {
    busy: Busy,
    name: String,
}

impl Busy {
    /// # Errors
    /// [`ControlError::InProgress`] while another call for the object runs: CSI wants `ABORTED`,
    /// not a queue.
    pub(super) fn enter(&self, name: String) -> Result<Call, ControlError> {
        if self.names.lock().insert(name.clone()) {
            Ok(Call { busy: self.clone(), name })
        } else {
            Err(ControlError::InProgress { what: name })
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.busy.names.lock().remove(&self.name);
    }
}

/// Per-object turns, granted in order of arrival.
pub(super) struct Queues<K> {
    /// Turns of the objects that a caller waits for or has.
    turns: Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Queues<K> {
    fn default() -> Self {
        Self { turns: Mutex::default() }
    }
}

impl<K: Eq + Hash> Queues<K> {
    /// Waits for the turn, which ends when the returned guard is dropped. A caller that stops
    /// waiting leaves the queue.
    pub(super) async fn turn(&self, key: K) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock();
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(&key).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    turns.insert(key, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_call_is_refused_until_the_first_ends() {
        let busy = Busy::default();
        let first = busy.enter("volume a".into()).ok().unwrap();
        assert!(matches!(busy.enter("volume a".into()), Err(ControlError::InProgress { .. })));
        assert!(busy.enter("volume b".into()).is_ok());
        drop(first);
        assert!(busy.enter("volume a".into()).is_ok());
    }

    #[tokio::test]
    async fn turns_come_one_after_the_other_and_nothing_is_kept_of_them() {
        let queues = Queues::default();
        let first = queues.turn("a").await;
        let other = queues.turn("b").await;
        let mut second = Box::pin(queues.turn("a"));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        drop(other);
        drop(queues.turn("c").await);
        assert_eq!(queues.turns.lock().len(), 1, "only the last one asked for");
    }
}
