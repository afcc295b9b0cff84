//! The duplicate request cache (R20): a call that must not be done twice gets its first answer when
//! it is retransmitted.
//!
//! The answer is written in the same batch as the change, so that both are there or neither,
//! through restarts, take-overs and clones. A call in progress is an entry too: its retransmission
//! waits for it. [`SLOTS`] calls are remembered, the newest of each client ([`RecentCalls`]): one
//! that was cut off for minutes finds its own whatever others have sent meanwhile.
//!
//! A call that changed nothing is remembered too: a REMOVE that was answered NOENT and arrives
//! again late must not remove the file that was made since. But only in memory, for the life of the
//! process: it has no batch that could carry an entry, and one of its own would make each lookup by
//! MKDIR or exclusive CREATE (lock files, `mkdir -p`) a write to the journal, with `sync=always` a
//! request. After a restart a retransmission of such a call is done again. They have [`SLOTS`] of
//! their own, so that no flood of failures evicts the entries of changes.

use crate::fs::FsError;
use crate::fs::api::{CallId, FileRef};
use crate::fs::committer::{Batch, Committer, Ticket};
use crate::fs::key::{self, Key};
use crate::fs::recent_calls::RecentCalls;
use crate::fs::row::{Reply, Row};
use parking_lot::Mutex;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::sync::CancellationToken;

/// Most calls remembered. A batch carries about 40 bytes for its own.
pub const SLOTS: u32 = 4096;

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The batch that holds it.
    pub ticket: Ticket,
    /// The object that it made or changed.
    pub object: Option<FileRef>,
}

struct Calls {
    running: HashMap<CallId, CancellationToken>,
    /// With the slots of their rows.
    done: RecentCalls<(Done, u32)>,
    /// Answered without a batch.
    unchanged: RecentCalls<Result<Done, FsError>>,
    /// Slots that hold nothing to be remembered, and the slots that were never used.
    free: Vec<u32>,
    unused: std::ops::Range<u32>,
    next_seq: u64,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            running: HashMap::new(),
            done: RecentCalls::new(SLOTS as usize),
            unchanged: RecentCalls::new(SLOTS as usize),
            free: Vec::new(),
            unused: 0..SLOTS,
            next_seq: 0,
        }
    }
}

impl Calls {
    fn answer(&self, id: &CallId) -> Option<Result<Done, FsError>> {
        let done = self.done.get(id).map(|(done, _)| Ok(*done));
        done.or_else(|| self.unchanged.get(id).cloned())
    }

    /// A slot for the next reply; that of a call which is forgotten for it, if need be.
    fn take_slot(&mut self) -> Option<u32> {
        let free = self.free.pop().or_else(|| self.unused.next());
        free.or_else(|| self.done.forget_one().map(|(_, slot)| slot))
    }

    fn remember(&mut self, id: CallId, done: Done, slot: u32) {
        self.running.remove(&id);
        if let Some((_, slot)) = self.done.insert(id, (done, slot)) {
            self.free.push(slot);
        }
    }

    fn remember_unchanged(&mut self, id: CallId, answer: Result<Done, FsError>) {
        self.running.remove(&id);
        self.unchanged.insert(id, answer);
    }
}

/// The calls that were answered or are being answered.
#[derive(Default)]
pub struct ReplyCache {
    calls: Mutex<Calls>,
}

/// The first arrival of a call, or a retransmission of it.
pub enum Begun {
    First(ReplySlot),
    Repeated(Result<Done, FsError>),
}

/// The slot of an answer that a batch carries. If the batch is not submitted, it is free again.
pub struct Recorded<'a>(Option<(&'a ReplyCache, u32)>);

/// A call to be done. If it is dropped without an answer, it is forgotten.
pub struct ReplySlot(Option<Attempt>);

struct Attempt {
    cache: Arc<ReplyCache>,
    id: CallId,
    ended: CancellationToken,
    remembered: AtomicBool,
}

/// Returns whether a call that failed with this error was answered for good: no retransmission of
/// it may be done. Otherwise the client is asked to retry, and sends another call, or the file
/// handle or the volume is gone for good.
fn is_final(error: &FsError) -> bool {
    match error {
        FsError::NotFound
        | FsError::Exists
        | FsError::NotDirectory
        | FsError::IsDirectory
        | FsError::NotEmpty
        | FsError::NameTooLong
        | FsError::Access
        | FsError::NotOwner
        | FsError::NoSpace
        | FsError::NoInodes
        | FsError::ReadOnly
        | FsError::TooBig
        | FsError::TooManyLinks
        | FsError::CrossDevice
        | FsError::Invalid(_)
        | FsError::NotSync
        | FsError::BadCookie
        | FsError::NotSupported => true,
        FsError::Stale
        | FsError::Busy(_)
        | FsError::Unavailable(_)
        | FsError::Fenced
        | FsError::Corrupt(_)
        | FsError::Internal(_) => false,
    }
}

