//! A collector of another process that pauses at one of its steps while the history goes on
//! (R11, R12).

use crate::ops::Where;
use crate::work::{PAUSE, TRIES, is_final};
use crate::world::World;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::time::Duration;
use tokio::task::JoinHandle;
use zerofs_csi::control::Collected;
use zerofs_csi::telemetry::Failpoints;

/// The steps before and after its decisions.
const STEPS: [&str; 11] = [
    "collect.catalog",
    "collect.listed",
    "collect.marked",
    "collect.packs",
    "collect.rewrite.listed",
    "collect.sealed",
    "chunk.before-rewrite",
    "chunk.rewritten",
    "collect.snapshot.dead",
    "collect.dataset.dead",
    "collect.detach.begin",
];
/// The most steps of the history that it pauses for.
const PAUSED_STEPS_MAX: u32 = 8;
/// The time in which it ends once it is resumed, with requests to owners that do not answer.
const PATIENCE: Duration = Duration::from_secs(1200);

pub struct PausedCollector {
    at: &'static str,
    left: u32,
    failpoints: Failpoints,
    done: JoinHandle<Result<Collected, String>>,
}

impl PausedCollector {
    pub fn begin(world: &World, rng: &mut StdRng) -> Self {
        let (at, passes, left) = (
            *STEPS.choose(rng).unwrap(),
            rng.random_range(0..2),
            rng.random_range(1..=PAUSED_STEPS_MAX),
        );
        world.run(async {
            let process = world.process().on_its_own("collector", world.store.quick_bucket()).await;
            let failpoints = process.catalog.bucket().failpoints().clone();
            failpoints.set(at, &format!("{passes}*off->1*pause->off")).unwrap();
            let collect = async move {
                let mut tries = 0;
                loop {
                    tries += 1;
                    match process.collect(Where::Here).await {
                        Err(error) if !is_final(&error) && tries < TRIES => {
                            tokio::time::sleep(PAUSE).await;
                        }
                        done => return done.map_err(|error| error.to_string()),
                    }
                }
            };
            Self { at, left, failpoints, done: tokio::spawn(collect) }
        })
    }

    /// True once the collector has been paused for long enough.
    pub fn is_over(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    /// Resumes the collector and waits for its end.
    pub fn end(self, world: &World) -> Result<Collected, String> {
        self.failpoints.set(self.at, "off").unwrap();
        let ended = world.run(async { tokio::time::timeout(PATIENCE, self.done).await });
        let told = |what: String| format!("the collector that paused at {}: {what}", self.at);
        match ended {
            Ok(Ok(done)) => done.map_err(told),
            Ok(Err(panic)) => Err(told(panic.to_string())),
            Err(_) => Err(told("it does not end".to_owned())),
        }
    }
}

impl std::fmt::Display for PausedCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "  another collector pauses at {} for {} steps", self.at, self.left)
    }
}
