//! Restores in place that fail, stop or are overtaken on the way.

use super::restore::{edit, fill, is_sound, restore, tree, wanted};
use super::{World, data, run};
use crate::support::files::{child, name, read, root, top};
use crate::support::world::until_passed;
use std::ops::ControlFlow;
use std::time::Duration;
use zerofs_csi::catalog::Owner;
use zerofs_csi::control::Replaced;
use zerofs_csi::fs::Restored;
use zerofs_csi::fs::api::*;
use zerofs_csi::types::{Class, Classify, SessionId};
use zerofs_csi::volume::{ActiveClaim, collect_released, forget_restore};

/// After a failure at any step a retry restores everything, and nothing is retained for ever.
#[test]
fn a_restore_that_fails_anywhere_is_repaired_by_a_retry() {
    run(async {
        let steps = [
            ("control.restore.begin", 0),
            ("control.restore.intent", 0),
            ("control.restore.pinned", 0),
            ("fs.restore.object", 4),
            ("fs.content.copied", 0),
            ("control.restore.durable", 0),
            ("volume.restore.forget", 0),
        ];
        let (world, volume, open) = World::with_open().await;
        fill(&open.exported).await;
        open.fs.sync().await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        drop(open);
        for (n, (step, after)) in steps.into_iter().enumerate() {
            let to = format!("copy {n}");
            let action = if after > 0 {
                format!("{after}*off->1*return->off")
            } else {
                "1*return->off".to_owned()
            };
            world.open(volume).await;
            world.failpoints().set(step, &action).unwrap();
            let failed = restore(&world, volume, &wanted(cut, "dir", &to, true)).await;
            assert!(failed.is_err(), "{step}");
            // As after a crash: the next opening mends what is left.
            world.volumes.close(volume.dataset).await.unwrap();
            drop(world.open(volume).await);
            world.volumes.close(volume.dataset).await.unwrap();
            is_sound(&world, volume, step).await;
            let open = world.open(volume).await;
            restore(&world, volume, &wanted(cut, "dir", &to, true)).await.unwrap();
            let copy = top::child(&*open.exported, &to).await.unwrap().file;
            let original = top::child(&*open.exported, "dir").await.unwrap().file;
            let (copy, original) =
                (tree(&open.exported, copy).await, tree(&open.exported, original).await);
            assert!(copy == original, "{step}");
            world.close(open).await;
            is_sound(&world, volume, step).await;
        }
        // The snapshot is deleted while a restore from it was cut short: it stays until the rows
        // that may refer to it are settled (R10).
        world.failpoints().set("control.restore.durable", "1*return->off").unwrap();
        let open = world.open(volume).await;
        restore(&world, volume, &wanted(cut, "dir", "last", false)).await.unwrap_err();
        world.controller.delete_snapshot(cut).await.unwrap();
        assert_eq!(world.collect().await.snapshots, Vec::<String>::new());
        world.close(open).await;
        drop(world.open(volume).await);
        world.volumes.close(volume.dataset).await.unwrap();
        assert_eq!(world.collect().await.snapshots.len(), 1);
        is_sound(&world, volume, "without the snapshot").await;
        world.controller.delete_volume(volume).await.unwrap();
        world.collect().await;
        world.assert_empty("all is deleted").await;
    });
}

/// A large file is one object: the restore stops within it, wherever it is carried out.
#[test]
fn a_restore_stops_within_a_file_and_leaves_that_as_it_was() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        fill(&open.exported).await;
        open.fs.sync().await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        let elsewhere = world.beside("controller-1");
        let mailbox = world.serve_mailbox(Duration::from_millis(50));
        drop(open);
        for (by, state) in
            [(&world, "open here"), (&elsewhere, "open elsewhere"), (&world, "released")]
        {
            if state == "released" {
                world.volumes.close(volume.dataset).await.unwrap();
            }
            let points = world.catalog.bucket().failpoints();
            // Long enough for the stop to arrive while the first records are copied.
            points.set("fs.content.copied", "1*sleep(4000)->off").unwrap();
            let stop = |_: Restored| ControlFlow::Break(());
            let wanted = wanted(cut, "dir/large", "copy", false);
            let stopped =
                by.controller.restore_in_place_with(volume, &wanted, Replaced::Removed, &stop);
            let stopped = Box::pin(stopped).await.unwrap_err();
            assert_eq!(stopped.class(), Class::Unavailable, "{state}: {stopped}");
            assert!(stopped.to_string().contains("stopped after 0 objects"), "{state}: {stopped}");
            let open = world.open(volume).await;
            let copy = child(&*open.exported, open.exported.root(), "copy").await;
            assert!(copy.is_err(), "{state}");
            drop(open);
        }
        mailbox.stop().await;
        restore(&world, volume, &wanted(cut, "dir/large", "copy", false)).await.unwrap();
        world.volumes.close(volume.dataset).await.unwrap();
        is_sound(&world, volume, "at the end").await;
    });
}

/// Saved by renaming, as editors do, while the restore is at it.
#[test]
fn what_takes_the_name_during_a_restore_is_kept_as_well() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        let fs = &*open.exported;
        top::write(fs, "file", b"old").await;
        open.fs.sync().await.unwrap();
        let cut = world.snapshot(volume, "cut").await;
        top::write(fs, "file", b"present").await;
        top::write(fs, "draft", b"saved meanwhile").await;
        let failpoints = world.failpoints();
        failpoints.set("fs.restore.kept", "1*pause->off").unwrap();
        let restoring = tokio::spawn({
            let (controller, wanted) =
                (world.controller.clone(), wanted(cut, "file", "file", true));
            let kept = Replaced::KeptBeside;
            async move {
                controller
                    .restore_in_place_with(volume, &wanted, kept, &|_| ControlFlow::Continue(()))
                    .await
            }
        });
        until_passed(failpoints, "fs.restore.kept", 0).await;
        let top = fs.root();
        fs.rename(&root(), (top, &name("draft")), (top, &name("file"))).await.unwrap();
        failpoints.set("fs.restore.kept", "off").unwrap();
        restoring.await.unwrap().unwrap();
        for (at, content) in
            [("file", &b"old"[..]), ("file.~1", b"present"), ("file.~2", b"saved meanwhile")]
        {
            let found = child(fs, top, at).await.unwrap().file;
            assert_eq!(read(fs, found).await, content, "{at}");
        }
        world.close(open).await;
        is_sound(&world, volume, "at the end").await;
    });
}

