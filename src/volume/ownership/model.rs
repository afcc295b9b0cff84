//! The steps that two nodes and a controller can take on one dataset, with a store that may take a
//! record's next version late. The decisions are the program's own: [`take`], [`Claims`], [`Seen`];
//! the rest of the program is reduced to the least that tests them.
//!
//! These invariants hold in every reachable state, however the steps are interleaved:
//! - at most one node answers;
//! - the node that the record names, and that answers, is not fenced: answers that rest on its
//!   journal are not void;
//! - the record of a volume that answers is not released;
//! - a journal that was voided by force is never replayed;
//! - a node that wants the dataset gets it, once the others have stopped or their claims are
//!   revoked.
//!
//! With a rule left out, each of the histories that it prevents is found ([`Rules`]).

use super::explore::{Model, exhaustively, randomly};
use super::{Before, Claims, caretaker, take};
use crate::catalog::{Dataset, Form, Owner, Properties, State as Stage};
use crate::types::{ClaimId, FamilyId, HomeId, Incarnation, SessionId, Timestamp};
use crate::volume::lease::{ExpiredLease, Seen};
use std::collections::BTreeSet;
use std::time::Duration;

/// In ticks of one clock, which every machine's runs as.
const LEASE: u64 = 3;
const MARGIN: u64 = 1;
/// The clock stops here.
const TICKS_MAX: u64 = 6;
const CLAIMS_MAX: u8 = 5;
/// Versions under way at once.
const PUTS_MAX: usize = 2;
/// Steps until whoever wants the dataset must have it.
const PATIENCE: usize = 60;

/// Which rules are kept.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// R31. Without: a session that finds itself in the record writes nothing; a revocation is
    /// about a session, and its next claim removes it.
    claims: bool,
    /// R32. Without: whoever has claimed opens, whatever has happened since.
    epochs: bool,
    /// R33. Without: a volume is forgotten before its record says released.
    places: bool,
    /// R34. Without: a release by force fences, and leaves the epoch in `S` as it is.
    journals: bool,
}

const ALL: Rules = Rules { claims: true, epochs: true, places: true, journals: true };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Node {
    A,
    B,
}

const NODES: [Node; 2] = [Node::A, Node::B];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Tick,
    /// Renews the lease, reads the record, and sends its claim.
    Claims(Node),
    /// A version of the record that is under way is taken by the store, or refused.
    Lands(usize),
    /// The sender stops waiting, and never learns the outcome.
    GivesUpWaiting(usize),
    ReadsEpoch(Node),
    ReadsRecord(Node),
    OpensDatabase(Node),
    RaisesEpoch(Node),
    SendsHeartbeat(Node),
    ReadsRevocations(Node),
    ClaimsAgain(Node),
    FindsItselfFenced(Node),
    Closes(Node),
    SendsRelease(Node),
    Crashes(Node),
    /// Looks at the signs of whoever has the dataset.
    Looks(Node),
    DecidesToRevoke,
    Revokes,
    /// The controller, which releases by force.
    ControllerLooks,
    ControllerClaims,
    ControllerReadsEpoch,
    ControllerReadsRecord,
    ControllerFences,
    ControllerReleases,
}

/// The holder in a record. A session is a run of a node; the controller's is 0 of no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Holder {
    who: Option<(Node, u8)>,
    claim: ClaimId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Record {
    version: u8,
    owner: Option<Holder>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Claim,
    Renewal,
    Release,
}

/// The next version of the record, under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Put {
    /// `None`: the controller.
    from: Option<Node>,
    what: What,
    base: u8,
    owner: Option<Holder>,
    /// Its sender still waits for it.
    awaited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// Waits for its claim to be written.
    Claiming(Claims),
    Claimed(Claims),
    EpochRead(Claims, u8),
    RecordRead(Claims, u8),
    /// Opened, not yet in `S`.
    Opened(Claims, u8),
    Open(Claims, u8),
}

