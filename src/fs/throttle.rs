//! Limits on the reads and writes of a volume, as token buckets: bytes read, bytes written, and
//! calls of both kinds.
//!
//! ```text
//! charged ────────────────┬──────┬──────►  grows with each call
//! paid    ───────────┬────┘      │         grows with time, to a second's worth above `charged`
//!                    └ a call whose charge ends here is due once `paid` has come that far
//! ```
//! Nothing queues here. A call is charged when it arrives and gets the place up to which its bucket
//! must be paid; so calls are due in the order of their arrival, and one that waits holds a few
//! numbers. A changed limit applies to those that wait already.

use crate::types::IoLimits;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A call that would be due later than this is refused and not charged. The time is well below that
/// after which a client sends a call again (`timeo=600` is a minute), and well above that after
/// which one that was told to retry does (5 s): so refusals leave no gap.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// The time whose worth an idle volume saves up.
const BURST_SECS: u128 = 1;
/// Buckets count billionths, so that a nanosecond at any rate is a whole number of them.
const SCALE: u128 = 1_000_000_000;

/// The kind of a call that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    Read,
    Write,
}

/// The answer to a call's arrival.
#[derive(Debug)]
pub enum Admission {
    Now,
    /// The call was charged, and is due later.
    Later(Delay),
    /// The call was not charged: too many are waiting.
    Refused,
}

/// The wait of a call that was charged.
#[derive(Debug)]
pub struct Delay {
    throttle: Arc<Throttle>,
    io: Io,
    /// Places in the bucket of bytes and in that of calls.
    bytes: u128,
    calls: u128,
}

impl Delay {
    /// Waits until the call is due.
    pub async fn passed(self) {
        let mut changed = self.throttle.changed.subscribe();
        loop {
            let wait = self.throttle.buckets.lock().wait(&self, Instant::now());
            if wait.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The sender is in `self`.
                _ = changed.changed() => {}
            }
        }
    }
}

/// The limits of one volume, shared by all its calls.
#[derive(Debug)]
pub struct Throttle {
    buckets: Mutex<Buckets>,
    /// Whether there is any limit: most volumes have none.
    limited: AtomicBool,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct Buckets {
    read: Bucket,
    write: Bucket,
    calls: Bucket,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Units a second; `None`: unlimited.
    rate: Option<u64>,
    charged: u128,
    paid: u128,
    /// When `paid` was brought up to date; none while there is no limit.
    at: Option<Instant>,
}

impl Throttle {
    pub fn new(limits: IoLimits) -> Arc<Self> {
        let buckets =
            Buckets { read: Bucket::default(), write: Bucket::default(), calls: Bucket::default() };
        let throttle = Self {
            buckets: Mutex::new(buckets),
            limited: AtomicBool::new(false),
            changed: watch::Sender::new(()),
        };
        throttle.set(limits);
        Arc::new(throttle)
    }

    /// Changes the limits, also for calls that wait.
    pub fn set(&self, limits: IoLimits) {
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        buckets.read.set_rate(limits.max_read_bandwidth, now);
        buckets.write.set_rate(limits.max_write_bandwidth, now);
        buckets.calls.set_rate(limits.max_iops, now);
        self.limited.store(limits != IoLimits::default(), Ordering::Relaxed);
        drop(buckets);
        self.changed.send_replace(());
    }

    /// Ends all limits, and every wait: the volume is no longer served.
    pub fn lift(&self) {
        self.set(IoLimits::default());
    }

    /// Charges a call, unless it would be due too late.
    pub fn admit(self: &Arc<Self>, io: Io, bytes: usize) -> Admission {
        if !self.limited.load(Ordering::Relaxed) {
            return Admission::Now;
        }
        let now = Instant::now();
        let mut buckets = self.buckets.lock();
        let of_bytes = buckets.of(io);
        let place = of_bytes.place(bytes as u128, now);
        let waits = of_bytes.wait(place);
        let calls = buckets.calls.place(1, now);
        let wait = waits.max(buckets.calls.wait(calls));
        if wait > WAIT_MAX {
            return Admission::Refused;
        }
        buckets.of(io).charged = place;
        buckets.calls.charged = calls;
        if wait.is_zero() {
            return Admission::Now;
        }
        Admission::Later(Delay { throttle: self.clone(), io, bytes: place, calls })
    }
}

impl Buckets {
    fn of(&mut self, io: Io) -> &mut Bucket {
        match io {
            Io::Read => &mut self.read,
            Io::Write => &mut self.write,
        }
    }

    fn wait(&mut self, delay: &Delay, now: Instant) -> Duration {
        self.calls.settle(now);
        let calls = self.calls.wait(delay.calls);
        let of_bytes = self.of(delay.io);
        of_bytes.settle(now);
        of_bytes.wait(delay.bytes).max(calls)
    }
}

impl Bucket {
    /// Adds what the time since the last call has paid.
    fn settle(&mut self, now: Instant) {
        let (Some(rate), Some(at)) = (self.rate.map(u128::from), self.at) else { return };
        let paid = now.saturating_duration_since(at).as_nanos() * rate;
        self.paid = (self.paid + paid).min(self.charged + rate * SCALE * BURST_SECS);
        self.at = Some(now.max(at));
    }

