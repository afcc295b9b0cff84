//! Leftovers of a history that nobody needs: counted, and gone after the next
//! look.

use super::{World, data};
use crate::leases::{LEASE, Pool, expired};
use crate::support::files::top;
use std::time::Duration;
use zerofs_csi::catalog::Catalog;
use zerofs_csi::control::Source;
use zerofs_csi::fs::db::{self, DbCache};
use zerofs_csi::types::{Class, Classify, SnapshotHandle, Timestamp, VolumeHandle};
use zerofs_csi::volume::{ExportedFs, RetainedBy, place};

/// Named checkpoints of a dataset's database.
async fn checkpoints(catalog: &Catalog, volume: VolumeHandle) -> usize {
    let family = catalog.dataset_by_id(volume.dataset).await.unwrap().unwrap().record.family;
    let place = place(catalog, family, volume.dataset.incarnation, &DbCache::new(1 << 20));
    db::holds(&place).await.unwrap().named.len()
}

/// Its asker's patience ended, the snapshot was deleted and collected, and then the owner makes the
/// checkpoint that it was asked for.
#[test]
fn a_checkpoint_made_after_its_snapshot_was_given_up_is_removed() {
    super::run(async {
        let node = World::new().await;
        let elsewhere = node.beside("controller-1");
        let volume = node.volume("v").await;
        let open = node.open(volume).await;
        let kept = node.controller.create_snapshot(volume, "kept".parse().unwrap()).await.unwrap();
        let mailbox = node.serve_mailbox(Duration::from_millis(20));
        let failpoints = node.failpoints().clone();
        let passed =
            || failpoints.passed().get("fs.commit.before-checkpoint").copied().unwrap_or(0);
        let before = passed();
        failpoints.set("fs.commit.before-checkpoint", "pause").unwrap();
        let impatient = elsewhere.another_controller();
        let impatient = impatient.with_owner_timeout(Duration::from_millis(500));
        let late = impatient.create_snapshot(volume, "late".parse().unwrap()).await;
        assert_eq!(late.unwrap_err().class(), Class::Unavailable);
        while passed() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let snapshots = node.catalog.snapshots(None).await.unwrap();
        let late =
            snapshots.into_iter().find(|at| at.record.name.as_str() == "late").unwrap().record.id();
        elsewhere
            .controller
            .delete_snapshot(SnapshotHandle { pool: volume.pool, snapshot: late })
            .await
            .unwrap();
        elsewhere.collect().await;
        assert_eq!(node.catalog.snapshots(None).await.unwrap().len(), 1, "the other one");
        failpoints.set("fs.commit.before-checkpoint", "off").unwrap();
        while checkpoints(&node.catalog, volume).await < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // By a collector that has looked before, and by one that has not.
        elsewhere.collect().await;
        assert_eq!(
            checkpoints(&node.catalog, volume).await,
            1,
            "what nobody knows is gone, and what is known is there"
        );
        node.collect().await;
        assert_eq!(checkpoints(&node.catalog, volume).await, 1);
        let (snapshots, id) = (node.volumes.open_snapshots(), kept.handle.snapshot);
        ExportedFs::snapshot(snapshots, &node.catalog, id, RetainedBy::Reader).await.unwrap();
        mailbox.stop().await;
        drop(open);
    });
}