/// A run of a node, and its disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    session: u8,
    phase: Phase,
    /// Answers may be given before this.
    until: u64,
    /// The record was written since the lease began, or began again.
    good: bool,
    /// The claim is revoked, or taken.
    ended: bool,
    /// When a renewal under way was sent, whose heartbeat is written.
    renewing: Option<u64>,
    /// Closed, and its record does not say so yet: the claims that it was open under.
    closing: Option<Claims>,
    watch: Option<(Holder, Seen)>,
    expired: Option<Holder>,
    /// The epoch whose journal is on the disk.
    journal: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: u64,
    record: Record,
    puts: Vec<Put>,
    /// The database's writer epoch, and the one in `S`.
    epoch: u8,
    in_superblock: u8,
    /// The newest heartbeat of each node's present session, and of the one before.
    heartbeats: [[Option<u64>; 2]; 2],
    revocations: BTreeSet<Holder>,
    processes: [Process; 2],
    /// The claim that the controller is about to revoke, and the number of revocations so far.
    revoking: Option<Holder>,
    revoked: u8,
    controller: Phase,
    controller_watch: Option<(Holder, Seen)>,
    controller_expired: Option<Holder>,
    /// The newest epoch whose journal was voided by force, after which objects may have been
    /// removed.
    given_up: u8,
    claims: u8,
    claims_max: u8,
    /// The violation of the step that led here.
    wrong: Option<&'static str>,
}

impl Node {
    fn at(self) -> usize {
        self as usize
    }
}

fn template(owner: Option<Owner>) -> Dataset {
    let incarnation = Incarnation::from_bytes([1; 16]);
    Dataset {
        name: "d".parse().expect("a name"),
        incarnation,
        family: FamilyId::from(incarnation),
        origin: None,
        state: Stage::Ready,
        created: Timestamp::from_nanos(0),
        size: None,
        properties: Properties::default(),
        access_modes: vec![],
        owner,
        handle_secret: [0; 16],
        parameters: Default::default(),
        snapshot_serial: 0,
        detached: false,
        form: Form::Writable,
        restoring: None,
    }
}

impl Holder {
    fn owner(self) -> Owner {
        match self.who {
            None => Owner { claim: self.claim, ..caretaker(SessionId::from_bytes([0; 16])) },
            Some((node, session)) => {
                let (n, home) = (node as u8 + 1, Some(HomeId::from_bytes([node as u8 + 1; 16])));
                Owner {
                    claim: self.claim,
                    home,
                    ..Owner::new("n", SessionId::from_bytes([16 * n + session; 16]))
                }
            }
        }
    }
}

impl Process {
    fn new() -> Self {
        Self {
            session: 0,
            phase: Phase::Idle,
            until: 0,
            good: false,
            ended: false,
            renewing: None,
            closing: None,
            watch: None,
            expired: None,
            journal: None,
        }
    }

    fn claims(&self) -> Option<Claims> {
        match self.phase {
            Phase::Idle => None,
            Phase::Claiming(claims)
            | Phase::Claimed(claims)
            | Phase::EpochRead(claims, _)
            | Phase::RecordRead(claims, _)
            | Phase::Opened(claims, _)
            | Phase::Open(claims, _) => Some(claims),
        }
    }

    fn answers(&self, now: u64) -> bool {
        matches!(self.phase, Phase::Open(..)) && self.good && !self.ended && now < self.until
    }

    fn forget(&mut self) {
        (self.phase, self.good, self.ended) = (Phase::Idle, false, false);
    }
}

impl World {
    fn new() -> Self {
        Self {
            now: 0,
            record: Record { version: 0, owner: None },
            puts: vec![],
            epoch: 0,
            in_superblock: 0,
            heartbeats: Default::default(),
            revocations: BTreeSet::new(),
            processes: [Process::new(), Process::new()],
            revoking: None,
            revoked: 0,
            controller: Phase::Idle,
            controller_watch: None,
            controller_expired: None,
            given_up: 0,
            claims: 0,
            claims_max: CLAIMS_MAX,
            wrong: None,
        }
    }

    fn fresh(&mut self) -> ClaimId {
        self.claims += 1;
        ClaimId::from_bytes([self.claims; 16])
    }

    fn holder(&self, node: Node, claim: ClaimId) -> Holder {
        Holder { who: Some((node, self.processes[node.at()].session)), claim }
    }

    fn send(&mut self, from: Option<Node>, what: What, owner: Option<Holder>) -> Option<()> {
        if self.puts.len() >= PUTS_MAX
            || self.puts.iter().any(|put| put.from == from && put.awaited)
        {
            return None;
        }
        self.puts.push(Put { from, what, base: self.record.version, owner, awaited: true });
        Some(())
    }

    /// Returns whether the record is of this process's claim, as far as the rules distinguish
    /// claims.
    fn is_ours(&self, rules: Rules, node: Node, claims: Claims) -> bool {
        self.record.owner.is_some_and(|owner| match rules.claims {
            true => claims.contain(owner.claim),
            false => owner.who == Some((node, self.processes[node.at()].session)),
        })
    }