    /// The place of a further call.
    fn place(&mut self, units: u128, now: Instant) -> u128 {
        self.settle(now);
        match self.rate {
            Some(_) => self.charged + units * SCALE,
            None => self.charged,
        }
    }

    /// The time until `place` is paid.
    fn wait(&self, place: u128) -> Duration {
        let Some(rate) = self.rate.map(u128::from).filter(|rate| *rate > 0) else {
            return Duration::ZERO;
        };
        let nanos = place.saturating_sub(self.paid).div_ceil(rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn set_rate(&mut self, rate: Option<u64>, now: Instant) {
        self.settle(now);
        let begins = self.rate.is_none();
        (self.rate, self.at) = (rate, rate.map(|_| now));
        let full = self.charged + u128::from(rate.unwrap_or(0)) * SCALE * BURST_SECS;
        // Calls that wait are due where the limit ends, and not charged again where one begins.
        self.paid = if begins || rate.is_none() { full } else { self.paid.min(full) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn writes(mib: u64) -> IoLimits {
        IoLimits { max_write_bandwidth: Some(mib << 20), ..IoLimits::default() }
    }

    fn later(admission: Admission) -> Delay {
        match admission {
            Admission::Later(delay) => delay,
            other => panic!("{other:?}"),
        }
    }

    /// The seconds until a call is due that is charged now.
    async fn secs(throttle: &Arc<Throttle>, io: Io, bytes: usize) -> f64 {
        let begun = Instant::now();
        match throttle.admit(io, bytes) {
            Admission::Now => 0.0,
            Admission::Later(delay) => {
                delay.passed().await;
                begun.elapsed().as_secs_f64()
            }
            Admission::Refused => panic!("refused"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_volume_saves_up_a_second() {
        let throttle = Throttle::new(writes(2));
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(100)).await;
            for due in [0.0, 0.0, 0.5, 0.5] {
                let waited = secs(&throttle, Io::Write, MIB).await;
                assert!((waited - due).abs() < 0.01, "{waited} instead of {due}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_limit_is_of_its_kind_and_the_longer_wait_holds() {
        let limits = IoLimits { max_iops: Some(10), ..writes(1) };
        let throttle = Throttle::new(limits);
        assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Now));
        let write = later(throttle.admit(Io::Write, MIB));
        for _ in 0..8 {
            assert!(matches!(throttle.admit(Io::Read, 50 * MIB), Admission::Now));
        }
        let begun = Instant::now();
        later(throttle.admit(Io::Read, MIB)).passed().await;
        assert_eq!(begun.elapsed().as_millis() / 10, 10, "the eleventh call");
        write.passed().await;
        assert_eq!(begun.elapsed().as_millis() / 10, 100, "the second MiB");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_due_in_their_order_and_late_ones_are_not_charged() {
        let throttle = Throttle::new(writes(1));
        let mut waiting = Vec::new();
        loop {
            match throttle.admit(Io::Write, MIB) {
                Admission::Now => {}
                Admission::Later(delay) => waiting.push(delay),
                Admission::Refused => break,
            }
        }
        assert_eq!(waiting.len(), 30);
        for _ in 0..1000 {
            assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Refused));
        }
        let begun = Instant::now();
        for (delay, secs) in waiting.into_iter().zip(1..) {
            delay.passed().await;
            assert_eq!(rounded(begun), secs);
        }
        assert!((secs(&throttle, Io::Write, MIB).await - 1.0).abs() < 0.01);
    }

    /// Seconds since then.
    fn rounded(begun: Instant) -> u64 {
        (begun.elapsed() + Duration::from_millis(500)).as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_limit_holds_for_those_that_wait() {
        let throttle = Throttle::new(writes(1));
        assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Now));
        let slow = later(throttle.admit(Io::Write, 20 * MIB));
        let begun = Instant::now();
        let waiting = tokio::spawn(slow.passed());
        tokio::time::sleep(Duration::from_secs(10)).await;
        throttle.set(writes(5));
        waiting.await.unwrap();
        assert_eq!(rounded(begun), 12, "10 MiB at 1, 10 at 5");
        let second = later(throttle.admit(Io::Write, 100 * MIB));
        let waiting = tokio::spawn(second.passed());
        tokio::task::yield_now().await;
        throttle.lift();
        waiting.await.unwrap();
        assert_eq!(rounded(begun), 12, "no limit, no wait");
        assert!(matches!(throttle.admit(Io::Write, usize::MAX), Admission::Now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_begins_again_owes_nothing() {
        let throttle = Throttle::new(writes(1));
        let _waiting = (throttle.admit(Io::Write, MIB), throttle.admit(Io::Write, 25 * MIB));
        throttle.lift();
        throttle.set(writes(1));
        assert!(matches!(throttle.admit(Io::Write, MIB), Admission::Now));
        assert!((secs(&throttle, Io::Write, MIB).await - 1.0).abs() < 0.01);
    }
}
