//! The calls that were answered last, a bounded number of them, shared between clients by need.
//!
//! Where there is no room, what is older than [`RETRANSMITTED_WITHIN`] goes first, whoever sent it:
//! clients that have gone keep nothing from those that are there. Otherwise the client that has the
//! most loses its oldest. So each client keeps at least its share of the newest, `max / clients`,
//! whatever the others send: the one that is cut off, and sends its calls again when it is back, is
//! the one that sent nothing meanwhile.

use crate::fs::api::CallId;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The time for which a client that is alive may be cut off and send a call again.
const RETRANSMITTED_WITHIN: Duration = Duration::from_secs(3600);

/// Answered calls, with a value each.
#[derive(Debug)]
pub struct RecentCalls<V> {
    max: usize,
    calls: HashMap<CallId, V>,
    /// The calls of each client, the oldest first.
    clients: HashMap<u64, VecDeque<Answered>>,
    /// The clients by the number of their calls.
    by_count: BTreeSet<(usize, u64)>,
    /// The clients by their oldest call.
    by_age: BTreeSet<(u64, u64)>,
    next_seq: u64,
}

#[derive(Clone, Copy, Debug)]
struct Answered {
    id: CallId,
    /// Counts all calls.
    seq: u64,
    at: Instant,
}

impl<V> RecentCalls<V> {
    /// `max`: at least one.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            calls: Default::default(),
            clients: Default::default(),
            by_count: Default::default(),
            by_age: Default::default(),
            next_seq: 0,
        }
    }

    pub fn get(&self, id: &CallId) -> Option<&V> {
        self.calls.get(id)
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Adds the newest call. Returns the value of the call that is forgotten for it, or of an
    /// earlier one of the same id.
    pub fn insert(&mut self, id: CallId, value: V) -> Option<V> {
        self.insert_at(id, value, Instant::now())
    }

    fn insert_at(&mut self, id: CallId, value: V, now: Instant) -> Option<V> {
        if let Some(earlier) = self.calls.get_mut(&id) {
            return Some(std::mem::replace(earlier, value));
        }
        let forgotten = if self.calls.len() >= self.max { self.forget_one_at(now) } else { None };
        self.calls.insert(id, value);
        let seq = self.next_seq;
        self.next_seq += 1;
        let calls = self.clients.entry(id.client).or_default();
        if calls.is_empty() {
            self.by_age.insert((seq, id.client));
        }
        self.by_count.remove(&(calls.len(), id.client));
        calls.push_back(Answered { id, seq, at: now });
        self.by_count.insert((calls.len(), id.client));
        forgotten
    }

    /// Forgets a call for the next one.
    pub fn forget_one(&mut self) -> Option<V> {
        self.forget_one_at(Instant::now())
    }

    fn forget_one_at(&mut self, now: Instant) -> Option<V> {
        let (_, eldest) = *self.by_age.first()?;
        let oldest = self.clients.get(&eldest)?.front()?;
        let is_old = now.saturating_duration_since(oldest.at) > RETRANSMITTED_WITHIN;
        let client = if is_old { eldest } else { self.by_count.last()?.1 };
        let calls = self.clients.get_mut(&client)?;
        self.by_count.remove(&(calls.len(), client));
        let Answered { id, seq, .. } = calls.pop_front()?;
        self.by_age.remove(&(seq, client));
        match calls.front() {
            Some(next) => {
                self.by_age.insert((next.seq, client));
                self.by_count.insert((calls.len(), client));
            }
            None => drop(self.clients.remove(&client)),
        }
        self.calls.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(client: u64, xid: u32) -> CallId {
        CallId { client, xid, checksum: 2 }
    }

    impl<V> RecentCalls<V> {
        fn has(&self, client: u64, xid: u32) -> bool {
            self.get(&id(client, xid)).is_some()
        }
    }

    #[test]
    fn the_oldest_of_one_client_is_forgotten() {
        let mut recent = RecentCalls::new(3);
        for xid in 0..3 {
            assert_eq!(recent.insert(id(1, xid), xid), None);
        }
        assert_eq!(recent.insert(id(1, 2), 20), Some(2), "the same call again");
        assert_eq!(recent.insert(id(1, 3), 3), Some(0));
        assert_eq!((recent.len(), recent.get(&id(1, 2))), (3, Some(&20)));
        assert!(!recent.has(1, 0));
        for expected in [Some(1), Some(20), Some(3), None] {
            assert_eq!(recent.forget_one(), expected);
        }
        assert!(recent.is_empty() && recent.clients.is_empty());
        assert!(recent.by_count.is_empty() && recent.by_age.is_empty());
    }

    #[test]
    fn a_client_keeps_its_share_whatever_others_send() {
        const MAX: usize = 64;
        let mut recent = RecentCalls::new(MAX);
        for xid in 0..20 {
            recent.insert(id(7, xid), ());
        }
        for xid in 0..1000 {
            recent.insert(id(1 + u64::from(xid) % 3, xid), ());
        }
        assert_eq!(recent.len(), MAX);
        // A quarter of 64, or one less in favour of the one that came last.
        for client in [7, 1, 2, 3] {
            assert!((0..1000).filter(|xid| recent.has(client, *xid)).count() >= 15, "{client}");
        }
        assert!((5..20).all(|xid| recent.has(7, xid)), "its newest");
    }

    #[test]
    fn clients_that_have_gone_keep_nothing_from_one_that_is_there() {
        const MAX: usize = 64;
        let (mut recent, start) = (RecentCalls::new(MAX), Instant::now());
        for client in 0..60 {
            recent.insert_at(id(client, 1), (), start);
        }
        let later = start + RETRANSMITTED_WITHIN + Duration::from_secs(1);
        for xid in 0..MAX as u32 {
            recent.insert_at(id(99, xid), (), later);
        }
        assert!((0..MAX as u32).all(|xid| recent.has(99, xid)));
        assert_eq!((recent.len(), recent.clients.len(), recent.by_age.len()), (MAX, 1, 1));
    }
}
