//! Snapshot policies: one snapshot for each slot whoever runs them, nothing for nothing, and what
//! is needed stays.

use super::{Driven, World};
use crate::support::fault::FaultStore;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use zerofs_csi::bucket::{Bucket, Limits};
use zerofs_csi::catalog::{Catalog, Dataset, Keep, KeepRules, PolicyRun, SnapshotPolicy, State};
use zerofs_csi::control::Source;
use zerofs_csi::control::policy::{PolicyRunner, PolicyStatus, REFRESH, RunOutcome};
use zerofs_csi::types::{SessionId, SnapshotHandle, Timestamp, VolumeHandle};

/// A Monday at midnight.
const START: i64 = 1_795_996_800;
const HOUR: i64 = 3600;

fn at(secs: i64) -> Timestamp {
    Timestamp::from_parts(START + secs, 0)
}

/// A process with a clock of its own, and its runner.
struct Process {
    world: World,
    clock: Arc<Driven>,
    runner: PolicyRunner,
    status: PolicyStatus,
}

impl Process {
    fn on(catalog: &Catalog, node: &str) -> Self {
        let clock = Arc::new(Driven::default());
        let world = World::builder(node).clock(clock.clone()).on(catalog.clone());
        let pool = world.pool().clone();
        let status = PolicyStatus::default();
        let runner = PolicyRunner::new(world.controller.clone(), pool, status.clone());
        Self { world, clock, runner, status }
    }

    async fn turn(&mut self, secs: i64) -> RunOutcome {
        self.runner.run_due(at(secs)).await.unwrap()
    }

    async fn set(&self, volume: VolumeHandle, policy: SnapshotPolicy, changed: i64) {
        let (controller, dataset) = (&self.world.controller, self.dataset(volume).await);
        let pool = controller.pools().get(None).unwrap();
        controller.set_policy(pool, &dataset, policy, at(changed)).await.unwrap();
    }

    async fn dataset(&self, volume: VolumeHandle) -> Dataset {
        self.world.record(volume).await
    }

    /// The names of the dataset's ready snapshots.
    async fn names(&self, volume: VolumeHandle) -> BTreeSet<String> {
        let found = self.world.catalog.snapshots(Some(volume.dataset.incarnation)).await.unwrap();
        let ready = found.into_iter().filter(|at| at.record.state == State::Ready);
        ready.map(|at| at.record.name.to_string()).collect()
    }

    async fn handle(&self, volume: VolumeHandle, name: &str) -> SnapshotHandle {
        let name = name.parse().unwrap();
        let at = self.world.catalog.snapshot(volume.dataset, &name).await.unwrap().unwrap();
        SnapshotHandle { pool: volume.pool, snapshot: at.record.id() }
    }
}

fn hourly(last: u32) -> SnapshotPolicy {
    SnapshotPolicy {
        schedule: "1h".to_owned(),
        time_zone: "UTC".to_owned(),
        prefix: "auto-".to_owned(),
        skip_empty: false,
        keep: KeepRules { last: Some(Keep::Count(last)), ..KeepRules::default() },
    }
}

fn made(snapshots: usize, deleted: usize) -> RunOutcome {
    RunOutcome::Done { snapshots, unchanged: 0, deleted, failed: 0 }
}

async fn catalog() -> Catalog {
    Catalog::create(Bucket::memory(), None).await.unwrap()
}

async fn volume(process: &Process, name: &str) -> VolumeHandle {
    let volume = process.world.volume(name).await;
    process.world.write(volume, "file", b"data").await;
    volume
}

#[test]
fn a_slot_makes_one_snapshot_whichever_process_does_it() {
    super::run(async {
        let catalog = catalog().await;
        let (mut one, mut two) = (Process::on(&catalog, "one"), Process::on(&catalog, "two"));
        let volume = volume(&one, "web").await;
        one.set(volume, hourly(2), -10 * 24 * HOUR).await;
        assert_eq!(one.turn(5).await, made(1, 0));
        assert_eq!(two.turn(6).await, RunOutcome::Idle, "the other has done it");
        assert_eq!(one.turn(7).await, RunOutcome::Idle);
        assert_eq!(two.turn(HOUR).await, made(1, 0));
        assert_eq!(one.turn(HOUR + 1).await, RunOutcome::Idle);
        // A restart after an outage: of the missed slots the newest makes one.
        let mut again = Process::on(&catalog, "one");
        assert_eq!(again.turn(9 * HOUR + 100).await, made(1, 1));
        let expected = ["auto-2026-11-30T01-00Z", "auto-2026-11-30T09-00Z"];
        assert_eq!(one.names(volume).await, expected.map(str::to_owned).into());
        // The clock is set back: what is ahead of it stays, and the slots go on.
        assert_eq!(again.turn(3 * HOUR).await, made(1, 0));
        assert_eq!(two.turn(3 * HOUR + 1).await, RunOutcome::Idle);
        assert_eq!(again.names(volume).await.len(), 3);
        let counts = again.status.of(volume.pool).unwrap();
        assert_eq!((counts.policies, counts.overdue), (1, 0));
    });
}

