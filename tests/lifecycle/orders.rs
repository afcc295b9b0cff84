//! Random orders of everything, against a model, with collections in between.

use super::{World, data};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use zerofs_csi::control::Source;
use zerofs_csi::types::{SnapshotHandle, VolumeHandle};

type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct Model {
    volumes: Vec<(VolumeHandle, Files)>,
    snapshots: Vec<(SnapshotHandle, Files)>,
    made: usize,
}

async fn step(world: &World, model: &mut Model, rng: &mut StdRng) -> String {
    model.made += 1;
    let name = format!("v{}", model.made);
    match rng.random_range(0..100) {
        0..15 => {
            let made = world.volume(&name).await;
            model.volumes.push((made, Files::new()));
            format!("create {name}")
        }
        15..40 if !model.volumes.is_empty() => {
            let at = rng.random_range(0..model.volumes.len());
            let (handle, files) = &mut model.volumes[at];
            let (file, bytes) = (
                format!("f{}", rng.random_range(0..4)),
                data(rng.random(), rng.random_range(0..200_000)),
            );
            world.write(*handle, &file, &bytes).await;
            files.insert(file.clone(), bytes);
            format!("write {file} to {handle}")
        }
        40..55 if !model.volumes.is_empty() => {
            let (handle, files) = model.volumes.choose(rng).cloned().unwrap();
            let cut = match rng.random() {
                true => world.csi_snapshot(handle, &name).await,
                false => world.snapshot(handle, &name).await,
            };
            model.snapshots.push((cut, files));
            format!("snapshot {name} of {handle}")
        }
        55..67 if !model.snapshots.is_empty() => {
            let (cut, files) = model.snapshots.choose(rng).cloned().unwrap();
            let made = world.copy(&name, Source::Snapshot(cut)).await;
            model.volumes.push((made, files));
            format!("clone {name} from {cut}")
        }
        67..73 if !model.volumes.is_empty() => {
            let (source, files) = model.volumes.choose(rng).cloned().unwrap();
            let made = world.copy(&name, Source::Volume(source)).await;
            model.volumes.push((made, files));
            format!("clone {name} from volume {source}")
        }
        73..83 if !model.volumes.is_empty() => {
            let (handle, _) = model.volumes.swap_remove(rng.random_range(0..model.volumes.len()));
            world.controller.delete_volume(handle).await.unwrap();
            format!("delete {handle}")
        }
        83..93 if !model.snapshots.is_empty() => {
            let (handle, _) =
                model.snapshots.swap_remove(rng.random_range(0..model.snapshots.len()));
            world.controller.delete_snapshot(handle).await.unwrap();
            format!("delete snapshot {handle}")
        }
        _ => format!("collect: {:?}", world.collect().await.packs),
    }
}

async fn verify(world: &World, model: &Model, history: &[String]) {
    for (handle, files) in &model.volumes {
        let found = world.read(*handle).await;
        assert!(found == *files, "{handle} differs after\n{}", history.join("\n"));
    }
}

async fn story(seed: u64) {
    let (world, mut model, mut rng) =
        (World::new().await, Model::default(), StdRng::seed_from_u64(seed));
    let mut history = vec![format!("seed {seed}")];
    for i in 0..40 {
        history.push(Box::pin(step(&world, &mut model, &mut rng)).await);
        if i % 10 == 9 {
            Box::pin(verify(&world, &model, &history)).await;
        }
    }
    // The snapshots that are left are still whole: every one can be cloned.
    for (i, (cut, files)) in model.snapshots.clone().into_iter().enumerate() {
        let made = world.copy(&format!("last{i}"), Source::Snapshot(cut)).await;
        model.volumes.push((made, files));
    }
    Box::pin(verify(&world, &model, &history)).await;
    for (handle, _) in model.volumes.drain(..) {
        world.controller.delete_volume(handle).await.unwrap();
    }
    for (handle, _) in model.snapshots.drain(..) {
        world.controller.delete_snapshot(handle).await.unwrap();
    }
    let done = world.collect().await;
    assert!(done.retained.is_empty(), "{done:?} after\n{}", history.join("\n"));
    world.assert_empty(&history.join("\n")).await;
}

#[test]
fn any_order_keeps_what_is_needed_and_nothing_else() {
    super::run(async {
        for seed in 0..6 * super::size() {
            Box::pin(story(seed)).await;
        }
    });
}
