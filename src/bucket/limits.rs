//! Limits on requests, and their counts.

use super::error::{Meaning, TimedOut, generic, is, meaning};
use super::rate::Rate;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Keys in a page of a listing, and in one delete request (S3's limits for both).
pub(super) const PAGE_KEYS: u64 = 1000;
/// Time limit of one attempt that has many steps.
const STEPS_MAX: Duration = Duration::from_secs(600);

/// Limits on every request to a store. An outage ends in an error after `total`, never in a hang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time limit of one attempt of a request without a body.
    pub attempt: Duration,
    /// Time limit of all attempts of a request and the pauses between them.
    pub total: Duration,
    /// Both limits grow by the time that a body takes at this rate, or at the measured rate of
    /// uploads ([`Rate`]).
    pub bytes_per_sec: u64,
    /// Pause before the second attempt; doubles with each further one up to `pause_max`, with
    /// jitter.
    pub pause: Duration,
    pub pause_max: Duration,
    /// Requests in flight.
    pub concurrent: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(10),
            total: Duration::from_secs(30),
            bytes_per_sec: 1 << 20,
            pause: Duration::from_millis(50),
            pause_max: Duration::from_secs(3),
            concurrent: 256,
        }
    }
}

impl Limits {
    fn body(&self, bytes: u64) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / self.bytes_per_sec.max(1))
    }

    /// The pause after attempt number `attempt` (from 0): between half and all of the exponential
    /// one, so that clients that failed together do not come back together.
    fn pause_after(&self, attempt: u32) -> Duration {
        let full = self
            .pause
            .saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX))
            .min(self.pause_max);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum RequestKind {
    Get,
    Put,
    List,
    Delete,
    Head,
}

/// Counts of requests to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub get: u64,
    pub put: u64,
    /// One for each page of 1,000 keys.
    pub list: u64,
    /// One for each 1,000 keys.
    pub delete: u64,
    pub head: u64,
}

impl Requests {
    pub fn total(&self) -> u64 {
        self.get + self.put + self.list + self.delete + self.head
    }
}

impl std::ops::Sub for Requests {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            get: self.get - before.get,
            put: self.put - before.put,
            list: self.list - before.list,
            delete: self.delete - before.delete,
            head: self.head - before.head,
        }
    }
}

/// The knowledge whether an earlier attempt of a request that then failed may have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Earlier {
    None,
    Unknown,
}

/// Tells whether an attempt of a put is abandoned at its time-out. Without a limit its outcome is
/// always known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Puts {
    Limited,
    Unlimited,
}

/// Runs requests within the limits, and counts them.
#[derive(Debug)]
pub(super) struct RequestLimiter {
    limits: Limits,
    puts: Puts,
    /// The rate of uploads.
    pub rate: Rate,
    permits: Semaphore,
    counts: [AtomicU64; 5],
}

impl RequestLimiter {
    pub fn new(limits: Limits, puts: Puts) -> Self {
        let permits = Semaphore::new(limits.concurrent.clamp(1, Semaphore::MAX_PERMITS));
        let rate = Rate::new(limits.bytes_per_sec);
        Self { limits, puts, rate, permits, counts: Default::default() }
    }

    pub fn puts(&self) -> Puts {
        self.puts
    }

    fn body(&self, kind: RequestKind, bytes: u64) -> Duration {
        match kind {
            RequestKind::Put => self.rate.time(bytes),
            _ => self.limits.body(bytes),
        }
    }

    pub fn count(&self, kind: RequestKind, n: u64) {
        self.counts[kind as usize].fetch_add(n, Ordering::Relaxed);
    }

    pub fn requests(&self) -> Requests {
        let [get, put, list, delete, head] =
            [0, 1, 2, 3, 4].map(|i: usize| self.counts[i].load(Ordering::Relaxed));
        Requests { get, put, list, delete, head }
    }

    /// One attempt, within its own limit.
    pub async fn once<T>(
        &self,
        kind: RequestKind,
        bytes: u64,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        self.attempt(kind, self.limits.attempt + self.body(kind, bytes), request).await
    }

