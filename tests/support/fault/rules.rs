//! How requests fail, and which do at random from a seed.

use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Get,
    Put,
    /// A conditional put.
    PutNew,
    List,
    Delete,
}

impl Op {
    pub(super) fn mutates(self) -> bool {
        matches!(self, Self::Put | Self::PutNew | Self::Delete)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// An error, and nothing was done.
    #[default]
    Before,
    /// The request is done, and its answer is an error.
    LostAck,
    /// The request is done after a while. For a put that nobody waits for by then, see
    /// [`super::FaultStore::arrive`].
    Delay(Duration),
    /// A put is answered and not done: what no store may do, for tests of tests.
    Lie,
    /// The request is never answered; nothing was done.
    Hang,
    /// A read brings this many bytes less.
    Truncate(usize),
    /// A read brings one bit (counted from the first) changed; counted round if there are fewer.
    FlipBit(usize),
    /// The store asks to be asked less: S3's 503 Slow Down.
    Throttled,
    /// The store forbids it.
    Denied,
    /// The store says that the object is not there.
    Absent,
}

/// Chances of random faults, each in 1,000 requests that it can befall.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chances {
    pub before: u32,
    pub lost_ack: u32,
    pub truncate: u32,
    pub flip_bit: u32,
    /// A pause of up to `delay_max`, so that requests overtake each other.
    pub delay: u32,
    /// Puts that are answered and not done.
    pub lie: u32,
    pub delay_max: Duration,
}

pub(super) fn drawn(random: Option<&mut (StdRng, Chances)>, op: Op) -> Option<Fault> {
    let (rng, chances) = random?;
    let mut hit = |chance: u32| rng.random_range(0..1000) < chance;
    if hit(chances.before) {
        return Some(Fault::Before);
    }
    if matches!(op, Op::Put | Op::PutNew) && hit(chances.lie) {
        return Some(Fault::Lie);
    }
    if op.mutates() && hit(chances.lost_ack) {
        return Some(Fault::LostAck);
    }
    if op == Op::Get && hit(chances.truncate) {
        return Some(Fault::Truncate(1));
    }
    if op == Op::Get && hit(chances.flip_bit) {
        return Some(Fault::FlipBit(rng.random_range(0..1 << 20)));
    }
    let delays = hit(chances.delay);
    delays.then(|| Fault::Delay(chances.delay_max.mul_f64(rng.random_range(0.0..1.0))))
}
