//! Group snapshots: one point in time over volumes of several processes, all of it or nothing.

use super::stamps::{Stamps, stamps_in, stamps_of};
use super::{World, size};
use crate::support::files::{read, top};
use crate::support::world::{Mailbox, until_passed};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use zerofs_csi::bucket::Bucket;
use zerofs_csi::catalog::State;
use zerofs_csi::control::{ControlError, Controller, GroupInfo, Source};
use zerofs_csi::fs::FREEZE_MAX;
use zerofs_csi::fs::api::*;
use zerofs_csi::types::{Class, Classify, GroupHandle, SnapshotHandle, Timestamp, VolumeHandle};
use zerofs_csi::volume::VolumeGuard;

const POLL: Duration = Duration::from_millis(500);

/// Four volumes of three processes, and a controller in a fourth that has none open.
struct Cluster {
    controller: World,
    nodes: Vec<World>,
    volumes: Vec<VolumeHandle>,
    open: Vec<VolumeGuard>,
    mailboxes: Vec<Mailbox>,
}

impl Cluster {
    async fn new() -> Self {
        let controller = World::builder("controller").create(Bucket::memory()).await;
        let nodes: Vec<World> =
            ["node-a", "node-b", "node-c"].map(|node| controller.beside(node)).into();
        let (mut volumes, mut open) = (vec![], vec![]);
        for (n, at) in [0, 0, 1, 2].into_iter().enumerate() {
            let volume = controller.volume(&format!("v{n}")).await;
            open.push(nodes[at].open(volume).await);
            volumes.push(volume);
        }
        let mailboxes = nodes.iter().map(|node| node.serve_mailbox(POLL)).collect();
        Self { controller, nodes, volumes, open, mailboxes }
    }

    async fn group(&self, name: &str) -> Result<GroupInfo, ControlError> {
        group(&self.controller.controller, &self.volumes, name).await
    }

    async fn stop(self) {
        for mailbox in self.mailboxes {
            mailbox.stop().await;
        }
        drop(self.open);
        for node in &self.nodes {
            node.close_all().await;
        }
    }
}

async fn group(
    controller: &Controller,
    volumes: &[VolumeHandle],
    name: &str,
) -> Result<GroupInfo, ControlError> {
    controller.create_group_snapshot(volumes, name.parse().unwrap()).await
}

/// The snapshots of volumes, in the order of these.
fn in_order(volumes: &[VolumeHandle], made: &GroupInfo) -> Vec<SnapshotHandle> {
    let of = |volume: &VolumeHandle| {
        let found = made.snapshots.iter().find(|s| s.snapshot.dataset == volume.dataset);
        found.expect("one for each volume").handle
    };
    volumes.iter().map(of).collect()
}

fn percentile(times: &mut [Duration], of_hundred: usize) -> Duration {
    times.sort();
    times[(times.len() * of_hundred).div_ceil(100) - 1]
}

