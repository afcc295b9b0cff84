//! A year of two processes that run a policy, on clocks that jump, with outages, restarts, failures
//! and holds: the functions that decide, over a bucket that is a list.

use super::agenda::{Agenda, Due};
use super::retention::{self, RetentionCandidate, Verdict};
use super::rules::Rules;
use super::slot_name::{NamedSnapshot, name_to_make};
use crate::catalog::{Keep, KeepRules, PolicyRecord, PolicyRun, SnapshotPolicy, State};
use crate::types::{DatasetId, Incarnation, NameKey, SnapshotName, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;
const STEP: i64 = 5 * MINUTE;
const START: i64 = 1_795_996_800;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_parts(START + secs, 0)
}

struct Snapshot {
    name: SnapshotName,
    created: Timestamp,
    serial: u32,
    /// The true time.
    made: i64,
    held: bool,
}

/// The bucket's content: one policy, its claim, and snapshots.
struct Bucket {
    record: PolicyRecord,
    run: PolicyRun,
    snapshots: Vec<Snapshot>,
    /// Per dataset and turn.
    deleted_most: usize,
    deleted: usize,
    made: usize,
}

/// A process: its memory, and how far its clock is ahead.
struct Process {
    agenda: Agenda,
    ahead: i64,
    /// Until then it is down, or its clock is wrong.
    down_until: i64,
    wrong_until: i64,
}

fn dataset() -> DatasetId {
    let incarnation = Incarnation::from_bytes([1; 16]);
    DatasetId { key: NameKey::of("dataset", "web"), incarnation }
}

impl Bucket {
    fn new(keep: KeepRules) -> Self {
        let policy = SnapshotPolicy {
            schedule: "0 * * * *".to_owned(),
            time_zone: "Europe/Berlin".to_owned(),
            prefix: "auto-".to_owned(),
            skip_empty: false,
            keep,
        };
        Self {
            record: PolicyRecord { dataset: dataset(), policy: Some(policy), changed: at(-1) },
            run: PolicyRun {
                holder: None,
                node: String::new(),
                lease_millis: 0,
                done: None,
                failed: Vec::new(),
            },
            snapshots: Vec::new(),
            deleted_most: 0,
            deleted: 0,
            made: 0,
        }
    }

    fn candidates(&self) -> Vec<RetentionCandidate> {
        let of = |s: &Snapshot| RetentionCandidate {
            created: s.created,
            serial: s.serial,
            ready: true,
            by_policy: true,
            held: s.held.then(|| "held".to_owned()),
        };
        self.snapshots.iter().map(of).collect()
    }

    /// Does a slot as a runner does.
    fn slot(&mut self, rules: &Rules, due: Due, now: Timestamp, truth: i64) {
        let named = |s: &'_ Snapshot| (s.name.clone(), s.created, s.serial);
        let names: Vec<_> = self.snapshots.iter().map(named).collect();
        let there: Vec<NamedSnapshot<'_>> = names
            .iter()
            .map(|(name, created, serial)| {
                let state = &State::Ready;
                NamedSnapshot { name, created: *created, serial: *serial, state }
            })
            .collect();
        if let Some(name) = name_to_make(rules, due.slot, now, &there).unwrap() {
            assert!(self.snapshots.iter().all(|s| s.name != name), "{name} is there");
            self.made += 1;
            let serial = u32::try_from(self.made).unwrap();
            self.snapshots.push(Snapshot { name, created: now, serial, made: truth, held: false });
        }
        if (now.since(at(truth))).max(at(truth).since(now)) > super::CLOCK_SKEW {
            return;
        }
        let verdicts = retention::verdicts(rules, self.record.changed, now, &self.candidates());
        let newest = self
            .snapshots
            .iter()
            .filter(|s| s.created <= now.saturating_add(super::CLOCK_SKEW))
            .map(|s| s.created)
            .max();
        let mut verdicts = verdicts.into_iter();
        let before = self.snapshots.len();
        self.snapshots.retain(|snapshot| {
            let goes = verdicts.next() == Some(Verdict::Delete);
            assert!(!goes || !snapshot.held, "{} is held", snapshot.name);
            !goes
        });
        let is_newest = |s: &Snapshot| Some(s.created) == newest;
        assert!(self.snapshots.iter().any(is_newest), "the newest stays");
        let deleted = before - self.snapshots.len();
        self.deleted += deleted;
        self.deleted_most = self.deleted_most.max(deleted);
    }
}

/// The fault that a turn meets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RunEnd {
    Fine,
    /// The snapshot cannot be made.
    Fails,
    /// The process dies when the snapshot is made, and before the slot counts as done.
    Dies,
}

impl Process {
    fn new() -> Self {
        Self { agenda: Agenda::default(), ahead: 0, down_until: -1, wrong_until: -1 }
    }