impl ReplyCache {
    pub async fn load(committer: &Committer) -> Result<Self, FsError> {
        let rows = committer.scan(key::reply(0), key::reply(u32::MAX), SLOTS as usize).await?;
        let mut calls =
            Calls { free: (0..SLOTS).rev().collect(), unused: 0..0, ..Calls::default() };
        let mut replies = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            let Some(Key::Reply(slot)) = Key::parse(&key) else {
                return Err(FsError::Corrupt(
                    "an unexpected key in the range of the duplicate-reply cache".to_owned(),
                ));
            };
            replies.push((slot, Reply::decode(&row)?));
        }
        let taken: HashSet<u32> = replies.iter().map(|(slot, _)| *slot).collect();
        calls.free.retain(|slot| !taken.contains(slot));
        replies.sort_by_key(|(_, reply)| reply.seq);
        for (slot, Reply { client, xid, checksum, object, seq }) in replies {
            let object = object.map(|(ino, generation)| FileRef { ino, generation });
            let id = CallId { client, xid, checksum };
            calls.remember(id, Done { ticket: Ticket::default(), object }, slot);
            calls.next_seq = seq + 1;
        }
        Ok(Self { calls: Mutex::new(calls) })
    }

    /// Waits while the same call is in progress.
    pub async fn begin(self: &Arc<Self>, call: Option<CallId>) -> Begun {
        let Some(id) = call else { return Begun::First(ReplySlot(None)) };
        loop {
            let ended = {
                let mut calls = self.calls.lock();
                if let Some(answer) = calls.answer(&id) {
                    return Begun::Repeated(answer);
                }
                match calls.running.entry(id) {
                    Entry::Vacant(free) => {
                        let ended = free.insert(CancellationToken::new()).clone();
                        let remembered = AtomicBool::new(false);
                        let cache = self.clone();
                        let attempt = Attempt { cache, id, ended, remembered };
                        return Begun::First(ReplySlot(Some(attempt)));
                    }
                    Entry::Occupied(running) => running.get().clone(),
                }
            };
            ended.cancelled().await;
        }
    }
}

impl ReplySlot {
    /// The reply slot of a call that is never retransmitted.
    pub fn unrepeated() -> Self {
        Self(None)
    }

