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
//! numbers. A raised limit also applies to those that wait already; under a lowered one they are
//! due as before, because a call that was charged must not wait beyond [`WAIT_MAX`], and those that
//! arrive from then on are due after them.

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
    bytes: Charge,
    calls: Charge,
}

/// The charge of one call in one bucket.
#[derive(Clone, Copy, Debug)]
struct Charge {
    /// Where it ends: the call is due once that much is paid.
    place: u128,
    /// None while there is no limit.
    units: u128,
}

impl Delay {
    /// Waits until the call is due.
    pub async fn passed(&self) {
        let mut changed = self.throttle.changed.subscribe();
        loop {
            let wait = self.throttle.buckets.lock().wait(self, Instant::now());
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

    /// Gives back what the call was charged and is not paid yet: it is not carried out. Calls that
    /// arrive later have the use of it; those that wait are due no later than before.
    pub fn cancel(self) {
        let now = Instant::now();
        let mut buckets = self.throttle.buckets.lock();
        buckets.of(self.io).give_back(self.bytes, now);
        buckets.calls.give_back(self.calls, now);
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        *self.throttle.buckets.lock().waiting(self.io) -= 1;
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

#[derive(Debug, Default)]
struct Buckets {
    read: Bucket,
    write: Bucket,
    calls: Bucket,
    waiting_reads: usize,
    waiting_writes: usize,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Units a second; `None`: unlimited.
    rate: Option<u64>,
    charged: u128,
    paid: u128,
    /// When `paid` was brought up to date; none while there is no limit.
    at: Option<Instant>,
    earlier: Option<Earlier>,
}

/// A higher limit, under which calls were charged that still wait.
#[derive(Clone, Copy, Debug)]
struct Earlier {
    rate: u64,
    /// The place of the last of them.
    until: u128,
}

impl Throttle {
    pub fn new(limits: IoLimits) -> Arc<Self> {
        let throttle = Self {
            buckets: Mutex::default(),
            limited: AtomicBool::new(false),
            changed: watch::Sender::new(()),
        };
        throttle.set(limits);
        Arc::new(throttle)
    }

    /// Changes the limits; see the module's text for calls that wait.
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
        let bytes = of_bytes.charge(bytes as u128, now);
        let waits = of_bytes.wait(bytes.place);
        let calls = buckets.calls.charge(1, now);
        let waits_of_calls = buckets.calls.wait(calls.place);
        if waits > WAIT_MAX || waits_of_calls > buckets.calls_wait_max(io) {
            return Admission::Refused;
        }
        let wait = waits.max(waits_of_calls);
        buckets.of(io).charged = bytes.place;
        buckets.calls.charged = calls.place;
        if wait.is_zero() {
            return Admission::Now;
        }
        *buckets.waiting(io) += 1;
        Admission::Later(Delay { throttle: self.clone(), io, bytes, calls })
    }
}

impl Buckets {
    fn of(&mut self, io: Io) -> &mut Bucket {
        match io {
            Io::Read => &mut self.read,
            Io::Write => &mut self.write,
        }
    }

    fn waiting(&mut self, io: Io) -> &mut usize {
        match io {
            Io::Read => &mut self.waiting_reads,
            Io::Write => &mut self.waiting_writes,
        }
    }

    /// The most that a call may wait for the limit that both kinds share. Half of it is for the
    /// kind of which fewer wait: a flood of reads must not leave refusals alone for the writes.
    fn calls_wait_max(&self, io: Io) -> Duration {
        let is_fewer = match io {
            Io::Read => self.waiting_reads < self.waiting_writes,
            Io::Write => self.waiting_writes < self.waiting_reads,
        };
        if is_fewer { WAIT_MAX } else { WAIT_MAX / 2 }
    }

    fn wait(&mut self, delay: &Delay, now: Instant) -> Duration {
        self.calls.settle(now);
        let calls = self.calls.wait(delay.calls.place);
        let of_bytes = self.of(delay.io);
        of_bytes.settle(now);
        of_bytes.wait(delay.bytes.place).max(calls)
    }
}

impl Bucket {
    /// Adds what the time since the last call has paid.
    fn settle(&mut self, now: Instant) {
        let (Some(rate), Some(at)) = (self.rate, self.at) else { return };
        let mut nanos = now.saturating_duration_since(at).as_nanos();
        self.at = Some(now.max(at));
        if let Some(earlier) = self.earlier {
            let needed = nanos_for(earlier.until.saturating_sub(self.paid), earlier.rate);
            if nanos < needed {
                self.paid += nanos * u128::from(earlier.rate);
                return;
            }
            self.paid = self.paid.max(earlier.until);
            self.earlier = None;
            nanos -= needed;
        }
        let paid = nanos.saturating_mul(u128::from(rate));
        self.paid = self.paid.saturating_add(paid).min(self.full(rate));
    }

    /// The most that may be paid.
    fn full(&self, rate: u64) -> u128 {
        self.charged + u128::from(rate) * SCALE * BURST_SECS
    }

    /// The charge of a further call.
    fn charge(&mut self, units: u128, now: Instant) -> Charge {
        self.settle(now);
        let units = if self.rate.is_some() { units * SCALE } else { 0 };
        Charge { place: self.charged.saturating_add(units), units }
    }

    /// Takes back the part of a charge that is not paid yet.
    fn give_back(&mut self, charge: Charge, now: Instant) {
        self.settle(now);
        let unpaid = charge.units.min(charge.place.saturating_sub(self.paid));
        if charge.place == self.charged {
            self.charged -= unpaid;
        } else {
            self.paid += unpaid;
        }
        if let Some(earlier) = &mut self.earlier {
            earlier.until = earlier.until.min(self.charged);
        }
    }

    /// The time until `place` is paid.
    fn wait(&self, place: u128) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let (mut from, mut nanos) = (self.paid, 0);
        if let Some(earlier) = self.earlier {
            let to = place.min(earlier.until);
            nanos = nanos_for(to.saturating_sub(from), earlier.rate);
            from = from.max(to);
        }
        nanos += nanos_for(place.saturating_sub(from), rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn set_rate(&mut self, rate: Option<u64>, now: Instant) {
        self.settle(now);
        // No limit that passed `IoLimits::check` is zero, and nothing would ever be due.
        let rate = rate.filter(|rate| *rate > 0);
        let before = std::mem::replace(&mut self.rate, rate);
        self.at = rate.map(|_| self.at.map_or(now, |at| at.max(now)));
        let full = self.full(rate.unwrap_or(0));
        let Some((before, rate)) = before.zip(rate) else {
            // Calls that wait are due where the limit ends, and not charged again where one begins.
            (self.paid, self.earlier) = (full, None);
            return;
        };
        self.paid = self.paid.min(full);
        if rate < before {
            let rate = self.earlier.map_or(before, |earlier| earlier.rate.max(before));
            self.earlier = Some(Earlier { rate, until: self.charged });
        }
        self.earlier = self.earlier.filter(|earlier| earlier.rate > rate);
    }
}

/// The time in which a rate pays `units`.
fn nanos_for(units: u128, rate: u64) -> u128 {
    units.div_ceil(u128::from(rate))
}

#[cfg(test)]
mod tests;
