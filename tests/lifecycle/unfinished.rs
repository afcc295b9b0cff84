//! Unfinished creations: they retain what they may still need, and nothing for ever.

use super::{World, data};
use std::time::Duration;
use zerofs_csi::catalog::State;
use zerofs_csi::control::{Plan, ReleaseMode};
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::types::{Class, Classify, VolumeHandle};

async fn plan(world: &World) -> Plan {
    world.collector().plan().await.unwrap()
}

/// Overwrites a file until a pack of its is dead: the old data is reclaimed in the background.
async fn make_garbage(world: &World, volume: VolumeHandle) {
    for seed in 0..100 {
        world.write(volume, "a", &data(seed, 300_000)).await;
        if !plan(world).await.packs.is_empty() {
            return;
        }
        let open = world.open(volume).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(open);
    }
    panic!("nothing is reclaimed");
}

/// Writes only the intent of a snapshot.
async fn begin_snapshot(world: &World, volume: VolumeHandle) {
    let failpoints = world.failpoints();
    failpoints.set("control.snapshot.intent", "return").unwrap();
    let stopped = world.controller.create_csi_snapshot(volume, "cut".parse().unwrap()).await;
    assert_eq!(stopped.unwrap_err().class(), Class::Unavailable);
    failpoints.set("control.snapshot.intent", "off").unwrap();
    assert_eq!(world.catalog.snapshots(None).await.unwrap()[0].record.state, State::Creating);
}

/// Its checkpoint holds what was there when it was asked for, and may show long after the head has
/// given that up (R11).
#[test]
fn a_snapshot_on_its_way_keeps_the_packs_that_the_head_gave_up() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("v").await;
        make_garbage(&world, volume).await;
        begin_snapshot(&world, volume).await;
        let held = plan(&world).await;
        assert!(held.packs.is_empty() && held.abandoned_snapshots.is_empty(), "{held:?}");
        let cut =
            world.controller.create_csi_snapshot(volume, "cut".parse().unwrap()).await.unwrap();
        assert!(!plan(&world).await.packs.is_empty(), "the snapshot shows what it needs");
        world.controller.delete_snapshot(cut.handle).await.unwrap();
        world.controller.delete_volume(volume).await.unwrap();
        world.collect().await;
        world.assert_empty("deleted").await;
    });
}

#[test]
fn a_snapshot_that_was_given_up_does_not_keep_its_volume() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("v").await;
        world.write(volume, "a", &data(1, 300_000)).await;
        begin_snapshot(&world, volume).await;
        world.controller.delete_volume(volume).await.unwrap();
        world.failpoints().set("collect.snapshot.abandoned", "1*return->off").unwrap();
        assert!(world.collector().collect().await.is_err());
        let done = world.collect().await;
        assert!(done.retained.is_empty(), "{done:?}");
        world.assert_empty("given up").await;
        // Its name is free.
        let again = world.volume("v").await;
        world.csi_snapshot(again, "cut").await;
    });
}

/// Only the dead record knows the database that has still to be removed.
#[test]
fn a_name_is_free_once_its_earlier_life_is_removed() {
    super::run(async {
        for step in ["collect.dataset.dead", "collect.dataset.fenced", "collect.dataset.deleted"] {
            let world = World::new().await;
            let volume = world.volume("v").await;
            world.write(volume, "a", &data(1, 300_000)).await;
            world.controller.delete_volume(volume).await.unwrap();
            world.failpoints().set(step, "1*return").unwrap();
            assert!(world.collector().collect().await.is_err());
            let early = world.create("v", None).await.unwrap_err();
            assert_eq!(early.class(), Class::InProgress, "{step}: {early}");
            world.collect().await;
            world.assert_empty(step).await;
            world.create("v", None).await.unwrap();
        }
    });
}

/// A first opening fails between the database and the root directory, once or more often: what the
/// first ones wrote may be in a table by then. No reader could open a snapshot without a root.
#[test]
fn a_snapshot_of_a_volume_that_was_never_served_has_a_root() {
    super::run(async {
        for step in ["fs.commit.before-epoch", "fs.commit.after-epoch"] {
            for failures in 1..=3 {
                let what = format!("{step}, {failures} times");
                let world = World::new().await;
                let volume = world.volume("v").await;
                for _ in 0..failures {
                    world.failpoints().set(step, "1*return").unwrap();
                    let opened = world.volumes.open(&world.catalog, volume.dataset).await;
                    assert!(opened.is_err(), "{what}");
                }
                assert_eq!(world.record(volume).await.owner, None, "{what}");
                let cut = world.snapshot(volume, "cut").await;
                let opened = world.volumes.export_snapshot(&world.catalog, cut.snapshot).await;
                let (fs, _) = opened.unwrap();
                assert!(fs.getattr(fs.root()).await.is_ok(), "{what}");
            }
        }
    });
}

/// The owner that opened it first dies before there is a root. A release by force ends its journal,
/// which puts the superblock into a table.
#[test]
fn a_snapshot_of_a_volume_whose_first_owner_died_has_a_root() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("v").await;
        let failpoints = world.failpoints().clone();
        failpoints.set("fs.commit.after-epoch", "1*return").unwrap();
        failpoints.set("volume.close.release", "return").unwrap();
        assert!(world.volumes.open(&world.catalog, volume.dataset).await.is_err());
        assert!(world.record(volume).await.owner.is_some(), "the failure has no point");
        let other = world.beside_in_fast_time("controller-1");
        other.controller.release_volume(volume, ReleaseMode::Force).await.unwrap();
        let cut = other.snapshot(volume, "cut").await;
        let opened = other.volumes.export_snapshot(&other.catalog, cut.snapshot).await;
        let (fs, _) = opened.unwrap();
        assert!(fs.getattr(fs.root()).await.is_ok());
    });
}
