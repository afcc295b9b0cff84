//! Which requests fail, and how.

use super::super::rule::{Rule, scripted};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Get,
    Head,
    Put,
    /// A put with `If-None-Match: *`.
    PutNew,
    /// A put with `If-Match`.
    PutIf,
    List,
    /// `DeleteObjects`, or the deletion of one object.
    Delete,
    /// Any request of a multipart upload.
    Upload,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Get,
        Self::Head,
        Self::Put,
        Self::PutNew,
        Self::PutIf,
        Self::List,
        Self::Delete,
        Self::Upload,
    ];

    fn mutates(self) -> bool {
        !matches!(self, Self::Get | Self::Head | Self::List)
    }
}

/// An answer that the request did not earn.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Answer {
    /// As S3 answers.
    pub fn error(status: u16, code: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code} on \
             purpose</Message></Error>"
        );
        Self { status, headers: vec![("content-type", "application/xml".into())], body }
    }

    /// As a proxy answers that knows nothing of S3.
    pub fn page(status: u16, title: &str) -> Self {
        let body = format!("<html><head><title>{status} {title}</title></head></html>");
        Self { status, headers: vec![("content-type", "text/html".into())], body }
    }

    #[must_use]
    pub fn with(mut self, header: &'static str, value: &str) -> Self {
        self.headers.push((header, value.to_owned()));
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    Done,
    /// Comes after the reply, when the test calls [`super::S3Server::arrive`].
    Late,
}

#[derive(Clone, Debug)]
pub enum Reply {
    /// The answer of a correct server; without an effect it waits for ever.
    Own,
    Instead(Answer),
    /// The connection is closed.
    Cut,
    /// The connection is closed after this many bytes of the body.
    CutBody(usize),
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub effect: Effect,
    pub reply: Reply,
    /// Before both.
    pub delay: Duration,
}

impl Default for Fault {
    fn default() -> Self {
        Self::refuse(500, "InternalError")
    }
}

impl Fault {
    fn of(effect: Effect, reply: Reply) -> Self {
        Self { effect, reply, delay: Duration::ZERO }
    }

    /// An S3 error; nothing is done.
    pub fn refuse(status: u16, code: &str) -> Self {
        Self::answer(Answer::error(status, code))
    }

    pub fn answer(answer: Answer) -> Self {
        Self::of(Effect::None, Reply::Instead(answer))
    }

    /// An S3 error; the request is done all the same.
    pub fn done_but(status: u16, code: &str) -> Self {
        Self::of(Effect::Done, Reply::Instead(Answer::error(status, code)))
    }

    /// An S3 error; the request is done later.
    pub fn late_but(status: u16, code: &str) -> Self {
        Self::of(Effect::Late, Reply::Instead(Answer::error(status, code)))
    }

    /// The connection breaks before the effect.
    pub fn cut() -> Self {
        Self::of(Effect::None, Reply::Cut)
    }

    /// The connection breaks after the effect.
    pub fn cut_after() -> Self {
        Self::of(Effect::Done, Reply::Cut)
    }

    /// The connection breaks, and the effect comes later.
    pub fn cut_late() -> Self {
        Self::of(Effect::Late, Reply::Cut)
    }

    pub fn cut_body(bytes: usize) -> Self {
        Self::of(Effect::Done, Reply::CutBody(bytes))
    }

    /// Never answered, and nothing is done.
    pub fn hang() -> Self {
        Self::of(Effect::None, Reply::Own)
    }

    pub fn slow(delay: Duration) -> Self {
        Self { delay, ..Self::of(Effect::Done, Reply::Own) }
    }
}

/// Chances of random faults, each in 1,000 requests that it can befall.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chances {
    /// One of the passing errors (500, 503 SlowDown, 400 RequestTimeout); nothing is done.
    pub refuse: u32,
    /// A put-if-absent gets 409 ConditionalRequestConflict, and in half of the cases takes effect
    /// all the same.
    pub conflict: u32,
    /// The connection is cut; of a change, in half of them after the effect.
    pub cut: u32,
    /// The body of a read is cut.
    pub cut_body: u32,
    /// The answer comes late, so that requests overtake each other.
    pub delay: u32,
    pub delay_max: Duration,
}

#[derive(Default)]
pub(super) struct Script {
    pub rules: Vec<Rule<Kind, Fault>>,
    random: Option<(StdRng, Chances)>,
}

impl Script {
    pub fn random(&mut self, seed: u64, chances: Chances) {
        self.random = Some((StdRng::seed_from_u64(seed), chances));
    }

    pub fn decide(&mut self, kind: Kind, key: &str) -> Option<Fault> {
        scripted(&mut self.rules, kind, key).or_else(|| self.drawn(kind))
    }

    fn drawn(&mut self, kind: Kind) -> Option<Fault> {
        const PASSING: [(u16, &str); 3] =
            [(500, "InternalError"), (503, "SlowDown"), (400, "RequestTimeout")];
        let (rng, chances) = self.random.as_mut()?;
        let mut hit = |chance: u32| rng.random_range(0..1000) < chance;
        if hit(chances.refuse) {
            let (status, code) = PASSING[rng.random_range(0..PASSING.len())];
            return Some(Fault::refuse(status, code));
        }
        if kind == Kind::PutNew && hit(chances.conflict) {
            let (status, code) = (409, "ConditionalRequestConflict");
            return Some(if rng.random() {
                Fault::refuse(status, code)
            } else {
                Fault::done_but(status, code)
            });
        }
        if hit(chances.cut) {
            return Some(if kind.mutates() && rng.random() {
                Fault::cut_after()
            } else {
                Fault::cut()
            });
        }
        if kind == Kind::Get && hit(chances.cut_body) {
            return Some(Fault::cut_body(rng.random_range(0..1000)));
        }
        let delays = hit(chances.delay);
        delays.then(|| Fault::slow(chances.delay_max.mul_f64(rng.random_range(0.0..1.0))))
    }
}
