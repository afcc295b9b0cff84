//! Clones that come to stand on their own (R13), and databases that give up objects that are
//! obsolete.

use super::{World, data};
use std::time::Duration;
use zerofs_csi::control::Source;
use zerofs_csi::types::VolumeHandle;

async fn objects(world: &World, volume: VolumeHandle) -> usize {
    world.bucket().list(&format!("vol/{}", volume.dataset.incarnation)).await.unwrap().len()
}

/// Origin, its snapshot, and a clone of the clone.
async fn family(world: &World) -> (VolumeHandle, VolumeHandle, VolumeHandle) {
    let source = world.volume("source").await;
    world.write(source, "a", &data(1, 200_000)).await;
    let cut = world.csi_snapshot(source, "cut").await;
    let clone = world.copy("clone", Source::Snapshot(cut)).await;
    world.write(clone, "b", &data(2, 100_000)).await;
    let second = world.copy("second", Source::Volume(clone)).await;
    world.controller.delete_snapshot(cut).await.unwrap();
    world.controller.delete_volume(source).await.unwrap();
    (source, clone, second)
}

async fn assert_whole(world: &World, volume: VolumeHandle) {
    let found = world.read(volume).await;
    assert!(found["a"] == data(1, 200_000) && found["b"] == data(2, 100_000));
}

const STEPS: &[&str] = &[
    "collect.detach.begin",
    "collect.detach.whole",
    "collect.detach.recorded",
    "fs.db.detach.rewritten",
    "fs.db.detach.dropped",
    "volume.maintenance.claimed",
];

async fn origin_goes(step: Option<&str>) {
    let world = World::new().await;
    let (source, clone, second) = family(&world).await;
    if let Some(step) = step {
        world.failpoints().set(step, "1*return").unwrap();
        world.collect().await;
    }
    let done = world.collect().await;
    assert!(done.retained.is_empty(), "{step:?}: {done:?}");
    assert_eq!(objects(&world, source).await, 0, "{step:?}: the origin's database is gone");
    let names: Vec<String> = world
        .catalog
        .datasets()
        .await
        .unwrap()
        .into_iter()
        .map(|at| at.record.name.to_string())
        .collect();
    assert_eq!(names.len(), 2, "{step:?}: {names:?}");
    assert!(
        world.catalog.snapshots(Some(source.dataset.incarnation)).await.unwrap().is_empty(),
        "{step:?}"
    );
    assert_whole(&world, clone).await;
    assert_whole(&world, second).await;
    world.controller.delete_volume(clone).await.unwrap();
    world.collect().await;
    assert_eq!(objects(&world, clone).await, 0, "{step:?}: the clone between is free too");
    assert_whole(&world, second).await;
    world.controller.delete_volume(second).await.unwrap();
    world.collect().await;
    world.assert_empty("detached").await;
}

#[test]
fn an_origin_that_was_deleted_goes_and_its_clones_stay_whole() {
    super::run(async {
        Box::pin(origin_goes(None)).await;
        for step in STEPS {
            Box::pin(origin_goes(Some(step))).await;
        }
    });
}

#[test]
fn the_owner_detaches_what_it_has_open() {
    super::run(async {
        let world = World::new().await;
        let (source, clone, second) = family(&world).await;
        let node = world.beside("node-b");
        let open = node.open(clone).await;
        let mailbox = node.serve_mailbox(Duration::from_millis(20));
        // The detach begins at once, and keeps the origin for its readers for some minutes: until
        // it is closed here.
        let held = loop {
            let done = world.collect().await;
            let why = done
                .retained
                .iter()
                .find(|kept| kept.what == "dataset clone attached to its origin")
                .map(|kept| kept.why.clone());
            match why {
                Some(why) if why.contains("in progress; retry") => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Some(why) => break why,
                None => panic!("{done:?}"),
            }
        };
        assert!(held.contains("readers for some minutes"), "{held}");
        assert!(objects(&world, source).await > 0);
        node.close(open).await;
        mailbox.stop().await;
        assert_whole(&world, clone).await;
        assert_whole(&world, second).await;
    });
}

#[test]
fn requests_of_the_dead_are_collected() {
    super::run(async {
        let world = World::new().await;
        let bucket = world.bucket();
        for key in ["nodes/gone/request/x", "nodes/gone/reply/x", "nodes/gone/heartbeat"] {
            bucket.put(key, bytes::Bytes::from_static(b"{}")).await.unwrap();
        }
        assert_eq!(world.collect().await.remnants, 0, "they may be waited for");
        assert_eq!(bucket.list("nodes").await.unwrap().len(), 3);
    });
}
