//! The failure of each step of deletion and collection leaks at most, and the next collection takes
//! what was left: the process is told and goes on, or it dies there.

use crate::model::{Found, Model, Origin};
use crate::ops::{Op, RECORD, Where, bytes};
use crate::work::{self, again};
use crate::world::{Process, World};
use std::path::Path;
use std::time::Duration;
use zerofs_csi::control::Source;
use zerofs_csi::fs::{db, key};
use zerofs_csi::types::{Class, Classify, Incarnation, InodeNo, Timestamp, VolumeHandle};
use zerofs_csi::volume::collect_released;

/// Every durable step in [`SOURCES`].
const STEPS: &[&str] = &[
    "chunk.before-rewrite",
    "chunk.rewritten",
    "collect.catalog",
    "collect.checkpoint",
    "collect.claim",
    "collect.claim-released",
    "collect.clone.abandoned",
    "collect.database",
    "collect.dataset.dead",
    "collect.dataset.deleted",
    "collect.dataset.fenced",
    "collect.dataset.removed",
    "collect.detach.begin",
    "collect.detach.recorded",
    "collect.detach.whole",
    "collect.listed",
    "collect.marked",
    "collect.obsolete-markers",
    "collect.packs",
    "collect.rewrite-pending",
    "collect.rewrite.listed",
    "collect.sealed",
    "collect.snapshot.abandoned",
    "collect.snapshot.dead",
    "collect.snapshot.dropped",
    "collect.snapshot.removed",
    "control.delete.tombstone",
    "control.snapshot-delete.tombstone",
    "fs.db.after-clone",
    "fs.db.after-delete",
    "fs.db.before-clone",
    "fs.db.before-collect",
    "fs.db.before-delete",
    "fs.db.detach.dropped",
    "fs.db.detach.rewritten",
];

/// Where collection and deletion are.
const SOURCES: &[&str] = &[
    "control/collect",
    "control/controller/delete.rs",
    "chunk/rewrite.rs",
    "fs/db/admin.rs",
    "fs/db/collection.rs",
    "fs/db/detach.rs",
];

fn steps_in(path: &Path, found: &mut Vec<String>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            steps_in(&entry.unwrap().path(), found);
        }
        return;
    }
    for call in std::fs::read_to_string(path).unwrap().split("step(").skip(1) {
        let name =
            call.split(';').next().and_then(|call| call.split('"').nth(1)).unwrap_or_default();
        if name.contains('.')
            && name.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '.' | '-'))
        {
            found.push(name.to_owned());
        }
    }
}

#[test]
fn the_table_names_every_step() {
    let mut found = vec![];
    for source in SOURCES {
        steps_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(source), &mut found);
    }
    found.sort();
    found.dedup();
    assert_eq!(found, STEPS);
}

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Told,
    Death,
}

/// A family in which a collector finds work of every kind: an origin that is deleted under its
/// clone, a snapshot that nobody finishes, a clone that nobody finishes, a checkpoint of a snapshot
/// that is gone, a pack that is mostly dead, and objects of a database without a record.
async fn family(process: &Process, model: &mut Model) -> Result<(), String> {
    work::create(process, model, "origin", &Origin::Nothing).await?;
    let origin = model.datasets[0].handle;
    work::write(process, model, origin, "x", 0, &bytes(&[1; 8], 0)).await?;
    work::snapshot(process, model, origin, "cut").await?;
    let cut = model.snapshots[0].handle;
    work::create(process, model, "clone", &Origin::Snapshot(cut)).await?;
    work::create(process, model, "sparse", &Origin::Nothing).await?;
    let (clone, sparse) = (model.datasets[1].handle, model.datasets[2].handle);
    work::write(process, model, clone, "y", 0, &bytes(&[2; 8], 0)).await?;
    work::write(process, model, sparse, "x", 0, &bytes(&(100..120).collect::<Vec<_>>(), 0)).await?;
    work::perform(process, model, &Op::CloseAll, &Default::default()).await?;
    for n in (1..20).step_by(2) {
        work::write(
            process,
            model,
            sparse,
            "x",
            n * RECORD,
            &bytes(&[200 + n as u64, 300 + n as u64], RECORD / 2),
        )
        .await?;
    }
    work::write(process, model, sparse, "x", RECORD, &bytes(&(400..418).collect::<Vec<_>>(), 0))
        .await?;
    work::perform(process, model, &Op::CloseAll, &Default::default()).await?;
    let stray = format!("vol/{}/wal/00000000000000000001.sst", Incarnation::random());
    process
        .catalog
        .bucket()
        .put(&stray, bytes::Bytes::from_static(b"stray"))
        .await
        .map_err(|error| error.to_string())?;
    begin_snapshot(process, origin).await;
    begin_clone(process, sparse).await;
    checkpoint_late(process, sparse).await;
    work::delete_snapshot(process, model, cut).await?;
    work::delete(process, model, origin).await
}

/// The intent of a snapshot of a volume that goes.
async fn begin_snapshot(process: &Process, of: VolumeHandle) {
    let failpoints = process.catalog.bucket().failpoints();
    failpoints.set("control.snapshot.intent", "return").unwrap();
    let stopped = process.controller.create_snapshot(of, "never".parse().unwrap()).await;
    assert_eq!(stopped.unwrap_err().class(), Class::Unavailable);
    failpoints.set("control.snapshot.intent", "off").unwrap();
}

