//! The calls of one connection that have no reply yet, in the order of their arrival.

use crate::nfs::{is_reply, xid_of};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Most calls of a connection: as many as the kernel's client usually has in flight.
const CALLS_MAX: usize = 1024;
/// Most bytes of a connection.
const BYTES_MAX: usize = 8 << 20;
/// Bytes that a connection may hold whatever others do: an owner that cannot be reached must not
/// hold up the volumes of others.
const BYTES_MIN: usize = 128 << 10;
/// A record up to this size is copied: it would keep the buffer that it was received in.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// The bytes of unanswered calls of all connections together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RelayBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    max: usize,
    used: AtomicUsize,
    fewer: Notify,
}

impl RelayBudget {
    pub fn new(max: usize) -> Self {
        Self(Arc::new(BudgetState { max, used: AtomicUsize::new(0), fewer: Notify::new() }))
    }

    fn add(&self, bytes: usize) {
        self.0.used.fetch_add(bytes, Ordering::AcqRel);
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::AcqRel);
        self.0.fewer.notify_waiters();
    }

    fn has_room(&self) -> bool {
        self.0.used.load(Ordering::Acquire) < self.0.max
    }

    /// Resolves when a reply to any call has arrived.
    pub(super) fn fewer(&self) -> Notified<'_> {
        self.0.fewer.notified()
    }

    #[cfg(test)]
    fn used(&self) -> usize {
        self.0.used.load(Ordering::Acquire)
    }
}

/// A record that is no call: its connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record that is no call")]
pub struct NoCall;

struct Unanswered {
    xid: u32,
    record: Bytes,
    since: Instant,
}

/// See the module's documentation.
pub struct UnansweredCalls {
    calls: VecDeque<Unanswered>,
    /// The number of those at the front that were sent on the present route.
    sent: usize,
    bytes: usize,
    budget: RelayBudget,
}

impl Drop for UnansweredCalls {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

impl UnansweredCalls {
    pub fn new(budget: RelayBudget) -> Self {
        Self { calls: VecDeque::new(), sent: 0, bytes: 0, budget }
    }

    /// # Errors
    /// The record is no call.
    pub fn add(&mut self, record: Bytes) -> Result<(), NoCall> {
        let xid = xid_of(&record).filter(|_| !is_reply(&record)).ok_or(NoCall)?;
        // A retransmission: the reply to the first copy is that of both. A second copy that stayed
        // here after its reply would be carried out again on a later route.
        if self.calls.iter().any(|call| call.xid == xid && call.record == record) {
            return Ok(());
        }
        let record = match record.len() {
            ..=COPIED_BYTES_MAX => Bytes::copy_from_slice(&record),
            _ => record,
        };
        self.bytes += record.len();
        self.budget.add(record.len());
        self.calls.push_back(Unanswered { xid, record, since: Instant::now() });
        Ok(())
    }

    /// Returns whether another call may be read. One always may, or a connection could wait for
    /// ever for what others hold.
    pub fn has_room(&self) -> bool {
        self.calls.is_empty()
            || self.calls.len() < CALLS_MAX
                && self.bytes < BYTES_MAX
                && (self.bytes < BYTES_MIN || self.budget.has_room())
    }

    /// The next call to send on the present route; it counts as sent then.
    pub fn next_unsent(&mut self) -> Option<Bytes> {
        let record = self.calls.get(self.sent)?.record.clone();
        self.sent += 1;
        Some(record)
    }

    /// All are to be sent again, on another route.
    pub fn send_again(&mut self) {
        self.sent = 0;
    }

    /// Removes a call whose reply has arrived. Returns false for one that was not sent.
    pub fn answered(&mut self, xid: u32) -> bool {
        let position = self.calls.iter().take(self.sent).position(|call| call.xid == xid);
        let Some(call) = position.and_then(|at| self.calls.remove(at)) else { return false };
        self.sent -= 1;
        self.bytes -= call.record.len();
        self.budget.give_back(call.record.len());
        true
    }

    /// Since when the oldest one waits.
    pub fn oldest(&self) -> Option<Instant> {
        self.calls.front().map(|call| call.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(xid: u32, len: usize) -> Bytes {
        let mut record = xid.to_be_bytes().to_vec();
        record.extend(0u32.to_be_bytes());
        record.resize(len.max(8), 7);
        record.into()
    }

    fn xids(calls: &mut UnansweredCalls) -> Vec<u32> {
        std::iter::from_fn(|| calls.next_unsent().and_then(|record| xid_of(&record))).collect()
    }

    #[test]
    fn what_has_no_reply_is_sent_again_in_its_order() {
        let budget = RelayBudget::new(1 << 20);
        let mut calls = UnansweredCalls::new(budget.clone());
        for xid in [5, 3, 9, 3] {
            calls.add(call(xid, 100)).unwrap();
        }
        assert!(!calls.answered(5), "a reply to a call that was never sent");
        assert_eq!(xids(&mut calls), [5, 3, 9], "a copy waits for the reply to the first");
        assert!(calls.answered(9) && !calls.answered(9));
        calls.add(call(1, 100)).unwrap();
        assert_eq!(xids(&mut calls), [1]);
        calls.send_again();
        assert_eq!(xids(&mut calls), [5, 3, 1]);
        assert_eq!(budget.used(), 300);
        drop(calls);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn calls_and_bytes_are_bounded_and_one_always_fits() {
        let budget = RelayBudget::new(1 << 20);
        let mut many = UnansweredCalls::new(budget.clone());
        for xid in 0..CALLS_MAX as u32 {
            assert!(many.has_room());
            many.add(call(xid, 40)).unwrap();
        }
        assert!(!many.has_room());
        drop(many);
        let (mut one, mut other) =
            (UnansweredCalls::new(budget.clone()), UnansweredCalls::new(budget));
        one.add(call(1, 1 << 20)).unwrap();
        assert!(!one.has_room() && other.has_room());
        other.add(call(1, 1 << 20)).unwrap();
        assert!(!other.has_room());
        let mut large = UnansweredCalls::new(RelayBudget::new(usize::MAX));
        for xid in 0..BYTES_MAX as u32 >> 20 {
            assert!(large.has_room());
            large.add(call(xid, 1 << 20)).unwrap();
        }
        assert!(!large.has_room());
    }

    #[test]
    fn what_is_no_call_is_refused() {
        let mut calls = UnansweredCalls::new(RelayBudget::new(1));
        let mut reply = call(1, 40).to_vec();
        reply[7] = 1;
        assert_eq!(calls.add(reply.into()), Err(NoCall));
        assert_eq!(calls.add(Bytes::from_static(b"abc")), Err(NoCall));
        assert_eq!(calls.oldest(), None);
    }
}