    fn claims(&mut self, rules: Rules, node: Node) -> Option<()> {
        let process = &self.processes[node.at()];
        if process.phase != Phase::Idle
            || rules.places && process.closing.is_some()
            || self.claims >= self.claims_max
        {
            return None;
        }
        let (session, expired) = (process.session, process.expired);
        let before = self.record.owner;
        let me = Holder { who: Some((node, session)), claim: self.fresh() };
        // The run before on a node's folder is over, and its heartbeat says so: no machine is a
        // copy of another here.
        let over = before.filter(|owner| {
            owner.who.is_some_and(|(of, earlier)| of == node && earlier != session)
        });
        let expired =
            over.or(expired).map(|expired| ExpiredLease::of(template(None).id(), expired.owner()));
        let mut record = template(before.map(Holder::owner));
        let found = take(&mut record, &me.owner(), expired.as_ref()).ok()?;
        self.heartbeat(node);
        let until = self.now + LEASE - MARGIN;
        let process = &mut self.processes[node.at()];
        (process.until, process.good, process.ended, process.renewing) =
            (until, false, false, None);
        (process.watch, process.expired) = (None, None);
        let same = before.filter(|owner| !rules.claims && owner.who == me.who);
        if !rules.claims {
            self.revocations.retain(|revoked| revoked.who != me.who);
        }
        match same {
            Some(owner) => {
                debug_assert_eq!(found, Before::Ours);
                let process = &mut self.processes[node.at()];
                (process.phase, process.good) = (Phase::Claimed(Claims::new(owner.claim)), true);
                Some(())
            }
            None => {
                self.send(Some(node), What::Claim, Some(me))?;
                self.processes[node.at()].phase = Phase::Claiming(Claims::new(me.claim));
                Some(())
            }
        }
    }

    fn heartbeat(&mut self, node: Node) {
        let session = usize::from(self.processes[node.at()].session);
        // A second heartbeat in a tick would show nothing new.
        self.heartbeats[node.at()][session] = Some(self.now);
    }

    fn lands(&mut self, n: usize) -> Option<()> {
        if n >= self.puts.len() {
            return None;
        }
        let put = self.puts.remove(n);
        let won = put.base == self.record.version;
        if won {
            self.record = Record { version: put.base + 1, owner: put.owner };
            if put.from.is_none() && put.what == What::Release {
                self.given_up = self.epoch;
            }
        }
        if put.awaited {
            self.answered(put, won);
        }
        Some(())
    }

    fn answered(&mut self, put: Put, won: bool) {
        let Some(node) = put.from else {
            self.controller = match (put.what, self.controller, won) {
                (What::Claim, Phase::Claiming(claims), true) => Phase::Claimed(claims),
                (What::Release, now, false) => now,
                _ => Phase::Idle,
            };
            return;
        };
        let process = &mut self.processes[node.at()];
        match (put.what, process.phase, won) {
            (What::Claim, Phase::Claiming(claims), true) => {
                (process.phase, process.good) = (Phase::Claimed(claims), true)
            }
            (What::Claim, Phase::Claiming(_), false) => process.forget(),
            (What::Renewal, Phase::Open(mut claims, epoch), true) => {
                put.owner.iter().for_each(|owner| claims.renewed(owner.claim));
                (process.phase, process.good) = (Phase::Open(claims, epoch), true);
            }
            (What::Release, _, true) => process.closing = None,
            _ => {}
        }
    }

    fn gives_up_waiting(&mut self, n: usize) -> Option<()> {
        let put = self.puts.get_mut(n).filter(|put| put.awaited && put.from.is_some())?;
        put.awaited = false;
        let (node, what) = (put.from?, put.what);
        if what == What::Claim {
            self.processes[node.at()].forget();
        }
        Some(())
    }

    fn reads_record(&mut self, rules: Rules, node: Node) -> Option<()> {
        let Phase::EpochRead(claims, epoch) = self.processes[node.at()].phase else { return None };
        match self.is_ours(rules, node, claims) {
            true => self.processes[node.at()].phase = Phase::RecordRead(claims, epoch),
            false => self.processes[node.at()].forget(),
        }
        Some(())
    }