    async fn attempt<T>(
        &self,
        kind: RequestKind,
        limit: Duration,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        let result = self.bounded(kind, limit, request).await;
        // An operation that a store does not implement is answered without a request.
        if !matches!(
            result,
            Err(object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. })
        ) {
            self.count(kind, 1);
        }
        result
    }

    async fn bounded<T>(
        &self,
        kind: RequestKind,
        limit: Duration,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        let permitted = async {
            let _permit = self.permits.acquire().await;
            request.await
        };
        match (kind, self.puts) {
            (RequestKind::Put, Puts::Unlimited) => permitted.await,
            _ => tokio::time::timeout(limit, permitted)
                .await
                .unwrap_or_else(|_| Err(generic(TimedOut(limit)))),
        }
    }

    /// Retries until an attempt succeeds, fails permanently, or time is up. `bytes`: the expected
    /// size of the transfer.
    pub async fn run<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        kind: RequestKind,
        bytes: u64,
        request: impl FnMut() -> F,
    ) -> (object_store::Result<T>, Earlier) {
        let body = self.body(kind, bytes);
        let deadline = Instant::now() + self.limits.total + body;
        let within = self.limits.attempt + body;
        self.repeat(kind, deadline, |left| within.min(left), request).await
    }

    /// A step of an attempt, within the limit for a request.
    pub async fn step<T>(
        &self,
        step: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        let limit = self.limits.attempt;
        tokio::time::timeout(limit, step).await.unwrap_or_else(|_| Err(generic(TimedOut(limit))))
    }

    /// Like [`Self::run`] for a request whose steps have limits of their own, and whose length is
    /// not known before: none is retried after `total`.
    pub async fn run_stepped<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        kind: RequestKind,
        request: impl FnMut() -> F,
    ) -> object_store::Result<T> {
        self.repeat(kind, Instant::now() + self.limits.total, |_| STEPS_MAX, request).await.0
    }

    /// The deadline of a request that begins now, pauses included.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.limits.total
    }

    /// Waits before attempt number `attempt + 1`; `false`: it would begin too late.
    pub async fn pause(&self, attempt: u32, deadline: Instant) -> bool {
        let pause = self.limits.pause_after(attempt);
        if Instant::now() + pause >= deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }

    /// One attempt within its own limit, which the caller counts.
    pub async fn uncounted<T>(
        &self,
        kind: RequestKind,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        self.bounded(kind, self.limits.attempt, request).await
    }

    async fn repeat<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        kind: RequestKind,
        deadline: Instant,
        limit: impl Fn(Duration) -> Duration,
        mut request: impl FnMut() -> F,
    ) -> (object_store::Result<T>, Earlier) {
        let mut earlier = Earlier::None;
        let mut attempt = 0u32;
        let mut before = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let result = self.attempt(kind, limit(left), request()).await;
            let Err(error) = result else { return (result, earlier) };
            match meaning(&error) {
                Meaning::Passing | Meaning::Contended => {}
                Meaning::Failing => return (Err(error), Earlier::Unknown),
                _ => return (Err(error), earlier),
            }
            earlier = Earlier::Unknown;
            if !self.pause(attempt, deadline).await {
                // The last attempt may have been cut short: the error of the one before it says
                // more.
                let error = if is::<TimedOut>(&error) { before.unwrap_or(error) } else { error };
                return (Err(error), earlier);
            }
            tracing::debug!(
                ?kind,
                attempt,
                error = %error,
                "a request to the object store failed; retrying"
            );
            attempt = attempt.saturating_add(1);
            before = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_ends_in_an_error() {
        let limiter = RequestLimiter::new(Limits::default(), Puts::Limited);
        let start = Instant::now();
        let (result, earlier) = limiter
            .run(RequestKind::Get, 0, std::future::pending::<object_store::Result<()>>)
            .await;
        assert!(result.is_err());
        assert_eq!(earlier, Earlier::Unknown);
        assert!(start.elapsed() <= Duration::from_secs(31), "{:?}", start.elapsed());
        assert!((3..=4).contains(&limiter.requests().get), "{:?}", limiter.requests());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_has_more_time() {
        let limiter = RequestLimiter::new(Limits::default(), Puts::Limited);
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
        };
        assert!(limiter.run(RequestKind::Put, 0, slow).await.0.is_err());
        assert!(limiter.run(RequestKind::Put, 64 << 20, slow).await.0.is_ok());
    }

    #[test]
    fn pauses_grow_and_end() {
        let limits = Limits::default();
        for attempt in [0, 5, 40, u32::MAX] {
            let pause = limits.pause_after(attempt);
            assert!(
                pause >= Duration::from_millis(25) && pause <= limits.pause_max,
                "{attempt}: {pause:?}"
            );
        }
    }
}