/// What the group snapshots are for: while all volumes are written, none of many cuts is torn. That
/// the check can see a torn one is shown by snapshots that are made one after the other.
#[test]
fn no_group_snapshot_of_volumes_in_use_is_torn() {
    super::run(async {
        let cluster = Cluster::new().await;
        let mut files = vec![];
        for open in &cluster.open {
            files.push((open.fs.clone(), top::create(&*open.fs, "stamps").await));
        }
        let files = Arc::new(files);
        let used: Arc<Vec<AtomicUsize>> =
            Arc::new(files.iter().map(|_| Default::default()).collect());
        let stamps = Arc::new(Stamps::default());
        let mut writers = JoinSet::new();
        for writer in 0..4 {
            let (stamps, files, used) = (stamps.clone(), files.clone(), used.clone());
            writers.spawn(async move { stamps.write(writer, &files, &used).await });
        }

        let mut one_by_one = vec![];
        for volume in &cluster.volumes {
            one_by_one.push(cluster.controller.snapshot(*volume, "one-by-one").await);
        }
        let (mut made, mut frozen) = (vec![], vec![]);
        for n in 0..20 * size() {
            let group = cluster.group(&format!("group-{n}")).await.unwrap();
            frozen.push(group.frozen.expect("it was made now"));
            made.push(in_order(&cluster.volumes, &group));
        }
        stamps.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = writers.join_next().await {
            ended.unwrap();
        }

        let mut written = vec![];
        for (fs, file) in files.iter() {
            written.push(stamps_in(&read(&**fs, *file).await));
        }
        let seen = async |cut: &Vec<SnapshotHandle>| {
            let mut seen = vec![];
            for snapshot in cut {
                seen.push(stamps_of(&cluster.controller, *snapshot).await);
            }
            stamps.check(&seen, &written)
        };
        for (n, cut) in made.iter().enumerate() {
            seen(cut).await.unwrap_or_else(|torn| panic!("group {n} is torn: {torn}"));
        }
        assert!(seen(&one_by_one).await.is_err(), "the check sees no torn cut");
        let total = stamps.at.lock().len();
        assert!(total as u64 > 100 * size(), "little was written: {total}");
        println!(
            "{} group snapshots of 4 volumes of 3 processes over mailboxes, {total} stamps: frozen \
             {} ms at the median, {} ms at the 99th percentile; longest write {} ms",
            made.len(),
            percentile(&mut frozen, 50).as_millis(),
            percentile(&mut frozen, 99).as_millis(),
            stamps.longest.load(Ordering::SeqCst),
        );
        assert!(percentile(&mut frozen, 100) < FREEZE_MAX);
        drop(files);
        cluster.stop().await;
    });
}

/// Without the noise of several processes: a process that has all volumes open, and a released one.
async fn alone(volumes: usize) -> (World, Vec<VolumeHandle>, Vec<VolumeGuard>) {
    let world = World::new().await;
    let (mut handles, mut open) = (vec![], vec![]);
    for n in 0..volumes {
        let volume = world.volume(&format!("v{n}")).await;
        open.push(world.open(volume).await);
        handles.push(volume);
    }
    let released = world.volume("released").await;
    world.write(released, "file", b"content").await;
    handles.push(released);
    // It was never opened.
    handles.push(world.volume("new").await);
    (world, handles, open)
}

async fn ids(world: &World) -> Vec<String> {
    let snapshots = world.catalog.snapshots(None).await.unwrap();
    snapshots.into_iter().map(|at| at.record.id().to_string()).collect()
}

/// Neither a snapshot nor a record of a group, nor a checkpoint of its.
async fn assert_nothing_left(world: &World, when: &str) {
    assert_eq!(ids(world).await, Vec::<String>::new(), "{when}");
    assert!(world.catalog.group_snapshots().await.unwrap().is_empty(), "{when}");
}

fn group_of(made: &GroupInfo) -> (GroupHandle, Vec<SnapshotHandle>) {
    (made.handle, made.snapshots.iter().map(|snapshot| snapshot.handle).collect())
}

