//! The duplicate-reply ring (R20): a call that must not be done twice gets its first answer when it comes again.
//!
//! The answer is written in the same batch as the change, so that both are there or neither, through restarts, take-overs and clones. A call in
//! progress is an entry too: its repeat waits for it. A call that failed changed nothing and leaves nothing; its repeat is tried anew. The newest
//! [`SLOTS`] calls are remembered; a client repeats a call within minutes and has few on the way at a time.

use crate::fs::FsError;
use crate::fs::api::{CallId, FileRef};
use crate::fs::committer::{Batch, Committer, Ticket};
use crate::fs::key::{self, Key};
use crate::fs::row::{Reply, Row};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Calls remembered. A batch carries about 40 bytes for its own.
pub const SLOTS: u64 = 4096;

/// What a call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The batch that holds it.
    pub ticket: Ticket,
    /// What it made or changed.
    pub object: Option<FileRef>,
}

enum Call {
    Running(CancellationToken),
    Done { done: Done, seq: u64 },
}

#[derive(Default)]
struct Calls {
    calls: HashMap<CallId, Call>,
    slots: HashMap<u64, CallId>,
    next: u64,
}

impl Calls {
    fn remember(&mut self, id: CallId, done: Done, seq: u64) {
        if let Some(old) = self.slots.insert(seq % SLOTS, id)
            && matches!(self.calls.get(&old), Some(Call::Done { seq: at, .. }) if at % SLOTS == seq % SLOTS)
        {
            self.calls.remove(&old);
        }
        self.calls.insert(id, Call::Done { done, seq });
        self.next = self.next.max(seq + 1);
    }
}

/// The calls that were answered or are being answered.
#[derive(Default)]
pub struct Ring {
    calls: Mutex<Calls>,
}

/// Whether a call is done for the first time.
pub enum Turn {
    First(First),
    Repeated(Done),
}

/// A call to be done. Dropped before [`Self::done`], it never happened.
pub struct First {
    entry: Option<(Arc<Ring>, CallId, CancellationToken)>,
}

impl Ring {
    pub async fn load(committer: &Committer) -> Result<Self, FsError> {
        let rows = committer.scan(key::ring(0), key::ring(u32::MAX), SLOTS as usize).await?;
        let mut calls = Calls::default();
        let mut replies = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            if !matches!(Key::parse(&key), Some(Key::Ring(_))) {
                return Err(FsError::Corrupt("a key among those of the duplicate-reply ring is none of them".to_owned()));
            }
            replies.push(Reply::decode(&row)?);
        }
        replies.sort_by_key(|reply| reply.seq);
        for Reply { client, xid, checksum, object, seq } in replies {
            let object = object.map(|(ino, generation)| FileRef { ino, generation });
            calls.remember(CallId { client, xid, checksum }, Done { ticket: Ticket::default(), object }, seq);
        }
        Ok(Self { calls: Mutex::new(calls) })
    }

    /// Waits while the same call is in progress.
    pub async fn turn(self: &Arc<Self>, call: Option<CallId>) -> Turn {
        let Some(id) = call else { return Turn::First(First { entry: None }) };
        loop {
            let ended = match self.calls.lock().calls.entry(id) {
                Entry::Vacant(free) => {
                    let ended = CancellationToken::new();
                    free.insert(Call::Running(ended.clone()));
                    return Turn::First(First { entry: Some((self.clone(), id, ended)) });
                }
                Entry::Occupied(entry) => match entry.get() {
                    Call::Done { done, .. } => return Turn::Repeated(*done),
                    Call::Running(ended) => ended.clone(),
                },
            };
            ended.cancelled().await;
        }
    }
}

impl First {
    /// Puts the answer into the call's batch. Answers its number for [`Self::done`].
    pub fn record(&self, batch: &mut Batch, object: Option<FileRef>) -> u64 {
        let Some((ring, id, _)) = &self.entry else { return 0 };
        let mut calls = ring.calls.lock();
        let seq = calls.next;
        calls.next += 1;
        let object = object.map(|file| (file.ino, file.generation));
        let reply = Reply { client: id.client, xid: id.xid, checksum: id.checksum, object, seq };
        batch.put(key::ring((seq % SLOTS) as u32), &reply);
        seq
    }

    /// The batch was submitted.
    pub fn done(mut self, seq: u64, done: Done) {
        if let Some((ring, id, ended)) = self.entry.take() {
            ring.calls.lock().remember(id, done, seq);
            ended.cancel();
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if let Some((ring, id, ended)) = self.entry.take() {
            ring.calls.lock().calls.remove(&id);
            ended.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::InodeNo;

    fn call(xid: u32) -> Option<CallId> {
        Some(CallId { client: 1, xid, checksum: 2 })
    }

    fn done(ticket: u64) -> Done {
        Done { ticket: Ticket(ticket), object: Some(FileRef { ino: InodeNo(ticket), generation: 1 }) }
    }

    async fn perform(ring: &Arc<Ring>, xid: u32) -> u64 {
        let Turn::First(first) = ring.turn(call(xid)).await else { panic!("{xid} was done before") };
        let seq = first.record(&mut Batch::default(), None);
        first.done(seq, done(u64::from(xid)));
        seq
    }

    #[tokio::test]
    async fn a_repeat_waits_and_gets_the_first_answer() {
        let ring = Arc::new(Ring::default());
        let Turn::First(first) = ring.turn(call(1)).await else { panic!() };
        let again = tokio::spawn({
            let ring = ring.clone();
            async move { ring.turn(call(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!again.is_finished());
        let seq = first.record(&mut Batch::default(), None);
        first.done(seq, done(7));
        assert!(matches!(again.await.unwrap(), Turn::Repeated(answer) if answer == done(7)));
    }

    #[tokio::test]
    async fn a_call_that_failed_is_tried_anew() {
        let ring = Arc::new(Ring::default());
        drop(ring.turn(call(1)).await);
        assert!(matches!(ring.turn(call(1)).await, Turn::First(_)));
        assert!(matches!(ring.turn(None).await, Turn::First(_)));
    }

    #[tokio::test]
    async fn the_ring_is_bounded_and_forgets_the_oldest() {
        let ring = Arc::new(Ring::default());
        for xid in 0..SLOTS as u32 + 3 {
            assert_eq!(perform(&ring, xid).await, u64::from(xid));
        }
        assert_eq!(ring.calls.lock().calls.len(), SLOTS as usize);
        assert!(matches!(ring.turn(call(3)).await, Turn::Repeated(answer) if answer == done(3)));
        assert!(matches!(ring.turn(call(2)).await, Turn::First(_)));
    }
}