    fn opens_database(&mut self, rules: Rules, node: Node) -> Option<()> {
        let process = &mut self.processes[node.at()];
        let claims = match process.phase {
            Phase::RecordRead(claims, expected) if expected == self.epoch => claims,
            Phase::RecordRead(claims, _) => {
                process.phase = Phase::Claimed(claims);
                return Some(());
            }
            Phase::Claimed(claims) if !rules.epochs => claims,
            _ => return None,
        };
        self.epoch += 1;
        process.phase = Phase::Opened(claims, self.epoch);
        if process.journal == Some(self.in_superblock) && self.in_superblock <= self.given_up {
            self.wrong = Some(
                "a journal that was given up by force is replayed over what was removed since",
            );
        }
        Some(())
    }

    fn raises_epoch(&mut self, node: Node) -> Option<()> {
        let process = &mut self.processes[node.at()];
        let Phase::Opened(claims, epoch) = process.phase else { return None };
        if self.epoch == epoch {
            self.in_superblock = epoch;
            (process.phase, process.journal) = (Phase::Open(claims, epoch), Some(epoch));
        } else {
            // Fenced while it opened: it tries again, if the record is its own still.
            process.phase = Phase::Claimed(claims);
        }
        Some(())
    }

    fn reads_revocations(&mut self, rules: Rules, node: Node) -> Option<()> {
        let session = self.processes[node.at()].session;
        let revoked: Vec<Holder> =
            self.revocations.iter().copied().filter(|r| r.who == Some((node, session))).collect();
        let now = self.now;
        let process = &mut self.processes[node.at()];
        let (sent, claims) = (process.renewing.take()?, process.claims()?);
        process.ended |=
            revoked.iter().any(|revoked| !rules.claims || claims.contain(revoked.claim));
        let until = sent + LEASE - MARGIN;
        if now < until {
            process.good &= now < process.until;
            process.until = until;
        }
        Some(())
    }

    fn claims_again(&mut self, rules: Rules, node: Node) -> Option<()> {
        let now = self.now;
        let process = &self.processes[node.at()];
        let Phase::Open(mut claims, epoch) = process.phase else { return None };
        if process.good || process.ended || now >= process.until || self.claims >= self.claims_max {
            return None;
        }
        let found = self.record.owner;
        let fresh = self.fresh();
        let mut record = template(found.map(Holder::owner));
        if !self.is_ours(rules, node, claims) || !claims.renew(&mut record, fresh) {
            self.processes[node.at()].ended = true;
            return Some(());
        }
        let next = record.owner.map(|owner| self.holder(node, owner.claim));
        self.send(Some(node), What::Renewal, next)?;
        self.processes[node.at()].phase = Phase::Open(claims, epoch);
        Some(())
    }

    fn closes(&mut self, node: Node) -> Option<()> {
        let process = &mut self.processes[node.at()];
        let Phase::Open(claims, epoch) = process.phase else { return None };
        if process.closing.is_some() {
            return None;
        }
        process.forget();
        if epoch == self.epoch {
            (process.closing, process.journal) = (Some(claims), None);
        }
        Some(())
    }

    fn sends_release(&mut self, rules: Rules, node: Node) -> Option<()> {
        let claims = self.processes[node.at()].closing?;
        if self.is_ours(rules, node, claims) {
            self.send(Some(node), What::Release, None)
        } else {
            self.processes[node.at()].closing = None;
            Some(())
        }
    }

    fn crashes(&mut self, node: Node) -> Option<()> {
        let process = &mut self.processes[node.at()];
        if node == Node::B || process.session > 0 {
            return None;
        }
        *process = Process { session: 1, journal: process.journal, ..Process::new() };
        self.puts
            .iter_mut()
            .filter(|put| put.from == Some(node))
            .for_each(|put| put.awaited = false);
        Some(())
    }

    /// A look at whoever has the dataset: the finding, if its lease has expired.
    fn look(&self, rules: Rules, watch: &mut Option<(Holder, Seen)>) -> Option<Option<Holder>> {
        let owner = self.record.owner?;
        let (node, session) = owner.who?;
        if watch.as_ref().is_none_or(|(of, _)| *of != owner) {
            *watch = Some((owner, Seen::default()));
        }
        let newest = self.heartbeats[node.at()][usize::from(session)];
        let revoked = self
            .revocations
            .iter()
            .any(|r| r.who == owner.who && (!rules.claims || r.claim == owner.claim));
        let at = Duration::from_secs(self.now);
        let (_, seen) = watch.as_mut()?;
        Some(match seen.add((at, at), newest, revoked, Duration::from_secs(LEASE)) {
            Some(_) => None,
            None => Some(owner),
        })
    }

