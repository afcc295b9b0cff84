//! What directed histories share: their volumes and snapshots, and processes held at a step.

use crate::model::{Model, Origin};
use crate::ops::{RECORD, Where};
use crate::slow::{collector, end, nothing_is_left, seeds};
use crate::work::{self, again};
use crate::world::{Process, World};
use std::time::Duration;
use zerofs_csi::control::RestoreInPlace;
use zerofs_csi::telemetry::Failpoints;
use zerofs_csi::types::{Incarnation, SnapshotHandle, VolumeHandle};

/// Records of a file that is restored in more than one batch.
pub const MANY: u64 = 600;
const WRITE: usize = 128 * RECORD;

/// Each case in a world of its own, a few at a time.
pub fn each<T: Sync + std::fmt::Debug>(
    cases: &[T],
    story: impl AsyncFn(&T, &Process, &Process, &mut Model) -> Result<(), String> + Sync,
) {
    let wrong = crate::support::run::concurrently(cases, |case| {
        let world = World::polling_mailbox(Duration::from_secs(1));
        let process = world.process().clone();
        let told = world.run(async {
            let (mut model, collector) = (Model::default(), collector(&world).await);
            Box::pin(story(case, &process, &collector, &mut model)).await?;
            Box::pin(end(&process, &collector, &mut model)).await?;
            nothing_is_left(&collector).await
        });
        told.map_err(|what| format!("{case:?}: {what}"))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A closed volume with one file of this many records.
pub async fn volume(
    process: &Process,
    model: &mut Model,
    name: &str,
    records: u64,
) -> Result<VolumeHandle, String> {
    work::create(process, model, name, &Origin::Nothing).await?;
    let volume = model.datasets.last().expect("just made").handle;
    write(process, model, volume, 0..records).await?;
    Ok(volume)
}

pub async fn write(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    range: std::ops::Range<u64>,
) -> Result<(), String> {
    for (n, part) in seeds(range).chunks(WRITE).enumerate() {
        work::write(process, model, of, "x", n * WRITE, part).await?;
    }
    work::close(process, model, of).await
}

pub async fn cut(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    name: &str,
) -> Result<SnapshotHandle, String> {
    work::snapshot(process, model, of, name).await?;
    Ok(model.snapshots.last().expect("just made").handle)
}

/// Opens it once more, so that it ends what waits in the background: what it gave up has no
/// references now.
pub async fn reclaimed(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
) -> Result<(), String> {
    drop(process.open(of).await?);
    tokio::time::sleep(Duration::from_secs(60)).await;
    work::close(process, model, of).await
}

/// Restores the file in place from a snapshot that has such content.
async fn put_back(
    process: &Process,
    model: &mut Model,
    to: VolumeHandle,
    from: SnapshotHandle,
    content: std::ops::Range<u64>,
) -> Result<(), String> {
    let (at, x) = ("x".into(), "x".into());
    let wanted = RestoreInPlace {
        call: Incarnation::random(),
        snapshot: from.snapshot,
        from: at,
        to: x,
        overwrite: true,
    };
    drop(process.open(to).await?);
    let restored = Box::pin(process.controller.restore_in_place(to, &wanted, &|_| ())).await;
    restored.map_err(|error| error.to_string())?;
    let dataset = model.dataset(to).expect("it is there");
    dataset.begin("x", Some(seeds(content)));
    dataset.synced("x");
    work::close(process, model, to).await
}

/// The same, of a snapshot that goes at once and leaves no record.
pub async fn put_back_and_delete(
    process: &Process,
    model: &mut Model,
    to: VolumeHandle,
    from: SnapshotHandle,
) -> Result<(), String> {
    put_back(process, model, to, from, 0..40).await?;
    work::delete_snapshot(process, model, from).await?;
    collect(process).await?;
    let left = process.catalog.snapshots(None).await.map_err(|error| error.to_string())?;
    if left.is_empty() { Ok(()) } else { Err("the snapshot is still there".to_owned()) }
}

pub async fn collect(collector: &Process) -> Result<(), String> {
    again(async || collector.collect(Where::Here).await)
        .await
        .map(drop)
        .map_err(|error| format!("collecting: {error}"))
}

/// Until somebody is held at a step.
pub async fn held_at(failpoints: &Failpoints, step: &str, before: u64) -> Result<(), String> {
    let held = async {
        while failpoints.passed().get(step).copied().unwrap_or(0) <= before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), held)
        .await
        .map_err(|_| format!("nobody comes to {step}"))
}

/// Holds whoever comes to a step next.
pub fn hold(failpoints: &Failpoints, step: &str) -> u64 {
    failpoints.set(step, "1*pause->off").unwrap();
    failpoints.passed().get(step).copied().unwrap_or(0)
}

pub fn release(failpoints: &Failpoints, step: &str) {
    failpoints.set(step, "off").unwrap();
}
