//! Histories aimed at one rule each: what is taken away between the steps of what needs it.

use crate::model::{Model, Origin};
use crate::ops::{RECORD, Where};
use crate::scene::{
    MANY, collect, cut, each, held_at, hold, put_back_and_delete, reclaimed, release, volume, write,
};
use crate::slow::{COLLECTIONS, HOUR, retry, seeds};
use crate::support::fault::{Fault, Op, Rule};
use crate::work;
use crate::world::{Process, World};
use bytes::Bytes;
use std::time::Duration;
use zerofs_csi::catalog::State;
use zerofs_csi::control::{RestoreInPlace, Source};
use zerofs_csi::types::{Class, Classify, Incarnation, VolumeHandle};

/// A put outlives its sender: the volume that it makes is there, with what it was asked for, and a
/// creation from another source finds it so until it is deleted.
#[test]
fn a_creation_that_arrives_after_it_was_given_up_has_its_name() {
    let mut world = World::polling_mailbox(Duration::from_secs(1));
    let mut model = Model::default();
    let process = world.process().clone();
    let cut = world.run(async {
        let of = volume(&process, &mut model, "origin", 8).await.unwrap();
        let cut = cut(&process, &mut model, of, "cut").await.unwrap();
        let late = Rule::on(Op::PutNew).at("datasets/").then(Fault::Delay(HOUR));
        world.store.script(late);
        let creation = process.create("late", None);
        assert!(tokio::time::timeout(Duration::from_secs(1), creation).await.is_err());
        cut
    });
    drop(process);
    world.die();
    world.start();
    assert!(world.store.late() > 0, "its put is under way");
    let process = world.process().clone();
    world.run(async {
        work::give_up(&process, "late").await.unwrap();
        model.abandoned.push(("late".to_owned(), Origin::Nothing));
        while world.store.late() > 0 {
            world.store.arrive(0).await;
        }
        let clone = Some(Source::Snapshot(cut));
        let error = process.create("late", clone.clone()).await.unwrap_err();
        assert_eq!(error.class(), Class::Exists, "{error}");
        assert!(error.to_string().contains("another source"), "{error}");
        work::create(&process, &mut model, "late", &Origin::Snapshot(cut)).await.unwrap();
        assert_eq!(model.datasets.len(), 1, "its deletion is not collected yet");
        process.collect(Where::Here).await.unwrap();
        work::create(&process, &mut model, "late", &Origin::Snapshot(cut)).await.unwrap();
        assert_eq!(model.datasets.len(), 2);
        work::compare(&process, &mut model).await.unwrap();
    });
}

/// R11: what a snapshot needs that began after the catalog was listed, and of which its head shows
/// nothing any more when it is read.
#[test]
fn a_snapshot_made_between_listing_and_marking_keeps_its_packs() {
    each(&[Where::Here, Where::Elsewhere], async |at, process, collector, model| {
        let origin = volume(process, model, "origin", 40).await?;
        let holder = if *at == Where::Here { process } else { collector };
        let failpoints = holder.catalog.bucket().failpoints();
        let before = hold(failpoints, "collect.listed");
        let changes = async {
            held_at(failpoints, "collect.listed", before).await?;
            cut(process, model, origin, "cut").await?;
            write(process, model, origin, 100..140).await?;
            // Old data is reclaimed in the background.
            tokio::time::sleep(Duration::from_secs(10)).await;
            release(failpoints, "collect.listed");
            Ok::<_, String>(())
        };
        let (collected, changed) = tokio::join!(collect(holder), changes);
        collected.and(changed)?;
        work::compare(collector, model).await?;
        work::perform(collector, model, &crate::ops::Op::CloseAll, &Default::default()).await
    });
}

/// R11: what the head gave up before it was read is in a snapshot that comes and goes between the
/// listings, and in the head again.
#[test]
fn a_snapshot_that_comes_and_goes_between_the_listings_is_noticed() {
    each(&[()], async |(), process, collector, model| {
        let origin = volume(process, model, "origin", 40).await?;
        let failpoints = process.catalog.bucket().failpoints();
        let (listed, marked) =
            (hold(failpoints, "collect.listed"), hold(failpoints, "collect.marked"));
        let changes = async {
            held_at(failpoints, "collect.listed", listed).await?;
            let source = cut(collector, model, origin, "cut").await?;
            write(collector, model, origin, 100..140).await?;
            reclaimed(collector, model, origin).await?;
            release(failpoints, "collect.listed");
            held_at(failpoints, "collect.marked", marked).await?;
            let gone = put_back_and_delete(collector, model, origin, source).await;
            release(failpoints, "collect.marked");
            gone
        };
        let (collected, changed) = tokio::join!(collect(process), changes);
        collected.and(changed)?;
        work::compare(collector, model).await?;
        work::perform(collector, model, &crate::ops::Op::CloseAll, &Default::default()).await
    });
}