#[test]
fn a_group_is_made_once_and_is_deleted_as_a_whole() {
    super::run(async {
        let (world, volumes, _open) = alone(2).await;
        let controller = &world.controller;
        let made = group(controller, &volumes, "g").await.unwrap();
        let (handle, snapshots) = group_of(&made);
        assert_eq!(snapshots.len(), 4);
        for snapshot in &made.snapshots {
            assert_eq!(snapshot.snapshot.state, State::Ready);
            assert_eq!(snapshot.snapshot.created, made.created);
            assert_eq!(snapshot.snapshot.group, Some(handle.group));
        }
        let mut reversed = volumes.clone();
        reversed.reverse();
        let again = group(controller, &reversed, "g").await.unwrap();
        assert_eq!(group_of(&again), (handle, snapshots.clone()), "a retry, in any order");
        let got = controller.group_snapshot(handle, Some(&snapshots)).await.unwrap();
        assert_eq!(group_of(&got), (handle, snapshots.clone()));

        let refused = async |volumes: &[VolumeHandle], name: &str| {
            group(controller, volumes, name).await.unwrap_err().class()
        };
        assert_eq!(refused(&volumes[1..], "g").await, Class::Exists, "other volumes");
        assert_eq!(refused(&[], "h").await, Class::Invalid);
        assert_eq!(refused(&[volumes[0], volumes[0]], "h").await, Class::Invalid);
        let other_pool =
            VolumeHandle { pool: zerofs_csi::types::PoolId::random(), dataset: volumes[1].dataset };
        assert_eq!(refused(&[volumes[0], other_pool], "h").await, Class::Invalid);
        world.snapshot(volumes[0], "taken").await;
        assert_eq!(refused(&volumes, "taken").await, Class::Exists, "a snapshot of that name");
        let single = controller.create_snapshot(volumes[0], "g".parse().unwrap()).await;
        assert_eq!(single.unwrap_err().class(), Class::Exists, "a name of the group");
        let wrong = controller.group_snapshot(handle, Some(&snapshots[1..])).await;
        assert_eq!(wrong.unwrap_err().class(), Class::Invalid);
        let wrong = controller.delete_group_snapshot(handle, Some(&snapshots[1..])).await;
        assert_eq!(wrong.unwrap_err().class(), Class::Invalid);

        // A part of it is not deleted alone, and a held part keeps the whole.
        let part = controller.delete_snapshot(snapshots[0]).await.unwrap_err();
        assert_eq!(part.class(), Class::Precondition);
        assert!(part.to_string().contains("group snapshot g"), "{part}");
        controller.hold_snapshot(snapshots[2], "audit").await.unwrap();
        let held = controller.delete_group_snapshot(handle, None).await.unwrap_err();
        assert_eq!(held.class(), Class::Precondition);
        assert_eq!(group_of(&controller.group_snapshot(handle, None).await.unwrap()).1, snapshots);
        controller.unhold_snapshot(snapshots[2], "audit").await.unwrap();

        // A clone keeps what it needs.
        let clone = world.create("clone", Some(Source::Snapshot(snapshots[0]))).await.unwrap();
        controller.delete_group_snapshot(handle, Some(&snapshots)).await.unwrap();
        controller.delete_group_snapshot(handle, Some(&snapshots)).await.unwrap();
        let gone = controller.group_snapshot(handle, None).await.unwrap_err();
        assert_eq!(gone.class(), Class::NotFound);
        controller.delete_snapshot(snapshots[1]).await.unwrap();
        controller.delete_volume(clone.handle).await.unwrap();
        world.collect().await;
        let group_again = group(controller, &volumes, "g").await.unwrap();
        assert_ne!(group_again.handle, handle, "another life");
        controller.delete_group_snapshot(group_again.handle, None).await.unwrap();
    });
}

/// Every step of a group snapshot, in its order.
const STEPS: &[&str] = &[
    "control.group.begin",
    "control.group.intent",
    "control.group.intents",
    "control.group.frozen",
    "control.group.cut",
    "control.group.thawed",
    "control.group.ready",
    "control.group.member",
];