/// A session that was the owner, and learns late that it is not, takes the snapshot from no restore
/// of the next owner (R10).
#[test]
fn only_the_claim_in_the_record_ends_a_restore() {
    run(async {
        let (world, volume, open) = World::with_open().await;
        top::write(&*open.exported, "file", &data(1, 100_000)).await;
        let cut = world.snapshot(volume, "cut").await;
        let (catalog, failpoints) = (world.catalog.clone(), world.failpoints());
        let (id, life, mine) = (volume.dataset, volume.dataset.incarnation, open.claim.clone());
        let record = async || catalog.dataset_by_id(id).await.unwrap().unwrap().record;
        let depends = async || {
            let snapshot = catalog.snapshot_by_id(cut.snapshot).await.unwrap().unwrap();
            snapshot.record.dependants.contains(&life)
        };
        let ours = record().await.owner;
        let another = Owner::new("other", SessionId::from_bytes([9; 16]));
        // The same session may have claimed the dataset again, too (R31).
        for (n, next) in [another, world.volumes.owner()].into_iter().enumerate() {
            edit(&catalog, id, |record| record.owner = ours.clone()).await;
            failpoints.set("control.restore.durable", "1*return->off").unwrap();
            let copy = format!("copy{n}");
            restore(&world, volume, &wanted(cut, "file", &copy, false)).await.unwrap_err();
            // The late call has seen its claim in the record, and stops before it changes anything.
            failpoints.set("volume.restore.forget", "1*pause->off").unwrap();
            let before = failpoints.passed().get("volume.restore.forget").copied();
            let late = tokio::spawn({
                let (catalog, mine) = (catalog.clone(), mine.clone());
                async move { forget_restore(&catalog, id, cut.snapshot, &mine).await }
            });
            while failpoints.passed().get("volume.restore.forget").copied() == before {
                tokio::task::yield_now().await;
            }
            // The next owner ends what was left, and restores from the same snapshot.
            edit(&catalog, id, |record| record.owner = Some(next.clone())).await;
            let its = ActiveClaim::Maintenance(next.claim);
            forget_restore(&catalog, id, cut.snapshot, &its).await.unwrap();
            assert!(!depends().await);
            edit(&catalog, id, |record| record.restoring = Some(cut.snapshot)).await;
            let depend = |record: &mut zerofs_csi::catalog::Snapshot| {
                record.dependants.push(life);
                Ok(())
            };
            catalog.update_snapshot(cut.snapshot, depend).await.unwrap();
            failpoints.set("volume.restore.forget", "off").unwrap();
            late.await.unwrap().unwrap();
            assert!(depends().await, "the next owner's restore keeps the snapshot");
            forget_restore(&catalog, id, cut.snapshot, &mine).await.unwrap();
            assert!(depends().await);
            let refused =
                restore(&world, volume, &wanted(cut, "file", "again", false)).await.unwrap_err();
            assert_eq!(refused.class(), Class::Unavailable, "{refused}");
            let again = top::child(&*open.exported, "again").await;
            assert!(depends().await && again.is_err());
        }

        // The owner itself makes good what is left, also for another snapshot.
        edit(&catalog, id, |record| record.owner = ours.clone()).await;
        let other = world.snapshot(volume, "other").await;
        restore(&world, volume, &wanted(other, "file", "again", false)).await.unwrap();
        assert!(!depends().await);
        world.close(open).await;
        is_sound(&world, volume, "at the end").await;
    });
}

/// A volume that is never opened again retains its snapshot only until the next maintenance.
#[test]
fn an_interrupted_restore_is_ended_by_the_next_maintenance() {
    run(async {
        let world = World::new().await;
        let volume = world.volume("a").await;
        world.write(volume, "file", &data(1, 100_000)).await;
        let cut = world.snapshot(volume, "cut").await;
        for (n, care) in ["a collection", "a snapshot"].into_iter().enumerate() {
            world.failpoints().set("control.restore.durable", "1*return->off").unwrap();
            restore(&world, volume, &wanted(cut, "file", &format!("copy {n}"), false))
                .await
                .unwrap_err();
            // Its process is gone before it gives the volume back.
            let dead = SessionId::from_bytes([9; 16]);
            edit(&world.catalog, volume.dataset, |record| {
                assert_eq!(record.restoring, Some(cut.snapshot));
                record.owner = Some(Owner::new("(controller)", dead));
            })
            .await;
            match n {
                0 => collect_released(world.volumes.settings(), &world.catalog, volume.dataset)
                    .await
                    .unwrap(),
                _ => drop(
                    world
                        .controller
                        .create_snapshot(volume, "next".parse().unwrap())
                        .await
                        .unwrap(),
                ),
            }
            is_sound(&world, volume, care).await;
        }
        world.controller.delete_snapshot(cut).await.unwrap();
        assert_eq!(world.collect().await.snapshots.len(), 1);
        let found = world.read(volume).await;
        assert!(
            found.len() == 3 && found.values().all(|bytes| *bytes == data(1, 100_000)),
            "{:?}",
            found.keys()
        );
    });
}