/// R11: a head that is remembered refers to nothing, and what it refers to since is in no snapshot
/// any more: it was put back from one that went.
#[test]
fn what_is_remembered_of_a_head_is_not_older_than_the_catalog() {
    each(&[()], async |(), process, collector, model| {
        let origin = volume(process, model, "origin", 40).await?;
        let source = cut(process, model, origin, "cut").await?;
        write(process, model, origin, 100..140).await?;
        reclaimed(process, model, origin).await?;
        collect(process).await?;
        collect(process).await?;
        let failpoints = process.catalog.bucket().failpoints();
        let before = hold(failpoints, "collect.catalog");
        let changes = async {
            held_at(failpoints, "collect.catalog", before).await?;
            let gone = put_back_and_delete(collector, model, origin, source).await;
            release(failpoints, "collect.catalog");
            gone
        };
        let (collected, changed) = tokio::join!(collect(process), changes);
        collected.and(changed)?;
        work::compare(collector, model).await?;
        work::perform(collector, model, &crate::ops::Op::CloseAll, &Default::default()).await
    });
}

/// R11: the same of a pack that is rewritten. What is left of it in the head when that is read
/// is less than the snapshot needs.
#[test]
fn a_snapshot_made_between_listing_and_rewriting_keeps_its_chunks() {
    each(&[Where::Here, Where::Elsewhere], async |at, process, collector, model| {
        let origin = volume(process, model, "origin", 40).await?;
        write(process, model, origin, 100..130).await?;
        let holder = if *at == Where::Here { process } else { collector };
        let failpoints = holder.catalog.bucket().failpoints();
        let before = hold(failpoints, "collect.rewrite.listed");
        let changes = async {
            held_at(failpoints, "collect.rewrite.listed", before).await?;
            cut(process, model, origin, "cut").await?;
            write(process, model, origin, 200..239).await?;
            release(failpoints, "collect.rewrite.listed");
            Ok::<_, String>(())
        };
        let (collected, changed) = tokio::join!(collect(holder), changes);
        collected.and(changed)?;
        work::compare(collector, model).await?;
        work::perform(collector, model, &crate::ops::Op::CloseAll, &Default::default()).await
    });
}

/// R14: the source goes between any two steps of a clone. It is whole, or it is refused for good
/// and leaves nothing.
#[test]
fn a_snapshot_deleted_between_the_steps_of_a_clone() {
    let steps = [
        ("control.create.begin", false),
        ("control.create.intent", false),
        ("control.create.dependant", true),
        ("fs.db.before-clone", true),
        ("fs.db.after-clone", true),
        ("control.create.cloned", true),
        ("control.create.ready", true),
    ];
    each(&steps, async |(step, is_made), process, collector, model| {
        let origin = volume(process, model, "origin", 40).await?;
        let source = cut(process, model, origin, "cut").await?;
        let content = model.dataset(origin).expect("it is there").content();
        write(process, model, origin, 100..140).await?;
        let failpoints = process.catalog.bucket().failpoints();
        let before = hold(failpoints, step);
        let deletions = async {
            held_at(failpoints, step, before).await?;
            work::delete_snapshot(collector, model, source).await?;
            work::delete(collector, model, origin).await?;
            for _ in 0..COLLECTIONS {
                collect(collector).await?;
                tokio::time::sleep(HOUR / COLLECTIONS).await;
            }
            release(failpoints, step);
            Ok::<_, String>(())
        };
        let (made, deleted) = tokio::join!(
            Box::pin(process.create("clone", Some(Source::Snapshot(source)))),
            deletions
        );
        deleted?;
        match made {
            Ok(made) if *is_made => {
                model.made("clone", made.handle, content);
                Ok(())
            }
            Err(error) if !is_made && error.class() == Class::NotFound => {
                let found = process
                    .catalog
                    .dataset(&"clone".parse().unwrap())
                    .await
                    .map_err(|error| error.to_string())?;
                let is_left = found
                    .is_some_and(|at| matches!(at.record.state, State::Ready | State::Creating));
                if is_left { Err("the intent is left".to_owned()) } else { Ok(()) }
            }
            other => Err(format!("{other:?}")),
        }
    });
}