/// An attempt that fails leaves nothing; one that dies leaves what the next call removes, or
/// completes where the group was ready.
#[test]
fn a_failure_at_each_step_leaves_all_or_nothing() {
    super::run(async {
        let (world, volumes, open) = alone(1).await;
        let failpoints = world.failpoints();
        for step in STEPS {
            let is_ready = matches!(*step, "control.group.ready" | "control.group.member");
            // In each of the attempts.
            failpoints.set(step, "return").unwrap();
            group(&world.controller, &volumes, "g").await.unwrap_err();
            failpoints.set(step, "off").unwrap();
            let kept = ids(&world).await;
            match is_ready {
                true => assert_eq!(kept.len(), volumes.len(), "{step}"),
                false => assert_nothing_left(&world, step).await,
            }
            // Nobody waits.
            let change = top::create(&*open[0].fs, step);
            tokio::time::timeout(Duration::from_secs(1), change).await.expect("it is frozen");
            world.write(volumes[1], "after", b"x").await;

            // Death at the step.
            if !is_ready {
                failpoints.set(step, "return").unwrap();
                failpoints.set("control.group.discard", "return").unwrap();
                group(&world.controller, &volumes, "g").await.unwrap_err();
                failpoints.set(step, "off").unwrap();
                failpoints.set("control.group.discard", "off").unwrap();
            }
            let made = group(&world.controller, &volumes, "g").await.unwrap();
            let ready = made.snapshots.iter().map(|s| s.handle.snapshot.to_string());
            let ready: BTreeSet<String> = ready.collect();
            assert_eq!(ready, ids(&world).await.into_iter().collect(), "{step}: and no others");
            if is_ready {
                assert_eq!(ready, kept.into_iter().collect(), "{step}: the same snapshots");
            }
            for deletion in [
                "control.group.tombstone",
                "control.group.member-tombstone",
                "control.group.removed",
            ] {
                failpoints.set(deletion, "1*return->off").unwrap();
                world.controller.delete_group_snapshot(made.handle, None).await.unwrap_err();
            }
            world.controller.delete_group_snapshot(made.handle, None).await.unwrap();
            world.collect().await;
            assert_nothing_left(&world, step).await;
        }
    });
}

/// A caller that never comes back: the collector does what it has left, a day later.
#[test]
fn what_nobody_finishes_is_collected() {
    super::run(async {
        let (world, volumes, _open) = alone(1).await;
        let failpoints = world.failpoints();
        let day = 25 * 3600 * 1_000_000_000;
        let aged = |at: Timestamp| Timestamp::from_nanos(at.as_nanos() - day);
        for step in STEPS {
            if *step == "control.group.begin" {
                continue;
            }
            let is_ready = matches!(*step, "control.group.ready" | "control.group.member");
            failpoints.set(step, "1*return->off").unwrap();
            failpoints.set("control.group.discard", "1*return->off").unwrap();
            group(&world.controller, &volumes, "g").await.unwrap_err();
            failpoints.set("control.group.discard", "off").unwrap();
            let [at] = &world.catalog.group_snapshots().await.unwrap()[..] else {
                panic!("{step}: no record")
            };
            let id = at.record.id();
            let begun = ids(&world).await.len();
            world.collect().await;
            assert_eq!(ids(&world).await.len(), begun, "{step}: it may be in progress");
            let age = |group: &mut zerofs_csi::catalog::GroupSnapshot| {
                group.created = aged(group.created);
                Ok(())
            };
            world.catalog.update_group_snapshot(id, age).await.unwrap();
            for snapshot in at.record.snapshots() {
                let age = |snapshot: &mut zerofs_csi::catalog::Snapshot| {
                    snapshot.created = aged(snapshot.created);
                    Ok(())
                };
                // In some cases it was not begun.
                let _ = world.catalog.update_snapshot(snapshot, age).await;
            }
            world.collect().await;
            if is_ready {
                let states = world.catalog.snapshots(None).await.unwrap();
                assert_eq!(states.len(), volumes.len(), "{step}");
                assert!(states.iter().all(|at| at.record.state == State::Ready), "{step}");
                let made = group(&world.controller, &volumes, "g").await.unwrap();
                world.controller.delete_group_snapshot(made.handle, None).await.unwrap();
                world.collect().await;
            }
            assert_nothing_left(&world, step).await;
        }
    });
}

