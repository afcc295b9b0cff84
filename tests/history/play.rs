//! One history: steps drawn one after the other, deaths and what comes after them, and the end.

use crate::model::{Model, Pending};
use crate::ops::{self, Death, Op, Step, Where};
use crate::paused::PausedCollector;
use crate::work::{self, again};
use crate::world::World;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::cell::RefCell;
use std::time::{Duration, SystemTime};
use zerofs_csi::catalog::State;
use zerofs_csi::control::Collected;
use zerofs_csi::types::{Class, Classify, SnapshotHandle, VolumeHandle};

/// Collections at the end, with a pause between them: what a database's compactor writes after it
/// was closed is a stray of a later one.
const LAST_COLLECTIONS: usize = 20;

/// Counts of the events in histories.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub steps: usize,
    pub deaths: usize,
    pub datasets: usize,
    pub snapshots: usize,
    pub packs_swept: usize,
    pub packs_rewritten: usize,
    pub detached: usize,
    pub datasets_reaped: usize,
    pub snapshots_reaped: usize,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.deaths += other.deaths;
        self.datasets += other.datasets;
        self.snapshots += other.snapshots;
        self.packs_swept += other.packs_swept;
        self.packs_rewritten += other.packs_rewritten;
        self.detached += other.detached;
        self.datasets_reaped += other.datasets_reaped;
        self.snapshots_reaped += other.snapshots_reaped;
    }

    pub fn collected(&mut self, done: &Collected) {
        self.packs_swept += done.packs;
        self.packs_rewritten += done.rewritten;
        self.detached += done.detached.len();
        self.datasets_reaped += done.datasets.len();
        self.snapshots_reaped += done.snapshots.len();
    }

    /// True if every kind of event that histories are for came about.
    pub fn is_rich(&self) -> bool {
        let each = [
            self.packs_rewritten,
            self.detached,
            self.datasets_reaped,
            self.snapshots_reaped,
            self.packs_swept,
        ];
        self.steps >= 2000 && self.deaths >= 20 && each.iter().all(|n| *n > 0)
    }
}

struct Player {
    world: World,
    model: Model,
    rng: StdRng,
    told: Vec<String>,
    /// Durable steps that processes of this history passed.
    steps: Vec<String>,
    tally: RefCell<Tally>,
    held: Option<PausedCollector>,
}

pub fn play(seed: u64, steps: u64) -> Result<Tally, String> {
    let rng = StdRng::seed_from_u64(seed);
    let mut player = Player {
        world: World::new(),
        model: Model::default(),
        rng,
        told: vec![],
        steps: vec![],
        tally: RefCell::default(),
        held: None,
    };
    let played = player.all(steps);
    played.map_err(|what| format!("{what}\nafter\n{}", player.told.join("\n")))?;
    Ok(player.tally.into_inner())
}

/// The outcome of a step.
enum Ended {
    Done(Result<(), String>),
    Died,
}

impl Player {
    fn all(&mut self, steps: u64) -> Result<(), String> {
        self.world.disorder(self.rng.random());
        for _ in 0..steps {
            let step = ops::draw(&mut self.rng, &self.model, &self.steps);
            self.pause_a_collector()?;
            self.told.push(step.to_string());
            self.step(&step)?;
            self.tally.get_mut().steps += 1;
        }
        self.finish()
    }