/// R3: a clone whose maker stands still is given up and removed; what is made of it afterwards
/// keeps its origin from nothing.
#[test]
fn a_clone_that_is_made_after_it_was_removed_keeps_nothing() {
    each(
        &["control.create.dependant", "fs.db.before-clone", "fs.db.after-clone"],
        async |step, process, collector, model| {
            let origin = volume(process, model, "origin", 40).await?;
            let source = cut(process, model, origin, "cut").await?;
            let failpoints = process.catalog.bucket().failpoints();
            let before = hold(failpoints, step);
            let removal = async {
                held_at(failpoints, step, before).await?;
                work::give_up(collector, "clone").await?;
                for _ in 0..COLLECTIONS {
                    collect(collector).await?;
                }
                let left = collector
                    .catalog
                    .dataset(&"clone".parse().unwrap())
                    .await
                    .map_err(|error| error.to_string())?;
                release(failpoints, step);
                if left.is_none() { Ok(()) } else { Err("the clone is still there".to_owned()) }
            };
            let (made, removed) = tokio::join!(
                Box::pin(process.create("clone", Some(Source::Snapshot(source)))),
                removal
            );
            removed?;
            match made {
                Err(_) => Ok(()),
                // Begun again after it was removed.
                Ok(made) => {
                    let content = model.dataset(origin).expect("it is there").content();
                    model.made("clone", made.handle, content);
                    Ok(())
                }
            }
        },
    );
}

/// A clone of the volume, which goes: what the clone had from it is its own.
async fn detached_clone(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
) -> Result<VolumeHandle, String> {
    let source = cut(process, model, of, "origin").await?;
    work::create(process, model, "detached", &Origin::Snapshot(source)).await?;
    let clone = model.datasets.last().expect("just made").handle;
    work::delete_snapshot(process, model, source).await?;
    work::delete(process, model, of).await?;
    collect(process).await?;
    let record =
        process.catalog.dataset_by_id(clone.dataset).await.map_err(|error| error.to_string())?;
    if record.is_some_and(|at| at.record.detached) {
        Ok(clone)
    } else {
        Err("the clone still stands on its origin".to_owned())
    }
}

/// R10: the source goes between any two steps of a restore by reference. Who depends on it keeps
/// it; who has not begun to read it is refused.
#[test]
fn a_snapshot_deleted_between_the_steps_of_a_restore() {
    let steps = [
        ("control.restore.begin", false, 0),
        ("control.restore.intent", false, 0),
        ("control.restore.pinned", false, 1),
        ("fs.restore.object", true, 1),
        ("fs.content.copied", true, 1),
        ("fs.commit.before-flush", true, 1),
        ("control.restore.durable", true, 1),
        ("volume.restore.forget", true, 1),
    ];
    let cases: Vec<_> = steps
        .into_iter()
        .flat_map(|(step, is_done, kept)| {
            [(step, is_done, kept, false), (step, is_done, kept, true)]
        })
        .collect();
    each(&cases, async |(step, is_done, kept, is_detached), process, collector, model| {
        let mut volume = volume(process, model, "volume", MANY).await?;
        if *is_detached {
            volume = detached_clone(process, model, volume).await?;
        }
        let source = cut(process, model, volume, "cut").await?;
        let content = seeds(0..MANY);
        write(process, model, volume, 100..140).await?;
        drop(process.open(volume).await?);
        let failpoints = process.catalog.bucket().failpoints();
        let (from, to) = ("x".into(), "x".into());
        let wanted = RestoreInPlace {
            call: Incarnation::random(),
            snapshot: source.snapshot,
            from,
            to,
            overwrite: true,
        };
        let before = hold(failpoints, step);
        let deletions = async {
            held_at(failpoints, step, before).await?;
            work::delete_snapshot(collector, model, source).await?;
            // Longer than a reader counts that stands still.
            for _ in 0..COLLECTIONS {
                collect(collector).await?;
                tokio::time::sleep(2 * HOUR / COLLECTIONS).await;
            }
            collect(collector).await?;
            let now =
                collector.catalog.snapshots(None).await.map_err(|error| error.to_string())?.len();
            release(failpoints, step);
            if now != *kept {
                return Err(format!("{now} snapshots are kept"));
            }
            Ok::<_, String>(())
        };
        let (restored, deleted) = tokio::join!(
            Box::pin(process.controller.restore_in_place(volume, &wanted, &|_| ())),
            deletions
        );
        deleted?;
        let again = || Box::pin(process.controller.restore_in_place(volume, &wanted, &|_| ()));
        let restored = match restored {
            // A call that waited too long for the store is retried.
            Err(error) if *is_done && error.class() == Class::Unavailable => again().await,
            restored => restored,
        };
        match restored {
            Ok(_) if *is_done => {
                let dataset = model.dataset(volume).expect("it is there");
                dataset.begin("x", Some(content));
                dataset.synced("x");
            }
            Err(error) if !is_done && error.class() == Class::NotFound => {}
            other => return Err(format!("{other:?}")),
        }
        work::close(process, model, volume).await?;
        // Interrupted work is finished by the next opening.
        drop(process.open(volume).await?);
        work::close(process, model, volume).await?;
        collect(collector).await?;
        let left = process.catalog.snapshots(None).await.map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err("the snapshot is kept by nothing".to_owned()) }
    });
}

