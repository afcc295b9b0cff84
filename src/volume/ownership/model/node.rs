//! The steps of a node: claiming, opening, renewing, closing, and its observations of the other.

use super::super::{Before, Claims, take};
use super::{Holder, LEASE, MARGIN, Node, Phase, Process, PutKind, Rules, World, template};
use crate::volume::lease::{ExpiredLease, Observed};
use std::time::Duration;

impl World {
    pub(super) fn claims(&mut self, rules: Rules, node: Node) -> Option<()> {
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
        // The previous run on a node's folder is over, and its heartbeat shows that: here no
        // machine is a copy of another.
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
                self.send(Some(node), PutKind::Claim, Some(me))?;
                self.processes[node.at()].phase = Phase::Claiming(Claims::new(me.claim));
                Some(())
            }
        }
    }

    pub(super) fn reads_record(&mut self, rules: Rules, node: Node) -> Option<()> {
        let Phase::EpochRead(claims, epoch) = self.processes[node.at()].phase else { return None };
        match self.is_ours(rules, node, claims) {
            true => self.processes[node.at()].phase = Phase::RecordRead(claims, epoch),
            false => self.processes[node.at()].forget(),
        }
        Some(())
    }

    pub(super) fn opens_database(&mut self, rules: Rules, node: Node) -> Option<()> {
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
        if process.journal == Some(self.in_superblock) && self.in_superblock <= self.abandoned {
            self.wrong = Some(
                "a journal that was given up by force is replayed over what was removed since",
            );
        }
        Some(())
    }

    pub(super) fn raises_epoch(&mut self, node: Node) -> Option<()> {
        let process = &mut self.processes[node.at()];
        let Phase::Opened(claims, epoch) = process.phase else { return None };
        if self.epoch == epoch {
            self.in_superblock = epoch;
            (process.phase, process.journal) = (Phase::Open(claims, epoch), Some(epoch));
        } else {
            // Fenced while it opened: it retries, if the record is still its own.
            process.phase = Phase::Claimed(claims);
        }
        Some(())
    }

    pub(super) fn reads_revocations(&mut self, rules: Rules, node: Node) -> Option<()> {
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

    pub(super) fn claims_again(&mut self, rules: Rules, node: Node) -> Option<()> {
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
        self.send(Some(node), PutKind::Renewal, next)?;
        self.processes[node.at()].phase = Phase::Open(claims, epoch);
        Some(())
    }

    pub(super) fn closes(&mut self, node: Node) -> Option<()> {
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

    pub(super) fn sends_release(&mut self, rules: Rules, node: Node) -> Option<()> {
        let claims = self.processes[node.at()].closing?;
        if self.is_ours(rules, node, claims) {
            self.send(Some(node), PutKind::Release, None)
        } else {
            self.processes[node.at()].closing = None;
            Some(())
        }
    }

    pub(super) fn crashes(&mut self, node: Node) -> Option<()> {
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

    /// An observation of the owner. Returns the finding, if its lease has expired.
    pub(super) fn look(
        &self,
        rules: Rules,
        watch: &mut Option<(Holder, Observed)>,
    ) -> Option<Option<Holder>> {
        let owner = self.record.owner?;
        let (node, session) = owner.who?;
        if watch.as_ref().is_none_or(|(of, _)| *of != owner) {
            *watch = Some((owner, Observed::default()));
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

    pub(super) fn looks(&mut self, rules: Rules, node: Node) -> Option<()> {
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
}