/// Whatever ends a freeze before the last checkpoint is noticed, nothing of that attempt stays, and
/// the next one is right.
#[test]
fn a_broken_freeze_is_noticed() {
    #[derive(Clone, Copy, Debug)]
    enum Break {
        /// The owner releases a volume.
        Closes,
        /// Another node opens a released one, and closes it again.
        Visits,
        /// A volume moves to another node.
        Moves,
        /// The freeze reaches its limit.
        Expires,
    }
    super::run(async {
        for how in [Break::Closes, Break::Visits, Break::Moves, Break::Expires] {
            let (world, volumes, mut open) = alone(2).await;
            let other = world.beside("node-b");
            let mailbox = other.serve_mailbox(Duration::from_millis(20));
            let limit = Duration::from_millis(1500);
            let controller = Arc::new(world.another_controller().with_freeze_limit(limit));
            let failpoints = world.failpoints().clone();
            failpoints.set("control.group.cut", "1*pause->off").unwrap();
            let making = tokio::spawn({
                let (controller, volumes) = (controller.clone(), volumes.clone());
                async move { group(&controller, &volumes, "g").await }
            });
            until_passed(&failpoints, "control.group.cut", 0).await;
            let first = ids(&world).await;
            // Reads go on, and a change waits.
            let fs = open[0].fs.clone();
            fs.getattr(fs.root()).await.unwrap();
            let change = tokio::spawn({
                let open = open[0].clone();
                async move { top::create(&*open.fs, "late").await }
            });
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!change.is_finished(), "{how:?}");
            let moved = volumes[1];
            let mut theirs = None;
            match how {
                Break::Closes => {
                    drop(open.pop());
                    world.volumes.close(moved.dataset).await.unwrap();
                }
                Break::Visits => other.write(volumes[2], "visited", b"x").await,
                Break::Moves => {
                    drop(open.pop());
                    world.volumes.close(moved.dataset).await.unwrap();
                    theirs = Some(other.open(moved).await);
                    top::create(&*theirs.as_ref().unwrap().fs, "theirs").await;
                }
                Break::Expires => {
                    let begun = Instant::now();
                    tokio::time::timeout(2 * limit, change)
                        .await
                        .expect("it ends by itself")
                        .unwrap();
                    assert!(begun.elapsed() < limit);
                }
            }
            failpoints.set("control.group.cut", "off").unwrap();
            let made = making.await.unwrap().unwrap();
            let now: BTreeSet<String> = ids(&world).await.into_iter().collect();
            assert_eq!(now.len(), volumes.len(), "{how:?}");
            assert!(
                first.iter().all(|id| !now.contains(id)),
                "{how:?}: the first cut was discarded"
            );
            assert_eq!(made.snapshots.len(), volumes.len());
            drop(theirs);
            mailbox.stop().await;
            other.close_all().await;
        }
    });
}

/// An owner that does not answer: no snapshot is left, the others go on, and once it is replaced
/// the group can be made.
#[test]
fn an_owner_that_dies_leaves_nothing_of_a_group() {
    super::run(async {
        let mut cluster = Cluster::new().await;
        let quick = cluster
            .controller
            .another_controller()
            .with_freeze_limit(Duration::from_secs(3))
            .with_owner_timeout(Duration::from_secs(5));
        let failpoints = cluster.controller.failpoints().clone();
        // It dies while all are frozen.
        failpoints.set("control.group.frozen", "1*pause->off").unwrap();
        let volumes = cluster.volumes.clone();
        let making = tokio::spawn(async move { (group(&quick, &volumes, "g").await, quick) });
        until_passed(&failpoints, "control.group.frozen", 0).await;
        cluster.mailboxes.pop().unwrap().stop().await;
        failpoints.set("control.group.frozen", "off").unwrap();
        let (failed, quick) = making.await.unwrap();
        assert_eq!(failed.unwrap_err().class(), Class::Unavailable);
        assert_nothing_left(&cluster.controller, "its owner does not answer").await;
        for open in &cluster.open[..3] {
            let change = top::create(&*open.fs, "goes on");
            tokio::time::timeout(Duration::from_secs(5), change).await.expect("frozen for ever");
        }
        // It comes back.
        cluster.mailboxes.push(cluster.nodes[2].serve_mailbox(POLL));
        assert_eq!(group(&quick, &cluster.volumes, "g").await.unwrap().snapshots.len(), 4);
        cluster.stop().await;
    });
}