    /// Beside everything else there may be another process that collects, and stands still over
    /// some steps.
    fn pause_a_collector(&mut self) -> Result<(), String> {
        let is_over = self.held.as_mut().map(PausedCollector::is_over);
        match is_over {
            Some(true) => self.resume_collector(),
            None if self.rng.random_bool(0.15) => {
                let held = PausedCollector::begin(&self.world, &mut self.rng);
                self.told.push(held.to_string());
                self.held = Some(held);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn resume_collector(&mut self) -> Result<(), String> {
        let Some(held) = self.held.take() else { return Ok(()) };
        self.told.push("  it goes on".to_owned());
        let done = held.end(&self.world)?;
        self.tally.get_mut().collected(&done);
        let (process, model) = (self.world.process().clone(), &mut self.model);
        self.world.run(work::compare(&process, model))
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let lets_finish = self.rng.random_bool(0.5);
        let moment = Duration::from_millis(self.rng.random_range(0..40));
        let process = self.world.process().clone();
        let failpoints = process.catalog.bucket().failpoints().clone();
        let base = match &step.death {
            Some(Death::Store(changes)) => {
                self.world.store.die_after(*changes);
                0
            }
            Some(Death::Step(name, passes)) => {
                failpoints.set(name, &format!("{passes}*off->pause")).unwrap();
                failpoints.passed().get(name).copied().unwrap_or(0)
            }
            None => 0,
        };
        let has_died = || match &step.death {
            Some(Death::Store(_)) => self.world.store.is_dead(),
            Some(Death::Step(name, passes)) => {
                failpoints.passed().get(name).is_some_and(|times| *times > base + passes)
            }
            None => false,
        };
        let death = async {
            while !has_died() {
                match step.death {
                    Some(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                    None => std::future::pending().await,
                }
            }
        };
        let tally = &self.tally;
        let done = self.world.run(async {
            let collector = work::beside(&process, step.collector, tally);
            let work = Box::pin(work::perform(&process, &mut self.model, &step.op, tally));
            let ended = tokio::select! {
                biased;
                () = death => Ended::Died,
                done = collector.during(work, lets_finish) => Ended::Done(done),
            };
            match ended {
                // The other tasks of the process go on for a moment.
                _ if has_died() => {
                    tokio::time::sleep(moment).await;
                    Ended::Died
                }
                ended => ended,
            }
        });
        drop(process);
        match done {
            Ended::Died => self.after_death(),
            Ended::Done(done) => {
                if let Some(Death::Step(name, _)) = &step.death {
                    failpoints.set(name, "off").unwrap();
                }
                self.world.store.heal();
                self.world.disorder(self.rng.random());
                done
            }
        }
    }

    fn learn_steps(&mut self) {
        let passed = self.world.process().catalog.bucket().failpoints().passed();
        self.steps = passed
            .into_keys()
            .filter(|step| !step.contains("lease") && !step.contains("close"))
            .collect();
    }

    /// The next process: what was on its way arrives now, later, or never; then what is there is
    /// held against what may be.
    fn after_death(&mut self) -> Result<(), String> {
        self.told.push("  died".to_owned());
        self.tally.get_mut().deaths += 1;
        self.learn_steps();
        self.held = None;
        self.world.die();
        self.world.start();
        let store = self.world.store.clone();
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        self.world.run(async {
            for _ in 0..store.late() {
                if rng.random_bool(0.4) {
                    store.arrive(rng.random_range(0..100)).await;
                }
            }
            tokio::spawn(async move {
                while store.late() > 0 {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(0..3000))).await;
                    store.arrive(rng.random_range(0..100)).await;
                }
            });
        });
        self.world.disorder(self.rng.random());
        if self.rng.random_bool(0.4) {
            let at = if self.rng.random() { Where::Here } else { Where::Elsewhere };
            self.collect(at)?;
        }
        self.settle()
    }

    fn collect(&mut self, at: Where) -> Result<(), String> {
        let (process, tally) = (self.world.process().clone(), &self.tally);
        self.world.run(work::collect(&process, at, tally))
    }

    fn settle(&mut self) -> Result<(), String> {
        let gives_up = self.rng.random_bool(0.4);
        let process = self.world.process().clone();
        let model = &mut self.model;
        self.world.run(async {
            for dataset in model.datasets.iter_mut().filter(|dataset| !dataset.going) {
                let found = process.read(dataset.handle).await?;
                dataset.settle(&found)?;
            }
            for handle in
                model.datasets.iter().filter(|d| d.going).map(|d| d.handle).collect::<Vec<_>>()
            {
                work::delete(&process, model, handle).await?;
            }
            for handle in
                model.snapshots.iter().filter(|s| s.going).map(|s| s.handle).collect::<Vec<_>>()
            {
                work::delete_snapshot(&process, model, handle).await?;
            }
            match model.pending.take() {
                Some(Pending::Create { name, from }) if gives_up => {
                    work::give_up(&process, &name).await?;
                    model.abandoned.push((name, from));
                }
                Some(Pending::Create { name, from }) => {
                    work::create(&process, model, &name, &from).await?;
                }
                Some(Pending::Snapshot { of, name }) if gives_up => {
                    give_up_snapshot(&process, of, &name).await?;
                }
                Some(Pending::Snapshot { of, name }) => {
                    work::snapshot(&process, model, of, &name).await?;
                }
                None => {}
            }
            work::compare(&process, model).await
        })
    }

    /// Everything is read again by a process that has nothing in memory, then deleted and
    /// collected.
    fn finish(&mut self) -> Result<(), String> {
        self.resume_collector()?;
        self.told.push("end".to_owned());
        let (process, model) = (self.world.process().clone(), &mut self.model);
        self.world.run(work::perform(&process, model, &Op::CloseAll, &self.tally))?;
        drop(process);
        self.world.die();
        self.world.start();
        let (process, model, tally) = (self.world.process().clone(), &mut self.model, &self.tally);
        let mut order: Vec<Result<VolumeHandle, SnapshotHandle>> =
            model.datasets.iter().map(|d| Ok(d.handle)).collect();
        order.extend(model.snapshots.iter().map(|s| Err(s.handle)));
        order.shuffle(&mut self.rng);
        self.world.run(async {
            work::compare(&process, model).await?;
            for (n, handle) in order.into_iter().enumerate() {
                match handle {
                    Ok(volume) => work::delete(&process, model, volume).await?,
                    Err(snapshot) => work::delete_snapshot(&process, model, snapshot).await?,
                }
                if n % 4 == 3 {
                    work::collect(&process, Where::Here, tally).await?;
                }
            }
            for (name, _) in &model.abandoned {
                work::give_up(&process, name).await?;
            }
            // A process that died while it read a snapshot keeps it for an hour.
            let later = SystemTime::now() + Duration::from_secs(2 * 3600);
            process.catalog.sweep_readers(later).await.map_err(|error| error.to_string())?;
            work::a_day_later(&process).await?;
            let mut left = vec![];
            for _ in 0..LAST_COLLECTIONS {
                let done = process
                    .collect(Where::Here)
                    .await
                    .map_err(|error| format!("the last collection: {error}"))?;
                tally.borrow_mut().collected(&done);
                left = work::left(&process).await;
                if left.is_empty() {
                    return Ok(());
                }
                left.push(format!("{done:?}"));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(format!("something is left: {left:#?}"))
        })
    }
}

async fn give_up_snapshot(
    process: &crate::world::Process,
    of: VolumeHandle,
    name: &str,
) -> Result<(), String> {
    let found = process
        .catalog
        .snapshot(of.dataset, &name.parse().unwrap())
        .await
        .map_err(|error| error.to_string())?;
    let Some(found) = found.filter(|at| matches!(at.record.state, State::Ready | State::Creating))
    else {
        return Ok(());
    };
    let handle = SnapshotHandle { pool: of.pool, snapshot: found.record.id() };
    let deleted = again(async || process.controller.delete_snapshot(handle).await).await;
    deleted.map_err(|error| {
        format!("giving up snapshot {name}: {error} ({:?})", Classify::class(&error) as Class)
    })
}
