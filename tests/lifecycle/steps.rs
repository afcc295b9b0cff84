//! A failure at every durable step: the repeated call gives the right result, and nothing leaks.

use super::{World, data};
use zerofs_csi::control::{ControlError, Source};
use zerofs_csi::types::{Class, Classify};

const CREATE: &[&str] = &[
    "control.create.begin",
    "control.create.intent",
    "control.create.dependant",
    "control.create.cloned",
    "control.create.implied",
    "control.create.ready",
    "fs.db.before-clone",
    "fs.db.after-clone",
];
const SNAPSHOT: &[&str] = &[
    "control.snapshot.begin",
    "control.snapshot.claimed",
    "control.snapshot.serial",
    "control.snapshot.intent",
    "control.snapshot.checkpoint",
    "control.snapshot.ready",
];
const DELETE: &[&str] = &["control.delete.tombstone", "control.snapshot-delete.tombstone"];
const COLLECT: &[&str] = &[
    "collect.catalog",
    "collect.listed",
    "collect.marked",
    "collect.packs",
    "collect.snapshot.dead",
    "collect.snapshot.dropped",
    "collect.snapshot.removed",
    "collect.dataset.dead",
    "collect.dataset.fenced",
    "collect.dataset.deleted",
    "collect.dataset.removed",
    "fs.db.before-delete",
    "fs.db.after-delete",
    "collect.detach.begin",
    "collect.detach.whole",
    "collect.detach.recorded",
    "fs.db.detach.rewritten",
    "fs.db.detach.dropped",
];

const LIVES_AT_ONCE: usize = 8;

/// Repeats a call until it succeeds; every failure must be one that a caller repeats.
async fn again<T, F: Future<Output = Result<T, ControlError>>>(
    step: &str,
    mut call: impl FnMut() -> F,
) -> T {
    for _ in 0..3 {
        match call().await {
            Ok(done) => return done,
            Err(error) => assert!(
                matches!(error.class(), Class::Unavailable | Class::InProgress),
                "{step}: {error}"
            ),
        }
    }
    panic!("{step}: does not succeed when it is repeated");
}

/// The whole life, with one failure at `step`; answers whether it happened.
async fn life(step: &'static str, from_volume: bool) {
    let world = World::new().await;
    let failpoints = world.failpoints().clone();
    failpoints.set(step, "1*return").unwrap();
    let (first, second) = (data(1, 300_000), data(2, 100_000));
    let source = again(step, || world.create("source", None)).await.handle;
    world.write(source, "a", &first).await;
    let cut = again(step, || world.controller.create_csi_snapshot(source, "cut".parse().unwrap()))
        .await
        .handle;
    world.write(source, "a", &second).await;
    let from = if from_volume { Source::Volume(source) } else { Source::Snapshot(cut) };
    let clone = again(step, || world.create("clone", Some(from.clone()))).await.handle;
    let expected = if from_volume { &second } else { &first };
    assert!(world.read(clone).await["a"] == *expected, "{step}");
    assert_eq!(
        again(step, || world.create("clone", Some(from.clone()))).await.handle,
        clone,
        "{step}"
    );

    again(step, || world.controller.delete_volume(source)).await;
    again(step, || world.controller.delete_snapshot(cut)).await;
    let collector = || async { world.collector().collect().await };
    again(step, collector).await;
    assert!(world.read(clone).await["a"] == *expected, "{step}: the clone lost data");
    again(step, || world.controller.delete_volume(clone)).await;
    again(step, collector).await;
    assert_eq!(world.controller.volumes().await.unwrap().len(), 0);
    world.assert_empty(step).await;
}

#[test]
fn a_failure_at_any_step_is_repaired_by_a_retry() {
    super::run(async {
        use futures::StreamExt;
        let steps = [CREATE, SNAPSHOT, DELETE, COLLECT].concat();
        let mut lives: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::new();
        for step in steps {
            lives.push(Box::pin(life(step, false)));
            lives.push(Box::pin(life(step, true)));
        }
        // Each in a pool of its own.
        futures::stream::iter(lives).buffer_unordered(LIVES_AT_ONCE).collect::<Vec<()>>().await;
    });
}

/// A claim that is deleted while its volume is half made leaks nothing (R30).
#[test]
fn a_creation_that_is_given_up_is_deleted_whole() {
    super::run(async {
        let both = CREATE.iter().flat_map(|step| [(step, false), (step, true)]);
        // Only a clone of a volume has an implied snapshot.
        for (step, from_volume) in
            both.filter(|(step, from_volume)| **step != "control.create.implied" || *from_volume)
        {
            let world = World::new().await;
            let source = world.volume("source").await;
            world.write(source, "a", &data(1, 100_000)).await;
            let cut = world.snapshot(source, "cut").await;
            world.failpoints().set(step, "return").unwrap();
            let from = if from_volume { Source::Volume(source) } else { Source::Snapshot(cut) };
            let refused = world.create("clone", Some(from)).await.unwrap_err();
            assert!(
                matches!(refused.class(), Class::Unavailable | Class::InProgress),
                "{step}: {refused}"
            );
            world.failpoints().set(step, "off").unwrap();
            for at in world.catalog.datasets().await.unwrap() {
                let handle = zerofs_csi::types::VolumeHandle {
                    pool: world.catalog.pool().id,
                    dataset: at.record.id(),
                };
                world.controller.delete_volume(handle).await.unwrap();
            }
            world.controller.delete_snapshot(cut).await.unwrap();
            world.collect().await;
            world.assert_empty(step).await;
        }
    });
}
