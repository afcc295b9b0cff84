//! The steps that two nodes and a controller can take on one dataset, with a store that may take a
//! record's next version late. The decisions are the program's own: [`take`], [`Claims`],
//! [`Observed`]; the rest of the program is reduced to the least that tests them.
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
//!
//! - this file: the state, with each part as small as possible;
//! - `steps`: the steps, and the store's; `node`, `controller`: theirs;
//! - `invariants`: the conditions that hold in each state;
//! - `histories`: the starts of the exploration, and the tests.

mod controller;
mod histories;
mod invariants;
mod node;
mod steps;

use super::{Claims, maintenance_claim};
use crate::catalog::{Dataset, Form, Owner, Properties, State as Stage};
use crate::types::{ClaimId, FamilyId, Incarnation, JournalDirId, SessionId, Timestamp};
use crate::volume::lease::Observed;
use std::collections::BTreeSet;

/// In ticks of one clock, at whose rate every machine's clock runs.
const LEASE: u64 = 3;
const MARGIN: u64 = 1;
/// The clock stops here.
const TICKS_MAX: u64 = 6;
const CLAIMS_MAX: u8 = 5;
/// Most versions in flight at once.
const PUTS_MAX: usize = 2;
/// Steps after which a node that wants the dataset must have it.
const PATIENCE: usize = 60;

/// The rules that are in force.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// R31. Without it, a session that finds itself in the record writes nothing; a revocation is
    /// about a session, and its next claim removes it.
    claims: bool,
    /// R32. Without it, a node that has claimed opens, whatever has happened since.
    epochs: bool,
    /// R33. Without it, a volume is forgotten before its record is released.
    places: bool,
    /// R34. Without it, a forced release fences, and leaves the epoch in `S` as it is.
    journals: bool,
}

const ALL: Rules = Rules { claims: true, epochs: true, places: true, journals: true };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Node {
    A,
    B,
}

const NODES: [Node; 2] = [Node::A, Node::B];

/// The owner in a record. A session is a run of a node; the controller is no node.
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
enum PutKind {
    Claim,
    Renewal,
    Release,
}

/// The next version of the record, in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Put {
    /// `None`: the controller.
    from: Option<Node>,
    kind: PutKind,
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
    /// The time when a renewal in progress was sent, whose heartbeat is written.
    renewing: Option<u64>,
    /// Closed, but not yet released in the record: the claims under which it was open.
    closing: Option<Claims>,
    watch: Option<(Holder, Observed)>,
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
    controller_watch: Option<(Holder, Observed)>,
    controller_expired: Option<Holder>,
    /// The newest epoch whose journal was voided by force, after which objects may have been
    /// removed.
    abandoned: u8,
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
        modified: false,
        restoring: None,
        ephemeral: false,
        naming: Default::default(),
    }
}

impl Holder {
    fn owner(self) -> Owner {
        match self.who {
            None => {
                Owner { claim: self.claim, ..maintenance_claim(SessionId::from_bytes([0; 16])) }
            }
            Some((node, session)) => {
                let (n, journal_dir_id) =
                    (node as u8 + 1, Some(JournalDirId::from_bytes([node as u8 + 1; 16])));
                Owner {
                    claim: self.claim,
                    journal_dir_id,
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

    fn phase_epoch(&self) -> Option<u8> {
        match self.phase {
            Phase::Open(_, epoch) => Some(epoch),
            _ => None,
        }
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
            abandoned: 0,
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

    fn send(&mut self, from: Option<Node>, kind: PutKind, owner: Option<Holder>) -> Option<()> {
        if self.puts.len() >= PUTS_MAX
            || self.puts.iter().any(|put| put.from == from && put.awaited)
        {
            return None;
        }
        self.puts.push(Put { from, kind, base: self.record.version, owner, awaited: true });
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

    fn heartbeat(&mut self, node: Node) {
        let session = usize::from(self.processes[node.at()].session);
        // A second heartbeat in a tick would show nothing new.
        self.heartbeats[node.at()][session] = Some(self.now);
    }
}