#[test]
fn a_process_that_died_keeps_nobody_from_running_the_policies() {
    super::run(async {
        let catalog = catalog().await;
        let mut two = Process::on(&catalog, "two");
        let volume = volume(&two, "web").await;
        two.set(volume, hourly(3), -1).await;
        let claim = PolicyRun {
            holder: Some(SessionId::random()),
            node: "one".to_owned(),
            lease_millis: 45_000,
            done: None,
            failed: vec![],
        };
        catalog.write_policy_run(None, claim).await.unwrap();
        assert_eq!(two.turn(0).await, RunOutcome::HeldBy("one".to_owned()));
        two.clock.advance(Duration::from_secs(44));
        assert_eq!(two.turn(44).await, RunOutcome::HeldBy("one".to_owned()));
        two.clock.advance(Duration::from_secs(1));
        assert_eq!(two.turn(45).await, made(1, 0));
    });
}

#[test]
fn an_idle_process_lists_the_policies_once_in_five_minutes() {
    super::run(async {
        let bucket = Bucket::memory();
        let one = Process::on(&Catalog::create(bucket.clone(), None).await.unwrap(), "one");
        for n in 0..40 {
            let volume = one.world.volume(&format!("v{n}")).await;
            one.set(volume, SnapshotPolicy { schedule: "1d".to_owned(), ..hourly(3) }, 1).await;
        }
        // Counts on its own.
        let bucket = bucket.with_limits(Limits::default());
        let mut two = Process::on(&Catalog::open(bucket.clone(), None).await.unwrap(), "two");
        assert_eq!(two.turn(10).await, RunOutcome::Idle);
        let before = bucket.requests();
        for n in 1..=360 {
            two.clock.advance(Duration::from_secs(10));
            assert_eq!(two.turn(10 + 10 * n).await, RunOutcome::Idle);
        }
        let hour = bucket.requests() - before;
        println!("an idle hour of 40 datasets with policies: {hour:?}");
        assert_eq!(hour.list, 3600 / REFRESH.as_secs());
        assert_eq!((hour.get, hour.put, hour.delete, hour.head), (0, 0, 0, 0), "{hour:?}");
        assert_eq!(two.status.of(two.world.catalog.pool().id).unwrap().policies, 40);
    });
}

#[test]
fn nothing_is_made_of_a_dataset_that_has_not_changed() {
    super::run(async {
        let catalog = catalog().await;
        let mut one = Process::on(&catalog, "one");
        let volume = volume(&one, "web").await;
        one.set(volume, SnapshotPolicy { skip_empty: true, ..hourly(9) }, -1).await;
        assert_eq!(one.turn(0).await, made(1, 0));
        let unchanged = RunOutcome::Done { snapshots: 0, unchanged: 1, deleted: 0, failed: 0 };
        assert_eq!(one.turn(HOUR).await, unchanged);
        assert_eq!(one.turn(2 * HOUR).await, unchanged);
        one.world.write(volume, "file", b"DATA").await;
        assert_eq!(one.turn(3 * HOUR).await, made(1, 0));
        assert_eq!(one.turn(4 * HOUR).await, unchanged);
        // The same of a volume that is open: what was synced counts.
        let open = one.world.open(volume).await;
        assert_eq!(one.turn(5 * HOUR).await, made(1, 0), "it was opened");
        assert_eq!(one.turn(6 * HOUR).await, unchanged);
        drop(open);
    });
}