    fn looks(&mut self, rules: Rules, node: Node) -> Option<()> {
        let process = &self.processes[node.at()];
        if process.phase != Phase::Idle || self.record.owner?.who? == (node, process.session) {
            return None;
        }
        let mut watch = process.watch.clone();
        let found = self.look(rules, &mut watch)?;
        let process = &mut self.processes[node.at()];
        process.watch = watch;
        process.expired = found.or(process.expired);
        Some(())
    }

    fn controller_looks(&mut self, rules: Rules) -> Option<()> {
        if self.controller != Phase::Idle {
            return None;
        }
        let mut watch = self.controller_watch.clone();
        let found = self.look(rules, &mut watch)?;
        self.controller_watch = watch;
        self.controller_expired = found.or(self.controller_expired);
        Some(())
    }

    /// A release by force, once the lease of the owner has expired.
    fn controller_claims(&mut self) -> Option<()> {
        let expired = self
            .controller_expired
            .filter(|_| self.controller == Phase::Idle && self.claims < self.claims_max)?;
        let me = Holder { who: None, claim: self.fresh() };
        let expired = ExpiredLease::of(template(None).id(), expired.owner());
        let mut record = template(self.record.owner.map(Holder::owner));
        if self.record.owner.is_none() || take(&mut record, &me.owner(), Some(&expired)).is_err() {
            self.controller_expired = None;
            return Some(());
        }
        self.send(None, What::Claim, Some(me))?;
        self.controller = Phase::Claiming(Claims::new(me.claim));
        self.controller_expired = None;
        Some(())
    }

    fn controller_reads_record(&mut self) -> Option<()> {
        let Phase::EpochRead(claims, epoch) = self.controller else { return None };
        let ours = self.record.owner.is_some_and(|owner| claims.contain(owner.claim));
        self.controller = if ours { Phase::RecordRead(claims, epoch) } else { Phase::Idle };
        Some(())
    }

    fn controller_fences(&mut self, rules: Rules) -> Option<()> {
        let claims = match self.controller {
            Phase::RecordRead(claims, expected) if expected == self.epoch => claims,
            Phase::RecordRead(claims, _) => {
                self.controller = Phase::Claimed(claims);
                return Some(());
            }
            Phase::Claimed(claims) if !rules.epochs => claims,
            _ => return None,
        };
        self.epoch += 1;
        if rules.journals {
            self.in_superblock = self.epoch;
        }
        self.controller = Phase::Open(claims, self.epoch);
        Some(())
    }

    fn controller_releases(&mut self) -> Option<()> {
        let Phase::Open(claims, _) = self.controller else { return None };
        if self.record.owner.is_some_and(|owner| claims.contain(owner.claim)) {
            self.send(None, What::Release, None)
        } else {
            self.controller = Phase::Idle;
            Some(())
        }
    }

    fn step(&self, rules: Rules, step: Step) -> Option<Self> {
        let mut next = self.clone();
        next.wrong = None;
        next.take_step(rules, step)?;
        Some(next)
    }