    /// Puts the answer into the call's batch.
    pub fn record(&self, batch: &mut Batch, object: Option<FileRef>) -> Recorded<'_> {
        let Some(Attempt { cache, id, .. }) = &self.0 else { return Recorded(None) };
        let mut calls = cache.calls.lock();
        // None: as many calls are being recorded at this moment.
        let Some(slot) = calls.take_slot() else { return Recorded(None) };
        let seq = calls.next_seq;
        calls.next_seq += 1;
        let object = object.map(|file| (file.ino, file.generation));
        let reply = Reply { client: id.client, xid: id.xid, checksum: id.checksum, object, seq };
        batch.put(key::reply(slot), &reply);
        Recorded(Some((cache, slot)))
    }

    /// The batch was submitted.
    pub fn done(&self, recorded: Recorded<'_>, done: Done) {
        if let Some((_, slot)) = recorded.0 {
            self.remember(|calls, id| {
                calls.remember(id, done, slot);
                std::mem::forget(recorded);
            });
        }
    }

    /// The call succeeded and there was nothing to change.
    pub fn unchanged(&self, done: Done) {
        self.remember(|calls, id| calls.remember_unchanged(id, Ok(done)));
    }

    pub fn failed(&self, error: &FsError) {
        if is_final(error) {
            self.remember(|calls, id| calls.remember_unchanged(id, Err(error.clone())));
        }
    }

    /// The first answer counts: a call that fails after its batch was submitted has taken effect.
    fn remember(&self, remember: impl FnOnce(&mut Calls, CallId)) {
        if let Some(Attempt { cache, id, ended, remembered }) = &self.0
            && !remembered.swap(true, Ordering::Relaxed)
        {
            remember(&mut cache.calls.lock(), *id);
            ended.cancel();
        }
    }
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        if let Some((cache, slot)) = self.0.take() {
            cache.calls.lock().free.push(slot);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !*self.remembered.get_mut() {
            self.cache.calls.lock().running.remove(&self.id);
            self.ended.cancel();
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
        Done {
            ticket: Ticket(ticket),
            object: Some(FileRef { ino: InodeNo(ticket), generation: 1 }),
        }
    }

    async fn perform(cache: &Arc<ReplyCache>, xid: u32) -> u32 {
        let Begun::First(first) = cache.begin(call(xid)).await else {
            panic!("{xid} was done before")
        };
        let recorded = first.record(&mut Batch::default(), None);
        let slot = recorded.0.unwrap().1;
        first.done(recorded, done(u64::from(xid)));
        slot
    }

    #[tokio::test]
    async fn a_repeat_waits_and_gets_the_first_answer() {
        let cache = Arc::new(ReplyCache::default());
        let Begun::First(first) = cache.begin(call(1)).await else { panic!() };
        let again = tokio::spawn({
            let cache = cache.clone();
            async move { cache.begin(call(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!again.is_finished());
        let recorded = first.record(&mut Batch::default(), None);
        first.done(recorded, done(7));
        assert!(matches!(again.await.unwrap(), Begun::Repeated(Ok(answer)) if answer == done(7)));
    }

    async fn fail(cache: &Arc<ReplyCache>, xid: u32, error: &FsError) {
        let Begun::First(first) = cache.begin(call(xid)).await else {
            panic!("{xid} was answered before")
        };
        first.failed(error);
    }

    #[tokio::test]
    async fn a_call_that_failed_for_now_is_tried_again() {
        let cache = Arc::new(ReplyCache::default());
        drop(cache.begin(call(1)).await);
        for error in [FsError::Unavailable(String::new()), FsError::Busy("")] {
            fail(&cache, 1, &error).await;
        }
        assert!(matches!(cache.begin(call(1)).await, Begun::First(_)));
        assert!(matches!(cache.begin(None).await, Begun::First(_)));
        let calls = cache.calls.lock();
        assert!(calls.running.is_empty() && calls.done.is_empty() && calls.unchanged.is_empty());
    }

    #[tokio::test]
    async fn a_call_that_changed_nothing_is_answered_as_it_was() {
        let cache = Arc::new(ReplyCache::default());
        fail(&cache, 1, &FsError::NotFound).await;
        let Begun::First(first) = cache.begin(call(2)).await else { panic!() };
        first.unchanged(done(2));
        assert!(matches!(cache.begin(call(1)).await, Begun::Repeated(Err(FsError::NotFound))));
        assert!(
            matches!(cache.begin(call(2)).await, Begun::Repeated(Ok(answer)) if answer == done(2))
        );
        let Begun::First(first) = cache.begin(call(3)).await else { panic!() };
        let recorded = first.record(&mut Batch::default(), None);
        first.done(recorded, done(3));
        first.failed(&FsError::NoSpace);
        assert!(
            matches!(cache.begin(call(3)).await, Begun::Repeated(Ok(_))),
            "its batch was submitted"
        );
    }

    #[tokio::test]
    async fn failures_are_bounded_and_make_no_change_forgotten() {
        let cache = Arc::new(ReplyCache::default());
        perform(&cache, u32::MAX).await;
        for xid in 0..SLOTS + 3 {
            fail(&cache, xid, &FsError::Exists).await;
        }
        let kept = cache.calls.lock().unchanged.len();
        assert_eq!(kept, SLOTS as usize);
        assert!(matches!(cache.begin(call(2)).await, Begun::First(_)));
        assert!(matches!(cache.begin(call(3)).await, Begun::Repeated(Err(FsError::Exists))));
        assert!(matches!(cache.begin(call(u32::MAX)).await, Begun::Repeated(Ok(_))));
    }

    #[tokio::test]
    async fn the_ring_is_bounded_and_forgets_the_oldest() {
        let cache = Arc::new(ReplyCache::default());
        for xid in 0..SLOTS + 3 {
            assert_eq!(perform(&cache, xid).await, xid % SLOTS);
        }
        let kept = cache.calls.lock().done.len();
        assert_eq!(kept, SLOTS as usize);
        assert!(
            matches!(cache.begin(call(3)).await, Begun::Repeated(Ok(answer)) if answer == done(3))
        );
        assert!(matches!(cache.begin(call(2)).await, Begun::First(_)));
    }

    #[tokio::test]
    async fn a_slot_whose_batch_was_not_submitted_is_used_again() {
        let cache = Arc::new(ReplyCache::default());
        let Begun::First(first) = cache.begin(call(1)).await else { panic!() };
        let recorded = first.record(&mut Batch::default(), None);
        assert!(matches!(recorded.0, Some((_, 0))));
        drop(recorded);
        first.failed(&FsError::NoInodes);
        assert_eq!(perform(&cache, 2).await, 0);
        assert_eq!(perform(&cache, 3).await, 1);
        assert!(matches!(cache.begin(call(1)).await, Begun::Repeated(Err(FsError::NoInodes))));
    }
}
