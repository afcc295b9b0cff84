//! The starts of the exploration, and its extent.

use super::super::explore::{Model, exhaustively, randomly};
use super::steps::Step;
use super::{ALL, Node, Rules, World};

struct Ownership {
    rules: Rules,
    /// Checks as an invariant that a node that wants the dataset gets it.
    liveness: bool,
    /// Nothing fails and no claim is revoked: no crash, no lost answer, no controller.
    fault_free: bool,
    /// The histories from which exploration continues.
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
/// A node has claimed it, without knowing that.
const CLAIMED_UNKNOWN: &[Step] = &[Step::Claims(Node::A), Step::StopsWaiting(0), Step::Lands(0)];
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
/// The controller is in the middle of a forced release.
const FORCED: &[Step] = &[
    Step::ControllerLooks,
    Step::Tick,
    Step::Tick,
    Step::Tick,
    Step::ControllerLooks,
    Step::ControllerClaims,
    Step::Lands(0),
];
/// The controller has ended a forced release.
const RELEASED: &[Step] = &[
    Step::ControllerReadsEpoch,
    Step::ControllerReadsRecord,
    Step::ControllerFences,
    Step::ControllerReleases,
    Step::Lands(0),
];

impl Model for Ownership {
    type State = World;
    type Step = Step;

    fn starts(&self) -> Vec<(Vec<Step>, World)> {
        self.starts.iter().map(|steps| self.after(&steps.concat())).collect()
    }

    fn next(&self, world: &World) -> Vec<(Step, World)> {
        Step::all(world)
            .filter(|step| !self.fault_free || step.is_fault_free())
            .filter_map(|step| Some((step, world.step(self.rules, step)?)))
            .filter(|(_, next)| next != world)
            .collect()
    }

    fn violation(&self, world: &World) -> Option<String> {
        world.violation(self.rules, self.liveness)
    }
}

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
    Ownership { rules: ALL, liveness: true, fault_free: false, starts }
}

/// States up to which every interleaving is followed, and random walks beyond them, at size 1.
const STATES_MAX: usize = 80_000;
const WALKS: usize = 1_500;
const WALK_STEPS: usize = 60;

/// `ZEROFS_TEST_SIZE` multiplies the states and the walks.
fn size() -> usize {
    std::env::var("ZEROFS_TEST_SIZE").ok().and_then(|size| size.parse().ok()).unwrap_or(1)
}

#[test]
fn no_interleaving_violates_an_invariant() {
    let model = whole();
    let explored = exhaustively(&model, 64, STATES_MAX * size());
    let explored = explored.unwrap_or_else(|found| panic!("{found:?}"));
    println!(
        "every interleaving: {} states, {} steps beyond each start",
        explored.states, explored.depth
    );
    let walked = randomly(&model, 1, WALKS * size(), WALK_STEPS);
    let walked = walked.unwrap_or_else(|found| panic!("{found:?}"));
    println!("random walks: {} states, up to {} steps beyond a start", walked.states, walked.depth);
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
        let fault_free = !start.contains(&FORCED);
        let model = Ownership { rules, liveness: false, fault_free, starts: vec![start] };
        let found = exhaustively(&model, 24, 400_000).expect_err(without);
        println!("{without}:\n{found:?}");
        assert!(found.what.contains(expected), "{without}: {found:?}");
    }
}