    fn take_step(&mut self, rules: Rules, step: Step) -> Option<()> {
        match step {
            Step::Tick => self.now = Some(self.now + 1).filter(|now| *now <= TICKS_MAX)?,
            Step::Claims(node) => self.claims(rules, node)?,
            Step::Lands(n) => self.lands(n)?,
            Step::GivesUpWaiting(n) => self.gives_up_waiting(n)?,
            Step::ReadsEpoch(node) => match self.processes[node.at()].phase {
                Phase::Claimed(claims) if rules.epochs => {
                    self.processes[node.at()].phase = Phase::EpochRead(claims, self.epoch)
                }
                _ => return None,
            },
            Step::ReadsRecord(node) => self.reads_record(rules, node)?,
            Step::OpensDatabase(node) => self.opens_database(rules, node)?,
            Step::RaisesEpoch(node) => self.raises_epoch(node)?,
            Step::SendsHeartbeat(node) => {
                let process = &mut self.processes[node.at()];
                if process.renewing.is_some() || process.claims().is_none() {
                    return None;
                }
                process.renewing = Some(self.now);
                self.heartbeat(node);
            }
            Step::ReadsRevocations(node) => self.reads_revocations(rules, node)?,
            Step::ClaimsAgain(node) => self.claims_again(rules, node)?,
            Step::FindsItselfFenced(node) => match self.processes[node.at()].phase {
                Phase::Open(_, epoch) if epoch != self.epoch => self.processes[node.at()].forget(),
                _ => return None,
            },
            Step::Closes(node) => self.closes(node)?,
            Step::SendsRelease(node) => self.sends_release(rules, node)?,
            Step::Crashes(node) => self.crashes(node)?,
            Step::Looks(node) => self.looks(rules, node)?,
            Step::DecidesToRevoke => {
                match (self.record.owner.filter(|owner| owner.who.is_some()), self.revoked) {
                    (Some(owner), 0) => (self.revoking, self.revoked) = (Some(owner), 1),
                    _ => return None,
                }
            }
            Step::Revokes => drop(self.revocations.insert(self.revoking.take()?)),
            Step::ControllerLooks => self.controller_looks(rules)?,
            Step::ControllerClaims => self.controller_claims()?,
            Step::ControllerReadsEpoch => match self.controller {
                Phase::Claimed(claims) if rules.epochs => {
                    self.controller = Phase::EpochRead(claims, self.epoch)
                }
                _ => return None,
            },
            Step::ControllerReadsRecord => self.controller_reads_record()?,
            Step::ControllerFences => self.controller_fences(rules)?,
            Step::ControllerReleases => self.controller_releases()?,
        }
        Some(())
    }

    /// Returns whether `node` gets the dataset once nothing fails: the other node has stopped, or
    /// goes on sending heartbeats and its claim is revoked.
    fn gets_it(&self, rules: Rules, node: Node, other_lives: bool) -> bool {
        let other = if node == Node::A { Node::B } else { Node::A };
        let mut world = Self { claims_max: u8::MAX, ..self.clone() };
        while !world.puts.is_empty() {
            world.lands(0);
        }
        (world.controller, world.controller_expired) = (Phase::Idle, None);
        for _ in 0..PATIENCE {
            let process = &world.processes[node.at()];
            if process.answers(world.now)
                && world.is_named(node)
                && process.phase_epoch() == Some(world.epoch)
            {
                return true;
            }
            if other_lives {
                world.heartbeat(other);
                let owner = world
                    .record
                    .owner
                    .filter(|owner| owner.who.is_some_and(|(who, _)| who == other));
                world.revocations.extend(owner);
            }
            world.goes_on(rules, node);
        }
        false
    }

    /// Does what the program does next.
    fn goes_on(&mut self, rules: Rules, node: Node) {
        let (now, process) = (self.now, &self.processes[node.at()]);
        let steps: &[Step] = match process.phase {
            _ if process.closing.is_some() => &[Step::SendsRelease(node), Step::Lands(0)],
            Phase::Idle => {
                let tried =
                    [Step::Looks(node), Step::Claims(node)].map(|step| self.take_step(rules, step));
                self.now += u64::from(tried[1].is_none());
                return;
            }
            Phase::Claiming(_) => &[Step::Lands(0)],
            Phase::Claimed(_) if rules.epochs => &[Step::ReadsEpoch(node)],
            Phase::EpochRead(..) => &[Step::ReadsRecord(node)],
            Phase::Claimed(_) | Phase::RecordRead(..) => &[Step::OpensDatabase(node)],
            Phase::Opened(..) => &[Step::RaisesEpoch(node)],
            Phase::Open(_, epoch) if epoch != self.epoch => &[Step::FindsItselfFenced(node)],
            Phase::Open(..) if process.ended => &[Step::Closes(node)],
            Phase::Open(..) if now >= process.until => {
                &[Step::SendsHeartbeat(node), Step::ReadsRevocations(node)]
            }
            Phase::Open(..) => &[Step::ClaimsAgain(node), Step::Lands(0)],
        };
        for step in steps {
            // A step that is not possible is skipped.
            let _ = self.take_step(rules, *step);
        }
    }

    fn is_named(&self, node: Node) -> bool {
        let claims = self.processes[node.at()].claims();
        self.record
            .owner
            .is_some_and(|owner| claims.is_some_and(|claims| claims.contain(owner.claim)))
    }
}

impl Process {
    fn phase_epoch(&self) -> Option<u8> {
        match self.phase {
            Phase::Open(_, epoch) => Some(epoch),
            _ => None,
        }
    }
}