/// The intent of a clone that was begun yesterday, and that nobody asks for.
async fn begin_clone(process: &Process, of: VolumeHandle) {
    let failpoints = process.catalog.bucket().failpoints();
    failpoints.set("control.create.intent", "return").unwrap();
    assert!(process.create("never", Some(Source::Volume(of))).await.is_err());
    failpoints.set("control.create.intent", "off").unwrap();
    let intent = process.catalog.dataset(&"never".parse().unwrap()).await.unwrap().unwrap().record;
    let begun = Timestamp::from_nanos(intent.created.as_nanos() - 25 * 3600 * 1_000_000_000);
    let older = process.catalog.update_dataset(intent.id(), |dataset| {
        dataset.created = begun;
        Ok(())
    });
    older.await.unwrap();
}

/// A checkpoint that was made after its snapshot's record had gone.
async fn checkpoint_late(process: &Process, of: VolumeHandle) {
    let family = process.catalog.dataset_by_id(of.dataset).await.unwrap().unwrap().record.family;
    let place = process.volumes.settings().place(&process.catalog, family, of.dataset.incarnation);
    let epoch = db::epoch(&place).await.unwrap();
    let (name, root) = (Incarnation::random().to_string(), key::inode(InodeNo::ROOT));
    let late = db::checkpoint_closed(&place, &name, (epoch, &root[..])).await.unwrap();
    late.expect("it was opened");
}

/// Collections until one has nothing more to do, and the caring for a database, which a collector
/// does for old ones.
async fn collect(process: &Process, model: &Model) -> Result<(), String> {
    for at in [Where::Here, Where::Elsewhere] {
        again(async || process.collect(at).await)
            .await
            .map_err(|error| format!("collecting {at:?}: {error}"))?;
    }
    if let Some(dataset) = model.datasets.iter().find(|dataset| dataset.name == "sparse") {
        let care = async || {
            Ok(collect_released(
                process.volumes.settings(),
                &process.catalog,
                dataset.handle.dataset,
            )
            .await?)
        };
        again(care).await.map_err(|error| format!("caring for a database: {error}"))?;
    }
    Ok(())
}

/// The whole story, in which `step` fails once.
fn story(step: &str, failure: Failure) -> Result<(), String> {
    let mut world = World::new();
    let mut model = Model::default();
    let action = if failure == Failure::Told { "1*return" } else { "1*off->pause" };
    // A process that is to die passes the step once, where it comes twice.
    let action =
        if failure == Failure::Death && step.contains("tombstone") { "pause" } else { action };
    let failpoints = world.process().catalog.bucket().failpoints().clone();
    failpoints.set(step, action).unwrap();
    let passes = u64::from(action.starts_with("1*off"));
    let process = world.process().clone();
    let died = world.run(async {
        let death = async {
            while failpoints.passed().get(step).is_none_or(|times| *times <= passes) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let work = async {
            family(&process, &mut model).await?;
            collect(&process, &model).await?;
            finish(&process, &mut model).await
        };
        match failure {
            Failure::Told => Box::pin(work).await.map(|()| false),
            Failure::Death => tokio::select! {
                () = death => Ok(true),
                done = Box::pin(work) => done.map(|()| false),
            },
        }
    })?;
    let reached = failpoints.passed().contains_key(step);
    drop(process);
    if died {
        world.die();
        world.start();
        let process = world.process().clone();
        world.run(Box::pin(async {
            settle(&process, &mut model).await?;
            collect(&process, &model).await?;
            finish(&process, &mut model).await
        }))?;
    }
    if reached { Ok(()) } else { Err("the story does not meet it".to_owned()) }
}

/// After a death: what had no answer is asked for again, or given up.
async fn settle(process: &Process, model: &mut Model) -> Result<(), String> {
    if let Some(crate::model::Pending::Create { name, .. }) = model.pending.take() {
        work::give_up(process, &name).await?;
    }
    for handle in model.snapshots.iter().filter(|s| s.going).map(|s| s.handle).collect::<Vec<_>>() {
        work::delete_snapshot(process, model, handle).await?;
    }
    for handle in model.datasets.iter().filter(|d| d.going).map(|d| d.handle).collect::<Vec<_>>() {
        work::delete(process, model, handle).await?;
    }
    Ok(())
}

/// Remaining data is whole; then all of it is deleted, and nothing is left.
async fn finish(process: &Process, model: &mut Model) -> Result<(), String> {
    for handle in model.datasets.iter().map(|dataset| dataset.handle).collect::<Vec<_>>() {
        let found: Found = process.read(handle).await?;
        model.dataset(handle).expect("it is there").settle(&found)?;
    }
    for handle in model.datasets.iter().map(|dataset| dataset.handle).collect::<Vec<_>>() {
        work::delete(process, model, handle).await?;
    }
    for handle in model.snapshots.iter().map(|snapshot| snapshot.handle).collect::<Vec<_>>() {
        work::delete_snapshot(process, model, handle).await?;
    }
    let mut left = vec![];
    for _ in 0..4 {
        collect(process, model).await?;
        left = work::left(process).await;
        if left.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Err(format!("something is left: {left:#?}"))
}

#[test]
fn a_failure_at_each_step_leaks_at_most_and_the_next_collection_takes_it() {
    let cases: Vec<(&str, Failure)> =
        STEPS.iter().flat_map(|step| [(*step, Failure::Told), (*step, Failure::Death)]).collect();
    let wrong = crate::support::run::concurrently(&cases, |(step, failure)| {
        story(step, *failure).map_err(|what| format!("{step}, {failure:?}: {what}"))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