/// R5: what was cut off stays away, in the head, in snapshots and in clones of them, though nothing
/// of it was reclaimed yet.
#[test]
fn what_was_cut_off_and_grew_again_is_zero_before_and_after_it_is_reclaimed() {
    // With a mask, with a few rows, and to nothing.
    each(&[200, 70, 0], async |records: &u64, process, collector, model| {
        let keep = if *records == 0 { 0 } else { 10 * RECORD + 100 };
        let origin = volume(process, model, "origin", (*records).max(200)).await?;
        let failpoints = process.catalog.bucket().failpoints();
        // Removed data is reclaimed first: it delays all that comes after it.
        work::write(process, model, origin, "gone", 0, &seeds(1000..1200)).await?;
        work::sync_file(process, model, origin, "gone").await?;
        let reclaim = "fs.content.before-reclaim";
        let before = failpoints.passed().get(reclaim).copied().unwrap_or(0);
        failpoints.set(reclaim, "pause").unwrap();
        work::remove(process, model, origin, "gone").await?;
        held_at(failpoints, reclaim, before).await?;
        if *records == 70 {
            work::resize(process, model, origin, "x", 70 * RECORD).await?;
        }
        work::resize(process, model, origin, "x", keep).await?;
        collect(collector).await?;
        let short = cut(process, model, origin, "short").await?;
        work::resize(process, model, origin, "x", 150 * RECORD + 7).await?;
        collect(collector).await?;
        let long = cut(process, model, origin, "long").await?;
        work::write(process, model, origin, "x", 50 * RECORD, &seeds(900..903)).await?;
        work::compare(process, model).await?;
        for (name, of) in [("of-short", short), ("of-long", long)] {
            work::create(process, model, name, &Origin::Snapshot(of)).await?;
            let clone = model.datasets.last().expect("just made").handle;
            retry(async || work::resize(process, model, clone, "x", 160 * RECORD).await).await?;
            work::write(process, model, clone, "x", 30 * RECORD + 5, &seeds(800..802)).await?;
        }
        collect(collector).await?;
        work::compare(process, model).await?;
        release(failpoints, reclaim);
        tokio::time::sleep(Duration::from_secs(60)).await;
        collect(collector).await?;
        work::compare(process, model).await
    });
}

/// R2: a collector that stands still while another ends the life that it collects, and the name's
/// next life begins.
#[test]
fn a_name_that_is_used_again_is_not_touched_by_the_collection_of_its_earlier_dataset() {
    let steps = [
        "collect.listed",
        "collect.packs",
        "collect.dataset.dead",
        "collect.dataset.fenced",
        "collect.dataset.deleted",
        "collect.dataset.removed",
    ];
    each(&steps, async |step, process, collector, model| {
        let first = volume(process, model, "name", 40).await?;
        let cut = cut(process, model, first, "cut").await?;
        write(process, model, first, 100..140).await?;
        work::delete_snapshot(process, model, cut).await?;
        work::delete(process, model, first).await?;
        let failpoints = collector.catalog.bucket().failpoints();
        let before = hold(failpoints, step);
        let life = async {
            held_at(failpoints, step, before).await?;
            retry(async || {
                process.collect(Where::Here).await.map_err(|error| error.to_string())?;
                work::create(process, model, "name", &Origin::Nothing).await?;
                if model.datasets.is_empty() {
                    Err("the name is not free yet".to_owned())
                } else {
                    Ok(())
                }
            })
            .await?;
            let next = model.datasets[0].handle;
            write(process, model, next, 0..40).await?;
            work::write(process, model, next, "y", 0, &seeds(200..240)).await?;
            release(failpoints, step);
            Ok::<_, String>(next)
        };
        let (collected, next) = tokio::join!(collect(collector), life);
        let next = next?;
        collected?;
        if next == first {
            return Err("the next life is the last one".to_owned());
        }
        // An object that the writer of the last incarnation still sends.
        let late = format!("vol/{}/wal/00000000000000000099.sst", first.dataset.incarnation);
        process
            .catalog
            .bucket()
            .put(&late, Bytes::from_static(b"late"))
            .await
            .map_err(|error| error.to_string())?;
        collect(collector).await?;
        work::compare(process, model).await
    });
}