struct Ownership {
    rules: Rules,
    /// Checks as an invariant that a node that wants the dataset gets it.
    lives: bool,
    /// Nothing fails and no claim is revoked: no crash, no lost answer, no controller.
    quiet: bool,
    /// The histories that are gone on with.
    starts: Vec<Vec<&'static [Step]>>,
}

impl Ownership {
    fn after(&self, steps: &[Step]) -> (Vec<Step>, World) {
        let skipped = |step: &&Step| {
            self.rules.epochs
                || !matches!(
                    step,
                    Step::ReadsEpoch(_)
                        | Step::ReadsRecord(_)
                        | Step::ControllerReadsEpoch
                        | Step::ControllerReadsRecord
                )
        };
        let taken: Vec<Step> = steps.iter().filter(skipped).copied().collect();
        let world = taken.iter().fold(World::new(), |world, step| {
            world
                .step(self.rules, *step)
                .unwrap_or_else(|| panic!("{step:?} is not possible: {world:?}"))
        });
        (taken, world)
    }
}

/// A node has the dataset open.
const OPENED: &[Step] = &[
    Step::Claims(Node::A),
    Step::Lands(0),
    Step::ReadsEpoch(Node::A),
    Step::ReadsRecord(Node::A),
    Step::OpensDatabase(Node::A),
    Step::RaisesEpoch(Node::A),
];
/// A node has claimed it, and stalls.
const CLAIMED: &[Step] = &[Step::Claims(Node::A), Step::Lands(0)];
/// A node has claimed it, and does not know.
const CLAIMED_UNKNOWN: &[Step] = &[Step::Claims(Node::A), Step::GivesUpWaiting(0), Step::Lands(0)];
/// The other has found its lease expired.
const EXPIRED: &[Step] =
    &[Step::Looks(Node::B), Step::Tick, Step::Tick, Step::Tick, Step::Looks(Node::B)];
/// The other has seen a revocation.
const REVOKED: &[Step] =
    &[Step::Looks(Node::B), Step::DecidesToRevoke, Step::Revokes, Step::Looks(Node::B)];
/// The node that has claimed it opens it, and writes nothing, since the record names it already.
const REOPENED: &[Step] = &[
    Step::Claims(Node::A),
    Step::ReadsEpoch(Node::A),
    Step::ReadsRecord(Node::A),
    Step::OpensDatabase(Node::A),
    Step::RaisesEpoch(Node::A),
];
/// The controller is in the middle of a release by force.
const FORCED: &[Step] = &[
    Step::ControllerLooks,
    Step::Tick,
    Step::Tick,
    Step::Tick,
    Step::ControllerLooks,
    Step::ControllerClaims,
    Step::Lands(0),
];

impl Model for Ownership {
    type State = World;
    type Step = Step;

    fn starts(&self) -> Vec<(Vec<Step>, World)> {
        self.starts.iter().map(|steps| self.after(&steps.concat())).collect()
    }

    fn next(&self, world: &World) -> Vec<(Step, World)> {
        use Step::*;
        let of_nodes = NODES.into_iter().flat_map(|node| {
            [
                Claims(node),
                ReadsEpoch(node),
                ReadsRecord(node),
                OpensDatabase(node),
                RaisesEpoch(node),
                SendsHeartbeat(node),
                ReadsRevocations(node),
                ClaimsAgain(node),
                FindsItselfFenced(node),
                Closes(node),
                SendsRelease(node),
                Crashes(node),
                Looks(node),
            ]
        });
        let of_puts = (0..world.puts.len()).flat_map(|n| [Lands(n), GivesUpWaiting(n)]);
        let of_controller = [
            Tick,
            DecidesToRevoke,
            Revokes,
            ControllerLooks,
            ControllerClaims,
            ControllerReadsEpoch,
            ControllerReadsRecord,
            ControllerFences,
            ControllerReleases,
        ];
        let is_quiet = |step: &Step| {
            matches!(
                step,
                Tick | Lands(_)
                    | Claims(_)
                    | ReadsEpoch(_)
                    | ReadsRecord(_)
                    | OpensDatabase(_)
                    | RaisesEpoch(_)
                    | Looks(_)
            ) || matches!(
                step,
                SendsHeartbeat(_)
                    | ReadsRevocations(_)
                    | ClaimsAgain(_)
                    | Closes(_)
                    | SendsRelease(_)
            )
        };
        let steps = of_nodes
            .chain(of_puts)
            .chain(of_controller)
            .filter(|step| !self.quiet || is_quiet(step));
        steps
            .filter_map(|step| Some((step, world.step(self.rules, step)?)))
            .filter(|(_, next)| next != world)
            .collect()
    }

