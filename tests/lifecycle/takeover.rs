//! A node opens a volume while a controller works on it: the node is never fenced, and the
//! controller's work is still done.

use super::{World, data};
use crate::leases::{LEASE, patiently, two_nodes};
use crate::support::files::{root, top, write_at};
use crate::support::world::until_passed;
use bytes::Bytes;
use std::time::Duration;
use zerofs_csi::catalog::{Owner, State};
use zerofs_csi::control::{ReleaseMode, Source};
use zerofs_csi::fs::api::{FileSystem, Stability};
use zerofs_csi::types::SessionId;

/// The state of the dataset when a snapshot of it is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dataset {
    New,
    /// Released, and closed in order.
    Closed,
    /// Released but for a maintenance claim of a process that has died.
    Maintained,
}

/// The controller is held at a step of its snapshot of a released volume while a node takes that
/// over.
async fn race(step: &str, dataset: Dataset) {
    let node = World::new().await;
    let elsewhere = node.beside("controller-1");
    let volume = elsewhere.volume("v").await;
    if dataset != Dataset::New {
        node.write(volume, "old", &data(1, 70_000)).await;
    }
    if dataset == Dataset::Maintained {
        let claim = |record: &mut zerofs_csi::catalog::Dataset| {
            record.owner = Some(Owner::new("(controller)", SessionId::random()));
            Ok(())
        };
        node.catalog.update_dataset(volume.dataset, claim).await.unwrap();
    }
    let mailbox = node.serve_mailbox(Duration::from_millis(20));

    let failpoints = node.failpoints().clone();
    failpoints.set(step, "pause").unwrap();
    let controller = elsewhere.controller.clone();
    let cutting = tokio::spawn(async move {
        controller.create_csi_snapshot(volume, "cut".parse().unwrap()).await
    });
    until_passed(&failpoints, step, 0).await;
    let open = node.open(volume).await;
    let (file, bytes) = (top::create(&*open.fs, "new").await, data(2, 90_000));
    write_at(&*open.fs, file, 0, &bytes).await;
    if step == "control.snapshot.intent" {
        // The manifest that the controller has read is no longer the newest.
        open.fs.commit(&root(), file, 0, 0).await.unwrap();
    }
    failpoints.set(step, "off").unwrap();

    let cut = cutting.await.unwrap().unwrap().handle;
    open.fs.commit(&root(), file, 0, 0).await.unwrap();
    open.fs
        .write(&root(), file, 0, Bytes::from_static(b"later"), Stability::FileSync)
        .await
        .unwrap();
    assert!(node.volumes.get(volume.dataset).is_some(), "the node still has it");
    node.close(open).await;
    mailbox.stop().await;

    let clone = elsewhere.copy("c", Source::Snapshot(cut)).await;
    let found = elsewhere.read(clone).await;
    assert_eq!(found.contains_key("old"), dataset != Dataset::New);
    assert!(found["new"] == bytes, "what the node acknowledged before the call ended");
}

#[test]
fn a_node_that_takes_over_from_a_controller_is_not_fenced() {
    super::run(race("volume.maintenance.claimed", Dataset::Maintained));
}

/// Without a claim: the checkpoint is not made of a manifest that has been replaced.
#[test]
fn nor_is_one_that_opens_while_a_closed_database_gets_its_checkpoint() {
    super::run(race("control.snapshot.intent", Dataset::Closed));
}

#[test]
fn nor_is_one_that_opens_a_new_volume_for_the_first_time() {
    super::run(race("volume.maintenance.claimed", Dataset::New));
}

/// The dataset is deleted and collected while the snapshot's record is on its way (R3).
#[test]
fn a_dataset_that_is_gone_gets_no_snapshot() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("v").await;
        world.write(volume, "file", &data(1, 70_000)).await;
        let (failpoints, elsewhere) = (world.failpoints().clone(), world.beside("controller-1"));
        failpoints.set("control.snapshot.serial", "pause").unwrap();
        let controller = elsewhere.controller.clone();
        let making = tokio::spawn(async move {
            controller.create_snapshot(volume, "late".parse().unwrap()).await
        });
        until_passed(&failpoints, "control.snapshot.serial", 0).await;
        world.controller.delete_volume(volume).await.unwrap();
        world.collect().await;
        failpoints.set("control.snapshot.serial", "off").unwrap();
        making.await.unwrap().expect_err("its dataset is gone");
        let left = world.catalog.snapshots(None).await.unwrap();
        assert!(left.iter().all(|at| at.record.state != State::Ready), "{left:?}");
    });
}

#[test]
fn the_serial_of_a_deleted_snapshot_is_not_used_again() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("v").await;
        let mut serials = Vec::new();
        for name in ["a", "b", "a"] {
            let made =
                world.controller.create_csi_snapshot(volume, name.parse().unwrap()).await.unwrap();
            serials.push(made.snapshot.serial);
            world.controller.delete_snapshot(made.handle).await.unwrap();
            world.collect().await;
        }
        assert_eq!(serials, [1, 2, 3]);
        let again = world.controller.create_snapshot(volume, "c".parse().unwrap()).await.unwrap();
        let repeat = world.controller.create_snapshot(volume, "c".parse().unwrap()).await.unwrap();
        assert_eq!(
            (again.snapshot.serial, repeat.snapshot.serial),
            (4, 4),
            "a repeated call takes no other"
        );
    });
}

/// A release that stops at any of its steps is finished by the repeated call, and loses nothing
/// that was durable.
#[test]
fn a_volume_of_a_lost_node_is_released_by_a_retry() {
    super::run(async {
        let steps = [
            "control.release.begin",
            "control.release.revoked",
            "volume.lost.claimed",
            "volume.claim.epoch",
            "volume.claim.checked",
            "fs.commit.before-void",
            "fs.commit.after-void",
            "volume.lost.fenced",
        ];
        for step in steps {
            let (lost, later, volume) = two_nodes().await;
            let open = lost.open(volume).await;
            let bytes = data(3, 50_000);
            let file = top::write(&*open.fs, "kept", &bytes).await;
            lost.store.die();
            // Time goes fast where the release is asked for.
            let elsewhere = later.world.beside_in_fast_time("controller-1");
            elsewhere.failpoints().set(step, "1*return").unwrap();
            let release = || elsewhere.controller.release_volume(volume, ReleaseMode::Force);
            release().await.expect_err(step);
            release().await.unwrap_or_else(|error| panic!("{step}: {error}"));
            assert_eq!(later.world.record(volume).await.owner, None, "{step}");
            assert!(later.world.read(volume).await["kept"] == bytes, "{step}");
            // Whoever was given up learns it from the store.
            lost.store.heal();
            lost.clock.advance(LEASE);
            let late = || async {
                let late = Bytes::from_static(b"late");
                open.fs.write(&root(), file, 0, late, Stability::FileSync).await
            };
            assert!(patiently(late).await.is_err(), "{step}: the old owner is fenced");
        }
    });
}
