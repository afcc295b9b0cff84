//! The duplicate request cache (R20): a call that must not be done twice gets its first answer when
//! it is retransmitted.
//!
//! The answer is written in the same batch as the change, so that both are there or neither,
//! through restarts, take-overs and clones. A call in progress is an entry too: its retransmission
//! waits for it. The newest [`SLOTS`] calls are remembered; a client retransmits a call within
//! minutes and has few in flight at a time.
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
use crate::fs::row::{Reply, Row};
use parking_lot::Mutex;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::sync::CancellationToken;

/// Most calls remembered. A batch carries about 40 bytes for its own.
pub const SLOTS: u64 = 4096;

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The batch that holds it.
    pub ticket: Ticket,
    /// The object that it made or changed.
    pub object: Option<FileRef>,
}

enum Call {
    Running(CancellationToken),
    Done {
        done: Done,
        seq: u64,
    },
    /// Answered without a batch.
    Unchanged(Result<Done, FsError>),
}

#[derive(Default)]
struct Calls {
    calls: HashMap<CallId, Call>,
    slots: HashMap<u64, CallId>,
    next: u64,
    /// Those that changed nothing, the oldest first.
    unchanged: VecDeque<CallId>,
}

impl Calls {
    fn remember(&mut self, id: CallId, done: Done, seq: u64) {
        if let Some(old) = self.slots.insert(seq % SLOTS, id)
            && let Some(Call::Done { seq: at, .. }) = self.calls.get(&old)
            && at % SLOTS == seq % SLOTS
        {
            self.calls.remove(&old);
        }
        self.calls.insert(id, Call::Done { done, seq });
        self.next = self.next.max(seq + 1);
    }

    fn remember_unchanged(&mut self, id: CallId, answer: Result<Done, FsError>) {
        self.calls.insert(id, Call::Unchanged(answer));
        self.unchanged.push_back(id);
        if self.unchanged.len() > SLOTS as usize
            && let Some(oldest) = self.unchanged.pop_front()
        {
            self.calls.remove(&oldest);
        }
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
        let mut calls = Calls::default();
        let mut replies = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            if !matches!(Key::parse(&key), Some(Key::Reply(_))) {
                return Err(FsError::Corrupt(
                    "an unexpected key in the range of the duplicate-reply cache".to_owned(),
                ));
            }
            replies.push(Reply::decode(&row)?);
        }
        replies.sort_by_key(|reply| reply.seq);
        for Reply { client, xid, checksum, object, seq } in replies {
            let object = object.map(|(ino, generation)| FileRef { ino, generation });
            calls.remember(
                CallId { client, xid, checksum },
                Done { ticket: Ticket::default(), object },
                seq,
            );
        }
        Ok(Self { calls: Mutex::new(calls) })
    }

    /// Waits while the same call is in progress.
    pub async fn begin(self: &Arc<Self>, call: Option<CallId>) -> Begun {
        let Some(id) = call else { return Begun::First(ReplySlot(None)) };
        loop {
            let ended = match self.calls.lock().calls.entry(id) {
                Entry::Vacant(free) => {
                    let ended = CancellationToken::new();
                    free.insert(Call::Running(ended.clone()));
                    let remembered = AtomicBool::new(false);
                    return Begun::First(ReplySlot(Some(Attempt {
                        cache: self.clone(),
                        id,
                        ended,
                        remembered,
                    })));
                }
                Entry::Occupied(entry) => match entry.get() {
                    Call::Done { done, .. } => return Begun::Repeated(Ok(*done)),
                    Call::Unchanged(answer) => return Begun::Repeated(answer.clone()),
                    Call::Running(ended) => ended.clone(),
                },
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

    /// Puts the answer into the call's batch. Returns its number for [`Self::done`].
    pub fn record(&self, batch: &mut Batch, object: Option<FileRef>) -> u64 {
        let Some(Attempt { cache, id, .. }) = &self.0 else { return 0 };
        let mut calls = cache.calls.lock();
        let seq = calls.next;
        calls.next += 1;
        let object = object.map(|file| (file.ino, file.generation));
        let reply = Reply { client: id.client, xid: id.xid, checksum: id.checksum, object, seq };
        batch.put(key::reply((seq % SLOTS) as u32), &reply);
        seq
    }

    /// The batch was submitted.
    pub fn done(&self, seq: u64, done: Done) {
        self.remember(|calls, id| calls.remember(id, done, seq));
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

impl Drop for Attempt {
    fn drop(&mut self) {
        if !*self.remembered.get_mut() {
            self.cache.calls.lock().calls.remove(&self.id);
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

    async fn perform(cache: &Arc<ReplyCache>, xid: u32) -> u64 {
        let Begun::First(first) = cache.begin(call(xid)).await else {
            panic!("{xid} was done before")
        };
        let seq = first.record(&mut Batch::default(), None);
        first.done(seq, done(u64::from(xid)));
        seq
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
        let seq = first.record(&mut Batch::default(), None);
        first.done(seq, done(7));
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
        assert!(cache.calls.lock().calls.is_empty());
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
        let seq = first.record(&mut Batch::default(), None);
        first.done(seq, done(3));
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
        for xid in 0..SLOTS as u32 + 3 {
            fail(&cache, xid, &FsError::Exists).await;
        }
        assert_eq!(cache.calls.lock().calls.len(), SLOTS as usize + 1);
        assert!(matches!(cache.begin(call(2)).await, Begun::First(_)));
        assert!(matches!(cache.begin(call(3)).await, Begun::Repeated(Err(FsError::Exists))));
        assert!(matches!(cache.begin(call(u32::MAX)).await, Begun::Repeated(Ok(_))));
    }

    #[tokio::test]
    async fn the_ring_is_bounded_and_forgets_the_oldest() {
        let cache = Arc::new(ReplyCache::default());
        for xid in 0..SLOTS as u32 + 3 {
            assert_eq!(perform(&cache, xid).await, u64::from(xid));
        }
        assert_eq!(cache.calls.lock().calls.len(), SLOTS as usize);
        assert!(
            matches!(cache.begin(call(3)).await, Begun::Repeated(Ok(answer)) if answer == done(3))
        );
        assert!(matches!(cache.begin(call(2)).await, Begun::First(_)));
    }
}
