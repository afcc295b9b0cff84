//! Histories aimed at packs that are rewritten (R12): whoever stores again what is being dropped
//! of one, or was dropped, stores it again.

use crate::model::{Model, Origin};
use crate::ops::{RECORD, Where};
use crate::scene::{collect, cut, each, held_at, hold, release, volume};
use crate::slow::seeds;
use crate::work;
use crate::world::Process;
use std::time::Duration;
use zerofs_csi::control::RestoreInPlace;
use zerofs_csi::types::{Incarnation, SnapshotHandle, VolumeHandle};

/// Records of the origin, and those of them that stay in use: the first ones.
const ALL: u64 = 40;
const KEPT: u64 = 10;

async fn write_synced(
    process: &Process,
    model: &mut Model,
    of: VolumeHandle,
    file: &str,
    at: u64,
    what: &[u8],
) -> Result<(), String> {
    work::write(process, model, of, file, at as usize * RECORD, what).await?;
    work::sync_file(process, model, of, file).await
}

/// A pack of which only a snapshot, not sealed, uses a little; nobody has the volume open.
async fn mostly_dead(
    process: &Process,
    model: &mut Model,
) -> Result<(VolumeHandle, SnapshotHandle), String> {
    let origin = volume(process, model, "origin", ALL).await?;
    write_synced(process, model, origin, "x", KEPT, &seeds(100..100 + ALL - KEPT)).await?;
    let source = cut(process, model, origin, "cut").await?;
    write_synced(process, model, origin, "x", 0, &seeds(200..200 + KEPT)).await?;
    work::close(process, model, origin).await?;
    Ok((origin, source))
}

/// A clone that has stored enough of its own that it learns what its origin stored, and then
/// stores what is dead of that.
async fn clone_that_knows(
    process: &Process,
    model: &mut Model,
    source: SnapshotHandle,
) -> Result<VolumeHandle, String> {
    work::create(process, model, "clone", &Origin::Snapshot(source)).await?;
    let clone = model.datasets.last().expect("just made").handle;
    for n in 0..4 {
        write_synced(process, model, clone, "own", n * 128, &seeds(1000 + n * 128..1128 + n * 128))
            .await?;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    write_synced(process, model, clone, "again", 0, &seeds(KEPT..ALL)).await?;
    work::close(process, model, clone).await?;
    Ok(clone)
}

async fn was_rewritten(process: &Process) -> Result<(), String> {
    let packs = process.catalog.bucket().list("packs/").await.map_err(|error| error.to_string())?;
    let rewritten = packs.iter().any(|object| object.key.contains("/rewritten/"));
    if rewritten { Ok(()) } else { Err("no pack was rewritten".to_owned()) }
}

/// A clone that nobody knew of when all heads sealed the pack, made when the next generation is
/// about to be stored.
#[test]
fn a_clone_made_while_a_pack_is_rewritten_does_not_refer_to_what_is_dropped() {
    let cases = [
        (Where::Here, "chunk.before-rewrite"),
        (Where::Elsewhere, "chunk.before-rewrite"),
        (Where::Elsewhere, "chunk.rewritten"),
    ];
    each(&cases, async |(at, step), process, collector, model| {
        let (_, source) = mostly_dead(process, model).await?;
        let holder = if *at == Where::Here { process } else { collector };
        let failpoints = holder.catalog.bucket().failpoints();
        let before = hold(failpoints, step);
        let cloning = async {
            held_at(failpoints, step, before).await?;
            let clone = clone_that_knows(process, model, source).await;
            release(failpoints, step);
            clone.map(drop)
        };
        let (collected, cloned) = tokio::join!(collect(holder), cloning);
        collected.and(cloned)?;
        was_rewritten(process).await?;
        work::compare(collector, model).await
    });
}

/// The collector ends between two of its steps; what it leaves is finished by the next one, when
/// the clone has stored what was to be dropped.
#[test]
fn a_clone_made_after_a_rewriting_that_was_cut_off_does_not_refer_to_what_is_dropped() {
    let steps = [
        "collect.rewrite-pending",
        "collect.sealed",
        "collect.rewrite.listed",
        "chunk.before-rewrite",
        "chunk.rewritten",
    ];
    each(&steps, async |step, process, collector, model| {
        let (_, source) = mostly_dead(process, model).await?;
        let failpoints = collector.catalog.bucket().failpoints();
        failpoints.set(step, "1*return").unwrap();
        if let Ok(done) = collector.collect(Where::Here).await {
            return Err(format!("the collection was not cut off: {done:?}"));
        }
        clone_that_knows(process, model, source).await?;
        collect(collector).await?;
        was_rewritten(process).await?;
        work::compare(collector, model).await
    });
}

/// A volume that stays open knows what it stored. It refers to nothing of the pack when that is
/// rewritten, or gives it up later; then a restore by reference brings the pack back to it.
#[test]
fn a_pack_that_comes_back_by_a_restore_is_taken_for_nothing_else() {
    // The owner seals the pack before it gives the volume up, or does not.
    each(&[false, true], async |seals, process, collector, model| {
        let origin = volume(process, model, "origin", 0).await?;
        write_synced(process, model, origin, "x", 0, &seeds(0..ALL)).await?;
        write_synced(process, model, origin, "x", KEPT, &seeds(100..100 + ALL - KEPT)).await?;
        let source = cut(process, model, origin, "cut").await?;
        if *seals {
            collect(process).await?;
        }
        write_synced(process, model, origin, "x", 0, &seeds(200..200 + KEPT)).await?;
        collect(process).await?;
        was_rewritten(process).await?;
        let (from, to) = ("x".into(), "x".into());
        let wanted = RestoreInPlace {
            call: Incarnation::random(),
            snapshot: source.snapshot,
            from,
            to,
            overwrite: true,
        };
        let restored =
            Box::pin(process.controller.restore_in_place(origin, &wanted, &|_| ())).await;
        restored.map_err(|error| error.to_string())?;
        let dataset = model.dataset(origin).expect("it is there");
        dataset.begin("x", Some([seeds(0..KEPT), seeds(100..100 + ALL - KEPT)].concat()));
        dataset.synced("x");
        write_synced(process, model, origin, "again", 0, &seeds(KEPT..ALL)).await?;
        work::close(process, model, origin).await?;
        work::compare(collector, model).await
    });
}
