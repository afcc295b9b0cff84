//! Calls that must not be done twice, while they are under way (R20).
//!
//! The file system remembers what was done; here a repetition that arrives before the first is done joins it and gets the
//! same reply. It is never dropped: the kernel's client would wait a minute or more.

use super::budget::{Count, Counted};
use super::call::Reply;
use super::outbox::Outbox;
use crate::fs::api::CallId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Connections that may wait for one call. A client has one per retransmission, and waits a minute between them.
const JOINED_MAX: usize = 16;

#[derive(Debug, Default)]
pub struct Duplicates(Mutex<HashMap<CallId, Vec<Joined>>>);

/// A connection that waits for a call of another, or of its own, and has a call under way as long as it does.
#[derive(Debug)]
struct Joined {
    outbox: Arc<Outbox>,
    _call: Counted,
}

/// A call that is being done for the first time.
#[derive(Debug)]
pub struct First {
    all: Arc<Duplicates>,
    id: CallId,
    open: bool,
}

impl Duplicates {
    /// `None`: it is already being done, and its reply will go to `outbox` too. `calls`: those under way of the connection.
    pub fn begin(self: &Arc<Self>, id: CallId, outbox: &Arc<Outbox>, calls: &Count) -> Option<First> {
        match self.0.lock().entry(id) {
            std::collections::hash_map::Entry::Occupied(mut joined) => {
                if joined.get().len() < JOINED_MAX {
                    joined.get_mut().push(Joined { outbox: outbox.clone(), _call: calls.enter() });
                }
                None
            }
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(Vec::new());
                Some(First { all: self.clone(), id, open: true })
            }
        }
    }
}

impl First {
    /// Answers those who joined.
    pub fn done(mut self, reply: &Reply) {
        self.open = false;
        let joined = self.all.0.lock().remove(&self.id).unwrap_or_default();
        for Joined { outbox, _call } in joined {
            outbox.send(reply.clone().into_message());
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        // The call was abandoned: a repetition must be able to begin.
        if self.open {
            self.all.0.lock().remove(&self.id);
        }
    }
}
