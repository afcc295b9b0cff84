//! All steps, and the carrying out of the store's.

use super::{NODES, Node, Phase, Put, PutKind, Record, Rules, TICKS_MAX, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Tick,
    /// Renews the lease, reads the record, and sends its claim.
    Claims(Node),
    /// A version of the record in flight is accepted by the store, or refused.
    Lands(usize),
    /// The sender stops waiting, and never learns the outcome.
    StopsWaiting(usize),
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
    /// Observes the heartbeats of the owner.
    Looks(Node),
    DecidesToRevoke,
    Revokes,
    /// The controller, which forces a release.
    ControllerLooks,
    ControllerClaims,
    ControllerReadsEpoch,
    ControllerReadsRecord,
    ControllerFences,
    ControllerReleases,
}

impl Step {
    /// Every step that may be possible in this state.
    pub(super) fn all(world: &World) -> impl Iterator<Item = Self> {
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
        let of_puts = (0..world.puts.len()).flat_map(|n| [Lands(n), StopsWaiting(n)]);
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
        of_nodes.chain(of_puts).chain(of_controller)
    }

    /// Returns whether it is taken while nothing fails and no release is forced.
    pub(super) fn is_fault_free(&self) -> bool {
        use Step::*;
        matches!(
            self,
            Tick | Lands(_)
                | Claims(_)
                | ReadsEpoch(_)
                | ReadsRecord(_)
                | OpensDatabase(_)
                | RaisesEpoch(_)
                | Looks(_)
                | SendsHeartbeat(_)
                | ReadsRevocations(_)
                | ClaimsAgain(_)
                | Closes(_)
                | SendsRelease(_)
        )
    }
}

impl World {
    pub(super) fn step(&self, rules: Rules, step: Step) -> Option<Self> {
        let mut next = self.clone();
        next.wrong = None;
        next.take_step(rules, step)?;
        Some(next)
    }

    pub(super) fn take_step(&mut self, rules: Rules, step: Step) -> Option<()> {
        match step {
            Step::Tick => self.now = Some(self.now + 1).filter(|now| *now <= TICKS_MAX)?,
            Step::Claims(node) => self.claims(rules, node)?,
            Step::Lands(n) => self.lands(n)?,
            Step::StopsWaiting(n) => self.stops_waiting(n)?,
            Step::ReadsEpoch(node) => match self.processes[node.at()].phase {
                Phase::Claimed(claims) if rules.epochs => {
                    self.processes[node.at()].phase = Phase::EpochRead(claims, self.epoch);
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
                    self.controller = Phase::EpochRead(claims, self.epoch);
                }
                _ => return None,
            },
            Step::ControllerReadsRecord => self.controller_reads_record()?,
            Step::ControllerFences => self.controller_fences(rules)?,
            Step::ControllerReleases => self.controller_releases()?,
        }
        Some(())
    }

    pub(super) fn lands(&mut self, n: usize) -> Option<()> {
        if n >= self.puts.len() {
            return None;
        }
        let put = self.puts.remove(n);
        let won = put.base == self.record.version;
        if won {
            self.record = Record { version: put.base + 1, owner: put.owner };
            if put.from.is_none() && put.kind == PutKind::Release {
                self.abandoned = self.epoch;
            }
        }
        if put.awaited {
            self.answered(put, won);
        }
        Some(())
    }

    fn answered(&mut self, put: Put, won: bool) {
        let Some(node) = put.from else {
            self.controller = match (put.kind, self.controller, won) {
                (PutKind::Claim, Phase::Claiming(claims), true) => Phase::Claimed(claims),
                (PutKind::Release, now, false) => now,
                _ => Phase::Idle,
            };
            return;
        };
        let process = &mut self.processes[node.at()];
        match (put.kind, process.phase, won) {
            (PutKind::Claim, Phase::Claiming(claims), true) => {
                (process.phase, process.good) = (Phase::Claimed(claims), true);
            }
            (PutKind::Claim, Phase::Claiming(_), false) => process.forget(),
            (PutKind::Renewal, Phase::Open(mut claims, epoch), true) => {
                put.owner.iter().for_each(|owner| claims.renewed(owner.claim));
                (process.phase, process.good) = (Phase::Open(claims, epoch), true);
            }
            (PutKind::Release, _, true) => process.closing = None,
            _ => {}
        }
    }

    fn stops_waiting(&mut self, n: usize) -> Option<()> {
        let put = self.puts.get_mut(n).filter(|put| put.awaited && put.from.is_some())?;
        put.awaited = false;
        let (node, kind) = (put.from?, put.kind);
        if kind == PutKind::Claim {
            self.processes[node.at()].forget();
        }
        Some(())
    }
}
