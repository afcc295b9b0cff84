//! Rate limits: requests of each caller, what is in progress at once, wrong tokens of each address.

use super::{Caller, Places};
use crate::control::TASKS_RUNNING_MAX;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Most callers and addresses that are remembered; those unused for the longest time go first.
const REMEMBERED_MAX: usize = 4096;
/// The wait after the first wrong token of an address; it doubles with each further one …
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// … up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// An address without a wrong token for this long starts over.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// Requests with a wrong token that wait at once. Right ones never wait behind them.
const WAITING_MAX: usize = 64;

/// Calls of all callers at once that take long or much memory: searches, comparisons, histories,
/// measurements, simulations.
const WORK_MAX: usize = 8;
/// The same of one caller.
const WORK_EACH_MAX: usize = 4;
/// Watchers at once, over whichever interface: for each of them the records of a pool are read
/// again and again.
const WATCHERS_MAX: usize = 16;
/// The same of one caller.
const WATCHERS_EACH_MAX: usize = 4;
/// Tasks of one caller that run at once.
const TASKS_EACH_MAX: usize = TASKS_RUNNING_MAX / 2;

/// The limits of each caller.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Requests a second, on average.
    pub per_second: u32,
    /// Requests that may come at once after a pause.
    pub burst: u32,
    /// Downloads of all callers at once; one caller has three quarters of them at most.
    pub downloads: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { per_second: 100, burst: 400, downloads: 128 }
    }
}

/// Whether a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// Not before this time has passed.
    After(Duration),
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

struct Failures {
    count: u32,
    last: Instant,
}

pub struct Limits {
    limits: RequestLimits,
    callers: Mutex<HashMap<Caller, Bucket>>,
    pub downloads: Places,
    pub watchers: Places,
    /// Calls that take long or much memory.
    pub work: Places,
    /// Tasks that were started over an interface.
    pub tasks: Places,
    failures: Mutex<HashMap<IpAddr, Failures>>,
    waiting: Semaphore,
}

impl Limits {
    pub fn new(limits: RequestLimits) -> Self {
        Self {
            limits,
            callers: Mutex::default(),
            downloads: Places::new(
                "downloads in progress",
                limits.downloads,
                share_of_one(limits.downloads),
            ),
            watchers: Places::new("watch streams", WATCHERS_MAX, WATCHERS_EACH_MAX),
            work: Places::new(
                "searches, comparisons and measurements in progress",
                WORK_MAX,
                WORK_EACH_MAX,
            ),
            tasks: Places::new("running tasks", TASKS_RUNNING_MAX, TASKS_EACH_MAX),
            failures: Mutex::default(),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }

    /// Counts a request of a caller.
    pub fn admit(&self, caller: &Caller) -> Admission {
        self.admit_at(caller, Instant::now())
    }

    fn admit_at(&self, caller: &Caller, now: Instant) -> Admission {
        let RequestLimits { per_second, burst, .. } = self.limits;
        let (rate, burst) = (f64::from(per_second.max(1)), f64::from(burst.max(1)));
        let mut callers = self.callers.lock();
        make_room(&mut callers, |bucket| bucket.at);
        let bucket = callers.entry(caller.clone()).or_insert(Bucket { tokens: burst, at: now });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * rate).min(burst);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Admission::Admitted;
        }
        Admission::After(Duration::from_secs_f64((1.0 - bucket.tokens) / rate))
    }

    /// Holds the answer to a wrong token back, for longer each time.
    pub async fn wrong_token(&self, from: Option<IpAddr>) -> Admission {
        let wait = self.next_wait(from, Instant::now());
        let Ok(_permit) = self.waiting.try_acquire() else { return Admission::After(LONGEST_WAIT) };
        tokio::time::sleep(wait).await;
        Admission::Admitted
    }

    fn next_wait(&self, from: Option<IpAddr>, now: Instant) -> Duration {
        let Some(from) = from else { return FIRST_WAIT };
        let mut failures = self.failures.lock();
        make_room(&mut failures, |failures| failures.last);
        let of = failures.entry(from).or_insert(Failures { count: 0, last: now });
        if now.saturating_duration_since(of.last) > FORGIVEN_AFTER {
            of.count = 0;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << of.count.min(16)).min(LONGEST_WAIT);
        (of.count, of.last) = (of.count.saturating_add(1), now);
        wait
    }
}

/// The part of a number of places that one caller may take: three quarters, and never all of
/// several.
pub fn share_of_one(all: usize) -> usize {
    (all - all.div_ceil(4)).max(1)
}

fn make_room<K: Clone + Eq + std::hash::Hash, V>(
    map: &mut HashMap<K, V>,
    used: impl Fn(&V) -> Instant,
) {
    if map.len() < REMEMBERED_MAX {
        return;
    }
    let mut times: Vec<Instant> = map.values().map(&used).collect();
    let (_, median, _) = times.select_nth_unstable(REMEMBERED_MAX / 2);
    let median = *median;
    map.retain(|_, value| used(value) > median);
}

#[cfg(test)]
mod tests {
    use super::super::Identified;
    use super::*;

    fn caller(uid: u32) -> Caller {
        Caller { name: String::new(), how: Identified::Peer { uid } }
    }

    #[test]
    fn a_caller_has_a_rate_of_its_own() {
        let limits = Limits::new(RequestLimits { per_second: 2, burst: 3, downloads: 1 });
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(limits.admit_at(&caller(1), start), Admission::Admitted);
        }
        let wait = Duration::from_millis(500);
        assert_eq!(limits.admit_at(&caller(1), start), Admission::After(wait));
        assert_eq!(limits.admit_at(&caller(2), start), Admission::Admitted);
        assert_eq!(limits.admit_at(&caller(1), start + wait), Admission::Admitted);
        assert_ne!(limits.admit_at(&caller(1), start + wait), Admission::Admitted);
    }

    #[test]
    fn downloads_have_places_and_no_caller_takes_all_of_them() {
        for (downloads, own) in [(1, 1), (2, 1), (3, 2), (4, 3), (128, 96)] {
            let limits = Limits::new(RequestLimits { downloads, ..RequestLimits::default() });
            let take = || limits.downloads.take(&caller(1)).ok();
            let held: Vec<_> = std::iter::from_fn(take).collect();
            assert_eq!(held.len(), own);
            assert_eq!(limits.downloads.take(&caller(2)).is_ok(), own < downloads);
            drop(held);
            assert!(limits.downloads.take(&caller(1)).is_ok());
        }
    }

    #[test]
    fn wrong_tokens_wait_longer_each_time() {
        let limits = Limits::new(RequestLimits::default());
        let (from, now) = (Some(IpAddr::from([127, 0, 0, 1])), Instant::now());
        let waits: Vec<u128> = (0..8).map(|_| limits.next_wait(from, now).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 4000, 4000]);
        let later = now + FORGIVEN_AFTER + Duration::from_secs(1);
        assert_eq!(limits.next_wait(from, later), FIRST_WAIT);
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let limits = Limits::new(RequestLimits::default());
        let start = Instant::now();
        for n in 0..3 * REMEMBERED_MAX {
            let (uid, at) = (u32::try_from(n).unwrap(), start + Duration::from_millis(n as u64));
            limits.admit_at(&caller(uid), at);
        }
        assert!(limits.callers.lock().len() <= REMEMBERED_MAX);
    }
}
