//! Explores a model: every interleaving up to a depth, shortest first, then random walks far beyond
//! it.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A system that takes one of a few steps at a time.
pub trait Model {
    type State: Clone + Hash;
    type Step: Copy + Debug;

    /// The states in which exploration begins, each with the steps that lead there from the start.
    fn starts(&self) -> Vec<(Vec<Self::Step>, Self::State)>;

    /// The possible steps, and the states that they lead to.
    fn next(&self, state: &Self::State) -> Vec<(Self::Step, Self::State)>;

    /// Returns the invariant that the state breaks.
    fn violation(&self, state: &Self::State) -> Option<String>;
}

/// A history that breaks an invariant.
pub struct Counterexample<S> {
    pub steps: Vec<S>,
    pub what: String,
}

impl<S: Debug> Debug for Counterexample<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {:2}. {step:?}", n + 1)?;
        }
        write!(f, "  => {}", self.what)
    }
}

/// The extent of an exploration that found nothing.
#[derive(Debug)]
pub struct Explored {
    pub states: usize,
    /// Steps beyond a start up to which every interleaving was followed.
    pub depth: usize,
}

/// Every state within `depth` steps of a start, as far as there are at most `states_max`.
pub fn exhaustively<M: Model>(
    model: &M,
    depth: usize,
    states_max: usize,
) -> Result<Explored, Counterexample<M::Step>> {
    // States are distinguished by a hash of 64 bits, and each remembers the step that first led
    // there.
    let mut from: HashMap<u64, Option<(u64, M::Step)>> = HashMap::new();
    let mut prefix = HashMap::new();
    let mut layer = Vec::new();
    for (steps, state) in model.starts() {
        let key = hash(&state);
        from.insert(key, None);
        prefix.insert(key, steps);
        layer.push(state);
    }
    let trace = |from: &HashMap<u64, Option<(u64, M::Step)>>, mut at: u64| {
        let mut steps = Vec::new();
        while let Some((before, step)) = from[&at] {
            steps.push(step);
            at = before;
        }
        prefix[&at].iter().copied().chain(steps.into_iter().rev()).collect()
    };
    for reached in 0..=depth {
        let mut next = Vec::new();
        for state in &layer {
            let key = hash(state);
            if let Some(what) = model.violation(state) {
                return Err(Counterexample { steps: trace(&from, key), what });
            }
            if reached == depth {
                continue;
            }
            for (step, found) in model.next(state) {
                if let std::collections::hash_map::Entry::Vacant(new) = from.entry(hash(&found)) {
                    new.insert(Some((key, step)));
                    next.push(found);
                }
            }
            if from.len() > states_max {
                return Ok(Explored { states: from.len(), depth: reached });
            }
        }
        if next.is_empty() {
            return Ok(Explored { states: from.len(), depth: reached });
        }
        layer = next;
    }
    Ok(Explored { states: from.len(), depth })
}

/// Random walks from the starts, each of at most `length` steps.
pub fn randomly<M: Model>(
    model: &M,
    seed: u64,
    walks: usize,
    length: usize,
) -> Result<Explored, Counterexample<M::Step>> {
    let mut random = StdRng::seed_from_u64(seed);
    let starts = model.starts();
    let mut states = 0;
    for _ in 0..walks {
        let (mut steps, mut state) = starts[random.random_range(0..starts.len())].clone();
        for _ in 0..length {
            let next = model.next(&state);
            let Some((step, found)) = next.choose(&mut random) else { break };
            steps.push(*step);
            state = found.clone();
            states += 1;
            if let Some(what) = model.violation(&state) {
                return Err(Counterexample { steps, what });
            }
        }
    }
    Ok(Explored { states, depth: length })
}

fn hash<T: Hash>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
