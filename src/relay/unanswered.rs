//! The calls of one connection that have no reply yet, in the order of their arrival.

use super::budget::VolumeShare;
use crate::nfs::{LARGE_RECORD_BYTES, is_reply, xid_of};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Instant;

/// Most calls of a connection: as many as the kernel's client usually has in flight.
const CALLS_MAX: usize = 1024;
/// Most bytes of a connection.
const BYTES_MAX: usize = 8 << 20;

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
    /// Bytes taken for a large call that is being received.
    receiving: usize,
    /// The volume's bytes; it holds `bytes` and `receiving` of them.
    share: VolumeShare,
}

impl Drop for UnansweredCalls {
    fn drop(&mut self) {
        self.share.give_back(self.bytes + self.receiving);
    }
}

impl UnansweredCalls {
    pub fn new(share: VolumeShare) -> Self {
        Self { calls: VecDeque::new(), sent: 0, bytes: 0, receiving: 0, share }
    }

    /// # Errors
    /// The record is no call.
    pub fn add(&mut self, record: Bytes) -> Result<(), NoCall> {
        let xid = xid_of(&record).filter(|_| !is_reply(&record)).ok_or(NoCall)?;
        let received = std::mem::take(&mut self.receiving);
        // A retransmission: the reply to the first copy is that of both. A second copy that stayed
        // here after its reply would be carried out again on a later route.
        if self.calls.iter().any(|call| call.xid == xid && call.record == record) {
            self.share.give_back(received);
            return Ok(());
        }
        // A smaller one would keep the buffer that it was received in, with its neighbours.
        let record = match record.len() {
            ..LARGE_RECORD_BYTES => Bytes::copy_from_slice(&record),
            _ => record,
        };
        self.bytes += record.len();
        self.share.replace(received, record.len());
        self.calls.push_back(Unanswered { xid, record, since: Instant::now() });
        Ok(())
    }

    /// Returns whether another call may be read, or the rest of a large one that has begun to
    /// arrive.
    pub fn may_read(&self, large: usize) -> bool {
        if large > 0 {
            return self.receiving > 0;
        }
        // One always may: a connection must not wait for ever for what others hold.
        self.calls.is_empty() || self.is_below_limits() && self.share.has_room()
    }

    pub fn is_below_limits(&self) -> bool {
        self.calls.len() < CALLS_MAX && self.bytes < BYTES_MAX
    }

    /// Takes the bytes of a large call that has begun to arrive, before it is received. Returns
    /// false while there is no room. A call that has them goes on, also where it turns out longer.
    pub fn receive(&mut self, bytes: usize) -> bool {
        if self.receiving == 0 && self.is_below_limits() && self.share.try_take(bytes) {
            self.receiving = bytes;
        }
        self.receiving > 0
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
        self.share.give_back(call.record.len());
        true
    }

    /// Since when the oldest one waits.
    pub fn oldest(&self) -> Option<Instant> {
        self.calls.front().map(|call| call.since)
    }
}

#[cfg(test)]
mod tests {
    use super::super::RelayBudget;
    use super::*;

    const LARGE: usize = 1 << 20;

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
        let mut calls = UnansweredCalls::new(budget.share());
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
    fn calls_and_bytes_are_bounded_and_a_small_one_always_fits() {
        let budget = RelayBudget::new(4 << 20);
        let mut many = UnansweredCalls::new(budget.share());
        for xid in 0..CALLS_MAX as u32 {
            assert!(many.may_read(0));
            many.add(call(xid, 40)).unwrap();
        }
        assert!(!many.may_read(0) && !many.receive(LARGE));
        drop(many);
        let share = budget.share();
        let (mut one, mut other) =
            (UnansweredCalls::new(share.clone()), UnansweredCalls::new(share));
        for xid in 0..2 {
            assert!(one.receive(LARGE));
            one.add(call(xid, LARGE)).unwrap();
        }
        assert!(!one.may_read(0) && !one.receive(LARGE));
        assert!(other.may_read(0) && !other.receive(LARGE), "of the same volume");
        other.add(call(1, 100)).unwrap();
        assert!(!other.may_read(0));
        assert!(UnansweredCalls::new(budget.share()).receive(LARGE), "of another volume");
        let mut large = UnansweredCalls::new(RelayBudget::new(usize::MAX).share());
        for xid in 0..BYTES_MAX as u32 >> 20 {
            assert!(large.may_read(0) && large.receive(LARGE));
            large.add(call(xid, LARGE)).unwrap();
        }
        assert!(!large.may_read(0) && !large.receive(LARGE));
    }

    #[test]
    fn a_call_is_counted_once_from_its_first_byte_to_its_reply() {
        let budget = RelayBudget::new(4 << 20);
        let mut calls = UnansweredCalls::new(budget.share());
        // Each is asked for again whenever more of it has arrived.
        assert!(calls.receive(LARGE) && calls.receive(LARGE));
        assert_eq!(budget.used(), LARGE);
        calls.add(call(1, LARGE + 8)).unwrap();
        assert_eq!(budget.used(), LARGE + 8);
        assert!(calls.receive(1000));
        calls.add(call(1, LARGE + 8)).unwrap();
        assert_eq!(budget.used(), LARGE + 8, "a copy is not kept");
        assert_eq!(xids(&mut calls), [1]);
        assert!(calls.answered(1));
        assert_eq!(budget.used(), 0);
        assert!(calls.receive(LARGE));
        drop(calls);
        assert_eq!(budget.used(), 0, "it was not received to its end");
    }

    /// A record that was received with many others must not keep their buffer.
    #[test]
    fn a_small_call_holds_no_more_than_its_bytes() {
        let mut calls = UnansweredCalls::new(RelayBudget::new(1 << 20).share());
        let buffer = call(1, LARGE_RECORD_BYTES - 1);
        calls.add(buffer.clone()).unwrap();
        assert!(buffer.is_unique());
    }

    #[test]
    fn what_is_no_call_is_refused() {
        let mut calls = UnansweredCalls::new(RelayBudget::new(1).share());
        let mut reply = call(1, 40).to_vec();
        reply[7] = 1;
        assert_eq!(calls.add(reply.into()), Err(NoCall));
        assert_eq!(calls.add(Bytes::from_static(b"abc")), Err(NoCall));
        assert_eq!(calls.oldest(), None);
    }
}
