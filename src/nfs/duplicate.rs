//! Recognises retransmitted calls (R20, R36): no copy of a call takes effect after its answer was
//! sent.
//!
//! ```text
//!         first copy ───────────────▶ answered ──▶ a WRITE: remembered here, WRITES_MAX of them
//!  a copy meanwhile joins it                  └──▶ any other: by the file system (R20)
//! ```
//! A copy is never dropped: the kernel's client would wait a minute or more. A WRITE that waits,
//! for a lease, for memory or for the store, may have been sent again on another connection, and
//! the range written again, before it takes effect: a second copy that took effect then would bring
//! the old bytes back. The file system does not remember WRITEs, because each would need a row in
//! the database; remembering them here is enough, because it is only while a process lives that
//! copies wait in its sockets. One that an owner did not answer before it died may be carried out a
//! second time by the next one. Its client has written nothing newer there: a kernel's waits for
//! the answer before it writes a page again. Another node of a shared volume may have: if it has read
//! what the call wrote and has overwritten it, its newer bytes are replaced. docs/failover.md says
//! so; a row in the database for each WRITE of a shared volume would prevent it.

use super::budget::{Count, Counted};
use super::outbox::Outbox;
use super::reply::{Reply, WriteAnswer};
use crate::fs::api::CallId;
use crate::fs::recent_calls::RecentCalls;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Connections that may wait for one call. A client has one per retransmission, and waits a minute
/// between them.
const JOINED_MAX: usize = 16;
/// Answered WRITEs remembered, the newest of each client: as many as two connections may have in
/// progress (see [`super::Limits::calls`]), because a copy is read at the latest once the calls
/// that kept its connection from being read are answered. About 100 bytes each.
const WRITES_MAX: usize = 8192;

/// The calls of one server's clients.
#[derive(Debug, Default)]
pub struct Duplicates(Mutex<Calls>);

#[derive(Debug)]
struct Calls {
    /// Calls in progress, with the connections that wait for the same answer.
    running: HashMap<CallId, Vec<Joined>>,
    writes: RecentCalls<WriteAnswer>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { running: HashMap::new(), writes: RecentCalls::new(WRITES_MAX) }
    }
}

/// A connection that waits for a call of another connection, or of its own, which counts as a call
/// in progress.
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

/// The relation of an arriving call to earlier ones.
#[derive(Debug)]
pub enum Arrived {
    First(First),
    /// The call is in progress: its reply will go to this connection too.
    Joined,
    /// The call was a WRITE with this answer.
    Answered(WriteAnswer),
}

impl Duplicates {
    /// `calls`: the connection's calls in progress.
    pub fn begin(self: &Arc<Self>, id: CallId, outbox: &Arc<Outbox>, calls: &Count) -> Arrived {
        let mut all = self.0.lock();
        if let Some(answer) = all.writes.get(&id) {
            return Arrived::Answered(*answer);
        }
        match all.running.entry(id) {
            Entry::Occupied(mut joined) => {
                // The connections that joined first are those that broke.
                if joined.get().len() >= JOINED_MAX {
                    joined.get_mut().remove(0);
                }
                joined.get_mut().push(Joined { outbox: outbox.clone(), _call: calls.enter() });
                Arrived::Joined
            }
            Entry::Vacant(slot) => {
                slot.insert(Vec::new());
                Arrived::First(First { all: self.clone(), id, open: true })
            }
        }
    }
}

impl First {
    /// Answers the connections that joined.
    pub fn done(mut self, reply: &Reply) {
        self.open = false;
        let joined = {
            let mut all = self.all.0.lock();
            if let Some(answer) = reply.write_answer() {
                all.writes.insert(self.id, answer);
            }
            all.running.remove(&self.id).unwrap_or_default()
        };
        for Joined { outbox, _call } in joined {
            outbox.send(reply.clone().into_message());
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        // The call was abandoned before it did anything: a retransmission must be able to start.
        // Those that joined would wait for ever: their clients connect again, and send it again.
        let joined = self.all.0.lock().running.remove(&self.id).unwrap_or_default();
        for Joined { outbox, _call } in joined {
            outbox.close();
        }
    }
}