#[test]
fn what_somebody_needs_stays() {
    super::run(async {
        let catalog = catalog().await;
        let mut one = Process::on(&catalog, "one");
        let volume = volume(&one, "web").await;
        one.set(volume, hourly(1), -10 * 24 * HOUR).await;
        one.world.snapshot(volume, "by-hand").await;
        assert_eq!(one.turn(0).await, made(1, 0));
        let first = "auto-2026-11-30T00-00Z";
        let handle = one.handle(volume, first).await;
        let controller = one.world.controller.clone();
        controller.hold_snapshot(handle, "audit").await.unwrap();
        controller.hold_snapshot(handle, "audit").await.unwrap();
        let refused = controller.delete_snapshot(handle).await.unwrap_err().to_string();
        assert!(refused.contains("audit") && refused.contains("unhold"), "{refused}");
        assert_eq!(one.turn(HOUR).await, made(1, 0));
        // A clone depends on the second one.
        let second = one.handle(volume, "auto-2026-11-30T01-00Z").await;
        one.world.copy("clone", Source::Snapshot(second)).await;
        assert_eq!(one.turn(2 * HOUR).await, made(1, 0));
        assert!(controller.unhold_snapshot(handle, "other").await.is_err());
        controller.unhold_snapshot(handle, "audit").await.unwrap();
        assert_eq!(one.turn(3 * HOUR).await, made(1, 2), "the first, and the third");
        let left = one.names(volume).await;
        assert!(left.contains("by-hand") && left.contains("auto-2026-11-30T01-00Z"), "{left:?}");
        // The policy goes with its dataset.
        controller.delete_volume(volume).await.unwrap();
        for name in left {
            controller.delete_snapshot(one.handle(volume, &name).await).await.unwrap();
        }
        one.world.collect().await;
        assert_eq!(catalog.policy_versions().await.unwrap().len(), 0);
        one.clock.advance(Duration::from_secs(1));
        assert_eq!(one.turn(4 * HOUR).await, RunOutcome::Idle);
    });
}

#[test]
fn a_failure_at_each_step_is_made_good_by_the_next_turn() {
    super::run(async {
        for step in [
            "control.policy.claim",
            "control.snapshot.serial",
            "control.snapshot.intent",
            "control.snapshot.checkpoint",
            "control.snapshot.ready",
            "control.policy.expire",
            "control.snapshot-delete.tombstone",
            "control.policy.claim-released",
        ] {
            let catalog = catalog().await;
            let mut one = Process::on(&catalog, "one");
            let volume = volume(&one, "web").await;
            one.set(volume, hourly(1), -10 * 24 * HOUR).await;
            assert_eq!(one.turn(0).await, made(1, 0));
            let failpoints = catalog.bucket().failpoints();
            failpoints.set(step, "1*return").unwrap();
            let failed = one.runner.run_due(at(HOUR)).await;
            let counted = matches!(failed, Ok(RunOutcome::Done { failed: 1, .. }));
            assert!(failed.is_err() || counted, "{step}: {failed:?}");
            // After the pause of a slot that failed, or after the lease of a claim that was kept.
            one.clock.advance(Duration::from_secs(61));
            one.turn(HOUR + 61).await;
            let expected: BTreeSet<String> = ["auto-2026-11-30T01-00Z".to_owned()].into();
            if step == "control.policy.claim-released" || one.names(volume).await == expected {
                // Done before it failed, or now.
            } else {
                panic!("{step}: {:?}", one.names(volume).await);
            }
            assert_eq!(one.turn(2 * HOUR).await, made(1, 1), "{step}");
            let holder = catalog.policy_run().await.unwrap().unwrap().record.holder;
            assert_eq!(holder, None, "{step}");
        }
    });
}

/// By a wrong clock too many seem old.
#[test]
fn a_machine_whose_clock_differs_from_the_stores_deletes_nothing() {
    super::run(async {
        let store = FaultStore::memory();
        let catalog = Catalog::create(store.bucket(), None).await.unwrap();
        let mut process = Process::on(&catalog, "one");
        let volume = volume(&process, "web").await;
        process.set(volume, hourly(1), -10 * 24 * HOUR).await;
        assert_eq!(process.turn(5).await, made(1, 0));
        store.clock_ahead(Duration::from_secs(3600));
        assert_eq!(process.turn(HOUR).await, made(1, 0));
        store.clock_ahead(Duration::from_secs(60));
        assert_eq!(process.turn(2 * HOUR).await, made(1, 2));
    });
}
