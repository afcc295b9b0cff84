//! Space of datasets and snapshots: the bytes that are said to become free do.

use super::{World, noise};
use crate::support::files::{name, root};
use std::time::Duration;
use zerofs_csi::control::{Accuracy, Source, Space, SpaceOf, space};
use zerofs_csi::fs::api::{CreateHow, FileSystem, SetAttr};
use zerofs_csi::types::VolumeHandle;

async fn measure(world: &World, only: Option<VolumeHandle>, accuracy: Accuracy) -> Space {
    space(world.pool(), &world.volumes, only.map(|volume| volume.dataset), accuracy).await.unwrap()
}

fn of<'a>(space: &'a Space, name: &str) -> &'a SpaceOf {
    space.of.iter().find(|of| of.name == name).unwrap_or_else(|| panic!("{name} in {space:?}"))
}

/// A file that is a hole.
async fn hole(world: &World, volume: VolumeHandle, bytes: u64) {
    let open = world.open(volume).await;
    let how =
        CreateHow::Guarded(SetAttr { mode: Some(0o644), size: Some(bytes), ..SetAttr::default() });
    open.fs.create(&root(), open.fs.root(), &name("hole"), how).await.unwrap();
    world.close(open).await;
}

const SHARED: u64 = 300_000;
/// Whole records; what is left of a file stays in the database.
const OWN: u64 = 3 << 16;

#[test]
fn what_is_shared_and_what_is_not() {
    super::run(async {
        let world = World::new().await;
        let source = world.volume("source").await;
        world.write(source, "shared", &noise(1, SHARED as usize)).await;
        let cut = world.csi_snapshot(source, "cut").await;
        let clone = world.copy("clone", Source::Snapshot(cut)).await;
        world.write(clone, "own", &noise(2, OWN as usize)).await;
        hole(&world, clone, 5 << 30).await;

        let exact = measure(&world, None, Accuracy::Exact).await;
        assert_eq!(
            exact.of.iter().map(|of| of.name.as_str()).collect::<Vec<_>>(),
            ["clone", "source", "source@cut"]
        );
        let clones = of(&exact, "clone");
        assert_eq!((clones.referenced_bytes, clones.unique_bytes), (SHARED + OWN, OWN));
        assert_eq!(clones.logical_bytes, Some(SHARED + OWN + (5 << 30)));
        // It is stored as it is, but for the end of the file, which the database holds.
        let whole = SHARED >> 16 << 16;
        let stored = |one: &SpaceOf| one.stored_bytes;
        assert_eq!(stored(clones) - stored(of(&exact, "source")), OWN);
        assert!((whole..SHARED + 4096).contains(&stored(of(&exact, "source"))), "{exact:?}");
        assert_eq!(stored(of(&exact, "source")), stored(of(&exact, "source@cut")));
        for name in ["source", "source@cut"] {
            let one = of(&exact, name);
            assert_eq!(
                (one.referenced_bytes, one.logical_bytes, one.unique_bytes),
                (SHARED, Some(SHARED), 0),
                "{name}"
            );
        }
        let dedup = exact.dedup_ratio.unwrap();
        assert!(
            (dedup - (2 * SHARED + OWN) as f64 / (SHARED + OWN) as f64).abs() < 1e-9,
            "{dedup}"
        );
        assert!((exact.compression_ratio.unwrap() - 1.0).abs() < 1e-9);

        let estimate = measure(&world, Some(clone), Accuracy::Estimate).await;
        assert_eq!(estimate.of.len(), 1);
        let said = of(&estimate, "clone");
        assert!(said.estimated && said.logical_bytes.is_none() && estimate.dedup_ratio.is_none());
        assert_eq!((estimate.packs, estimate.pack_bytes), (exact.packs, exact.pack_bytes));
        assert_eq!(said.stored_bytes, exact.pack_bytes, "it uses every pack");
        world.controller.delete_volume(clone).await.unwrap();
        world.collect().await;
        let after = measure(&world, None, Accuracy::Estimate).await;
        assert_eq!(
            estimate.pack_bytes - after.pack_bytes,
            said.unique_bytes,
            "what came free is what was said"
        );
        assert!(said.unique_bytes >= OWN);
    });
}

/// Measured once the volume refers to nothing any more that was overwritten, which is reclaimed
/// while it is open.
async fn reclaimed(world: &World, volume: VolumeHandle) -> Space {
    for _ in 0..500 {
        let exact = measure(world, None, Accuracy::Exact).await;
        if of(&exact, "v@cut").unique_bytes > 0 {
            return exact;
        }
        world.open(volume).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.volumes.close(volume.dataset).await.unwrap();
    }
    panic!("nothing is reclaimed");
}

#[test]
fn deleting_a_snapshot_frees_what_was_overwritten_since() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("v").await;
        world.write(volume, "a", &noise(1, 4 << 16)).await;
        let cut = world.csi_snapshot(volume, "cut").await;
        world
            .write(volume, "a", &[noise(3, 1 << 16), noise(1, 4 << 16).split_off(1 << 16)].concat())
            .await;
        let exact = reclaimed(&world, volume).await;
        // An opening knows nothing of what earlier ones stored: the equal records are there twice.
        assert_eq!(
            (of(&exact, "v@cut").unique_bytes, of(&exact, "v").unique_bytes),
            (4 << 16, 4 << 16),
            "{exact:?}"
        );
        let estimate = measure(&world, None, Accuracy::Estimate).await;
        assert!(of(&estimate, "v@cut").estimated);
        world.controller.delete_snapshot(cut).await.unwrap();
        world.collect().await;
        let after = measure(&world, None, Accuracy::Estimate).await;
        assert_eq!(estimate.pack_bytes - after.pack_bytes, of(&estimate, "v@cut").unique_bytes);
        world.controller.delete_volume(volume).await.unwrap();
        assert_eq!(measure(&world, None, Accuracy::Exact).await.of, []);
    });
}