/// Its maker stopped at any step, and nobody repeats the call: the claim is gone.
#[test]
fn a_clone_that_nobody_finishes_is_given_up_and_its_source_with_it() {
    super::run(async {
        for of_snapshot in [true, false] {
            for step in
                ["control.create.intent", "control.create.dependant", "control.create.cloned"]
            {
                let world = World::new().await;
                let volume = world.volume("v").await;
                world.write(volume, "a", &data(1, 300_000)).await;
                let source = match of_snapshot {
                    false => Source::Volume(volume),
                    true => {
                        let cut = world
                            .controller
                            .create_snapshot(volume, "cut".parse().unwrap())
                            .await
                            .unwrap();
                        Source::Snapshot(cut.handle)
                    }
                };
                world.failpoints().set(step, "1*return->off").unwrap();
                let stopped = world.create("clone", Some(source.clone())).await.unwrap_err();
                assert_eq!(stopped.class(), Class::Unavailable, "{step}");
                if let Source::Snapshot(cut) = source {
                    world.controller.delete_snapshot(cut).await.unwrap();
                }
                world.controller.delete_volume(volume).await.unwrap();
                let kept = world.collect().await.retained;
                assert!(!of_snapshot || !kept.is_empty(), "{step}: its call may still be repeated");
                let intent = world
                    .catalog
                    .dataset(&"clone".parse().unwrap())
                    .await
                    .unwrap()
                    .unwrap()
                    .record
                    .id();
                let age = |dataset: &mut zerofs_csi::catalog::Dataset| {
                    let day_nanos = 25 * 3600 * 1_000_000_000;
                    dataset.created = Timestamp::from_nanos(dataset.created.as_nanos() - day_nanos);
                    Ok(())
                };
                world.catalog.update_dataset(intent, age).await.unwrap();
                world.collect().await;
                world.assert_empty(step).await;
            }
        }
    });
}

fn files(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            if path.is_dir() { files(&path) } else { usize::from(!path.ends_with("directory-id")) }
        })
        .sum()
}

/// A node dies with three volumes: one moves away, one is deleted without it, one waits for it.
#[test]
fn journals_of_datasets_that_moved_away_are_removed_and_no_other() {
    super::run(async {
        let pool = Pool::new().await;
        let (a, b) = (pool.node("node-a").await, pool.node("node-b").await);
        let mut volumes = Vec::new();
        let mut opened = Vec::new();
        for volume in ["moved", "deleted", "waits"] {
            let volume = a.world.volume(volume).await;
            let open = a.open(volume).await;
            top::write(&*open.fs, "synced", b"x").await;
            opened.push(open);
            volumes.push(volume);
        }
        let mut watches = Vec::new();
        for volume in &volumes[..2] {
            watches.push(b.watch(volume.dataset).await);
        }
        a.store.die();
        top::create(&*opened[2].fs, "journaled").await;
        b.clock.advance(LEASE);
        for (watch, volume) in watches.iter_mut().zip(&volumes) {
            let lease = expired(watch).await;
            drop(b.take(volume.dataset, &lease).await.unwrap());
        }
        b.world.volumes.close(volumes[1].dataset).await.unwrap();
        b.world.controller.delete_volume(volumes[1]).await.unwrap();
        b.world.collect().await;
        assert!(b.world.catalog.dataset_by_id(volumes[1].dataset).await.unwrap().is_none());
        let journals = a.journals.clone();
        opened.iter().for_each(|open| open.fs.give_up(zerofs_csi::fs::FsError::Fenced));
        drop((opened, a));

        let a = pool.node_at("node-a", LEASE, journals.clone()).await;
        let left = files(journals.path());
        assert!(left >= 6, "each leaves its lock and a segment: {left}");
        let mut removed = 0;
        for _ in 0..200 {
            removed += a.world.volumes.remove_obsolete_journals(&a.world.catalog).await.unwrap();
            if removed == 2 {
                break;
            }
            // A volume that was given up unlocks its journal only after a while.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(removed, 2);
        assert_eq!(files(journals.path()), left / 3, "that of the one that waits");
        let open = crate::two_owners::reopened(&a, volumes[2]).await;
        assert!(top::has(&*open.fs, "journaled").await);
        assert_eq!(
            a.world.volumes.remove_obsolete_journals(&a.world.catalog).await.unwrap(),
            0,
            "it is open"
        );
        drop(open);
        a.world.volumes.close(volumes[2].dataset).await.unwrap();
        assert_eq!(files(journals.path()), 0);
    });
}