    fn broken(&self, world: &World) -> Option<String> {
        if let Some(wrong) = world.wrong {
            return Some(wrong.to_owned());
        }
        let answers = |node: &Node| world.processes[node.at()].answers(world.now);
        if NODES.iter().all(answers) {
            return Some("two nodes answer".to_owned());
        }
        for node in NODES.into_iter().filter(answers) {
            let fenced = world.processes[node.at()].phase_epoch() != Some(world.epoch);
            if fenced && world.is_named(node) {
                return Some(format!(
                    "{node:?} is the owner and was fenced: what it answered from its journal is \
                     void"
                ));
            }
            if world.record.owner.is_none() {
                return Some(format!("{node:?} answers, and the record says released"));
            }
        }
        // Without a rule, the histories are looked for that lose data.
        for (node, other_lives) in NODES.into_iter().flat_map(|node| [(node, false), (node, true)])
        {
            if self.lives && !world.gets_it(self.rules, node, other_lives) {
                return Some(format!(
                    "{node:?} can never have the dataset (the other lives: {other_lives})"
                ));
            }
        }
        None
    }
}

/// And has ended it.
const RELEASED: &[Step] = &[
    Step::ControllerReadsEpoch,
    Step::ControllerReadsRecord,
    Step::ControllerFences,
    Step::ControllerReleases,
    Step::Lands(0),
];

fn whole() -> Ownership {
    let starts = vec![
        vec![],
        vec![OPENED],
        vec![CLAIMED, EXPIRED],
        vec![CLAIMED_UNKNOWN, REVOKED],
        vec![OPENED, REVOKED],
        vec![OPENED, FORCED],
        vec![OPENED, FORCED, RELEASED],
    ];
    Ownership { rules: ALL, lives: true, quiet: false, starts }
}

fn explore(states_max: usize, walks: usize) {
    let model = whole();
    let explored = exhaustively(&model, 64, states_max).unwrap_or_else(|found| panic!("{found:?}"));
    println!(
        "every interleaving: {} states, {} steps beyond each start",
        explored.states, explored.depth
    );
    let walked = randomly(&model, 1, walks, 60).unwrap_or_else(|found| panic!("{found:?}"));
    println!("random walks: {} states, up to {} steps beyond a start", walked.states, walked.depth);
}

#[test]
fn no_interleaving_breaks_an_invariant() {
    explore(80_000, 1_500);
}

/// Minutes, with optimisation.
#[test]
#[ignore = "takes long; for changes of the rules"]
fn no_long_history_breaks_an_invariant() {
    explore(1_000_000, 20_000);
}

#[test]
fn each_rule_is_there_for_a_history() {
    let cases = [
        (
            "an opening that expects no epoch (R32), after a take-over",
            Rules { epochs: false, ..ALL },
            vec![CLAIMED, EXPIRED],
            "was fenced",
        ),
        (
            "an opening that expects no epoch (R32), of a release by force",
            Rules { epochs: false, ..ALL },
            vec![OPENED, FORCED],
            "was fenced",
        ),
        (
            "a close that forgets its volume before the record says released (R33)",
            Rules { places: false, claims: false, ..ALL },
            vec![OPENED],
            "says released",
        ),
        (
            "claims without ids (R31), and a verdict from before",
            Rules { claims: false, ..ALL },
            vec![CLAIMED_UNKNOWN, EXPIRED],
            "two nodes answer",
        ),
        (
            "claims without ids (R31), and a revocation that is removed unread",
            Rules { claims: false, ..ALL },
            vec![CLAIMED_UNKNOWN, REVOKED, REOPENED],
            "two nodes answer",
        ),
        (
            "a journal that is given up and not voided (R34)",
            Rules { journals: false, ..ALL },
            vec![OPENED, FORCED, RELEASED],
            "replayed",
        ),
    ];
    for (without, rules, start, expected) in cases {
        let quiet = !start.contains(&FORCED);
        let model = Ownership { rules, lives: false, quiet, starts: vec![start] };
        let found = exhaustively(&model, 24, 400_000).expect_err(without);
        println!("{without}:\n{found:?}");
        assert!(found.what.contains(expected), "{without}: {found:?}");
    }
}
