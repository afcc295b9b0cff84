//! The steps of the controller, which releases a lost node's dataset by force.

use super::super::{Claims, take};
use super::{Holder, Phase, PutKind, Rules, World, template};
use crate::volume::lease::ExpiredLease;

impl World {
    pub(super) fn controller_looks(&mut self, rules: Rules) -> Option<()> {
        if self.controller != Phase::Idle {
            return None;
        }
        let mut watch = self.controller_watch.clone();
        let found = self.look(rules, &mut watch)?;
        self.controller_watch = watch;
        self.controller_expired = found.or(self.controller_expired);
        Some(())
    }

    /// A forced release, once the lease of the owner has expired.
    pub(super) fn controller_claims(&mut self) -> Option<()> {
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
        self.send(None, PutKind::Claim, Some(me))?;
        self.controller = Phase::Claiming(Claims::new(me.claim));
        self.controller_expired = None;
        Some(())
    }

    pub(super) fn controller_reads_record(&mut self) -> Option<()> {
        let Phase::EpochRead(claims, epoch) = self.controller else { return None };
        let ours = self.record.owner.is_some_and(|owner| claims.contain(owner.claim));
        self.controller = if ours { Phase::RecordRead(claims, epoch) } else { Phase::Idle };
        Some(())
    }

    pub(super) fn controller_fences(&mut self, rules: Rules) -> Option<()> {
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

    pub(super) fn controller_releases(&mut self) -> Option<()> {
        let Phase::Open(claims, _) = self.controller else { return None };
        if self.record.owner.is_some_and(|owner| claims.contain(owner.claim)) {
            self.send(None, PutKind::Release, None)
        } else {
            self.controller = Phase::Idle;
            Some(())
        }
    }
}