    /// A turn, as the runner takes it.
    fn run(&mut self, bucket: &mut Bucket, truth: i64, end: RunEnd) {
        let now = at(truth + self.ahead);
        if self.agenda.version(dataset().incarnation).is_none() {
            self.agenda.put(1, &bucket.record);
        }
        if self.agenda.due(now).is_empty() {
            return;
        }
        self.agenda.learn(&bucket.run, now);
        let [due] = self.agenda.due(now)[..] else { return };
        let rules = self.agenda.rules(due.dataset.incarnation).unwrap().0.clone();
        if end == RunEnd::Fails {
            self.agenda.failed(due, now);
        } else {
            bucket.slot(&rules, due, now, truth);
            if end == RunEnd::Dies {
                self.agenda = Agenda::default();
                return;
            }
            self.agenda.done(due);
        }
        (bucket.run.done, bucket.run.failed) = (Some(now), self.agenda.open(now));
    }

    fn is_right(&self, truth: i64) -> bool {
        truth >= self.down_until && truth >= self.wrong_until
    }
}

/// The time of the newest snapshot that is not ahead, if the clock is right.
fn newest(bucket: &Bucket, truth: i64) -> Option<i64> {
    let past = bucket.snapshots.iter().filter(|s| s.created <= at(truth + STEP));
    past.map(|s| s.made).max()
}

/// Plays a year. `least`: this many snapshots stay, once there were as many as the rules keep.
fn year(keep: KeepRules, full: usize, least: usize, seed: u64) -> Bucket {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut bucket = Bucket::new(keep);
    let mut processes = [Process::new(), Process::new()];
    let (mut outage_until, mut fine_since, mut was_full) = (-1, 0, false);
    for truth in (0..YEAR).step_by(usize::try_from(STEP).unwrap()) {
        if rng.random_bool(0.0002) {
            outage_until = truth + rng.random_range(HOUR..5 * DAY);
        }
        for process in &mut processes {
            if truth >= process.wrong_until {
                process.ahead = rng.random_range(-20..20);
            }
            if rng.random_bool(0.0002) {
                let jumps = [400 * DAY, 30 * DAY, DAY, 3 * HOUR, -3 * HOUR, -DAY, -400 * DAY];
                process.ahead = jumps[rng.random_range(0..jumps.len())];
                process.wrong_until = truth + rng.random_range(HOUR..6 * HOUR);
            }
            if rng.random_bool(0.001) {
                process.agenda = Agenda::default();
                process.down_until = truth + rng.random_range(0..2 * HOUR);
            }
        }
        if rng.random_bool(0.001)
            && let Some(some) = bucket.snapshots.first_mut()
        {
            some.held = true;
        }
        if rng.random_bool(0.001) {
            bucket.snapshots.iter_mut().for_each(|snapshot| snapshot.held = false);
        }
        let store_is_up = truth >= outage_until;
        if !store_is_up || !processes.iter().any(|process| process.is_right(truth)) {
            fine_since = truth + STEP;
        }
        for process in &mut processes {
            if store_is_up && truth >= process.down_until {
                let end = match rng.random_range(0..100) {
                    0..3 => RunEnd::Fails,
                    3 => RunEnd::Dies,
                    _ => RunEnd::Fine,
                };
                process.run(&mut bucket, truth, end);
            }
        }
        // An hour for the slot, and one for what fails and is tried again.
        if truth - fine_since > 2 * HOUR {
            let newest = newest(&bucket, truth).expect("there is a snapshot");
            assert!(truth - newest <= 2 * HOUR, "seed {seed}: none since {}", truth - newest);
        }
        let past = bucket.snapshots.iter().filter(|s| s.created <= at(truth + STEP)).count();
        was_full |= past >= full;
        assert!(!was_full || past >= least, "seed {seed}: {past} are left at {truth}");
    }
    assert!(was_full, "seed {seed}");
    bucket
}

#[test]
fn a_year_by_counts() {
    let keep = KeepRules {
        hourly: Some(Keep::Count(24)),
        daily: Some(Keep::Count(7)),
        weekly: Some(Keep::Count(4)),
        monthly: Some(Keep::Count(6)),
        ..KeepRules::default()
    };
    for seed in 0..2 {
        // Some seem to be of hours, days and weeks in which a clock was wrong.
        let bucket = year(keep, 30, 18, seed);
        println!("seed {seed}: made {}, deleted {}", bucket.made, bucket.deleted);
        assert!(bucket.made > 6000, "seed {seed}: {}", bucket.made);
        // Whatever happens, a turn deletes what leaves the tiers, and what was released.
        assert!(bucket.deleted_most <= 16, "seed {seed}: {}", bucket.deleted_most);
    }
}

#[test]
fn a_year_by_age() {
    let keep = KeepRules { last: Some(Keep::Secs(2 * DAY.unsigned_abs())), ..KeepRules::default() };
    for seed in 10..12 {
        let bucket = year(keep, 48, 12, seed);
        println!("seed {seed}: made {}, deleted {}", bucket.made, bucket.deleted);
        // Three for an outage, and more where a wrong clock made some that seem to lie in it.
        assert!(bucket.deleted_most <= 60, "seed {seed}: {}", bucket.deleted_most);
    }
}
