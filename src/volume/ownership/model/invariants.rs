//! The invariants, which hold in every state.

use super::steps::Step;
use super::{NODES, Node, PATIENCE, Phase, Rules, World};

impl World {
    /// Returns the invariant that this state breaks. `liveness`: also check that a node that wants
    /// the dataset gets it.
    pub(super) fn violation(&self, rules: Rules, liveness: bool) -> Option<String> {
        if let Some(wrong) = self.wrong {
            return Some(wrong.to_owned());
        }
        let answers = |node: &Node| self.processes[node.at()].answers(self.now);
        if NODES.iter().all(answers) {
            return Some("two nodes answer".to_owned());
        }
        for node in NODES.into_iter().filter(answers) {
            let fenced = self.processes[node.at()].phase_epoch() != Some(self.epoch);
            if fenced && self.is_named(node) {
                return Some(format!(
                    "{node:?} is the owner and was fenced: what it answered from its journal is \
                     void"
                ));
            }
            if self.record.owner.is_none() {
                return Some(format!("{node:?} answers, and the record says released"));
            }
        }
        // Without a rule, only histories that lose data are looked for.
        for (node, other_lives) in NODES.into_iter().flat_map(|node| [(node, false), (node, true)])
        {
            if liveness && !self.can_acquire(rules, node, other_lives) {
                return Some(format!(
                    "{node:?} can never have the dataset (the other lives: {other_lives})"
                ));
            }
        }
        None
    }

    /// Returns whether `node` gets the dataset once nothing fails: the other node has stopped, or
    /// goes on sending heartbeats and its claim is revoked.
    fn can_acquire(&self, rules: Rules, node: Node, other_lives: bool) -> bool {
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
            world.advance(rules, node);
        }
        false
    }

    /// Takes the step that the program takes next.
    fn advance(&mut self, rules: Rules, node: Node) {
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
