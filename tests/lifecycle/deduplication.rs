//! Data that a dataset stored in an earlier life of its owner, or that its origin stored, is not
//! stored again.

use super::{World, noise};
use crate::support::files::top;
use std::time::Duration;
use zerofs_csi::control::Source;
use zerofs_csi::types::VolumeHandle;

const FILES: u64 = 40;
const BYTES: usize = 256 << 10;

/// Opens the volume again, stores something else, and then copies of what is there already: sooner
/// or later none of them is stored.
async fn comes_to_know(before: &World, volume: VolumeHandle) {
    // A process that remembers nothing.
    let world = before.beside("node-a");
    let open = world.open(volume).await;
    for n in 0..2 {
        top::write(&*open.fs, &format!("new {n}"), &noise(1000 + n, 1 << 20)).await;
    }
    let mut unknown = 0;
    for n in 0..FILES {
        let before = world.stored().await;
        top::write(&*open.fs, &format!("copy {n}"), &noise(n, BYTES)).await;
        match world.stored().await - before {
            0 => {}
            more => {
                assert_eq!(
                    unknown, n,
                    "copy {n} was stored ({more} bytes) after another was known"
                );
                unknown += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(unknown < FILES, "nothing is known of what was stored before");
    world.close(open).await;
    let found = world.read(volume).await;
    for n in 0..FILES {
        assert!(found[&format!("copy {n}")] == noise(n, BYTES), "copy {n}");
    }
}

#[test]
fn what_an_earlier_owner_stored_is_not_stored_again() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("volume").await;
        let open = world.open(volume).await;
        for n in 0..FILES {
            top::write(&*open.fs, &format!("file {n}"), &noise(n, BYTES)).await;
        }
        world.close(open).await;
        let cut = world.csi_snapshot(volume, "cut").await;
        let clone = world.copy("clone", Source::Snapshot(cut)).await;
        comes_to_know(&world, volume).await;
        comes_to_know(&world, clone).await;
    });
}

#[test]
fn who_stores_little_asks_for_nothing() {
    super::run(async {
        let world = World::new().await;
        let volume = world.volume("volume").await;
        let open = world.open(volume).await;
        for n in 0..8 {
            top::write(&*open.fs, &format!("file {n}"), &noise(n, BYTES)).await;
        }
        world.close(open).await;
        let world = world.beside("node-a");
        let open = world.open(volume).await;
        let before = world.bucket().requests();
        top::write(&*open.fs, "small", &noise(1000, 512 << 10)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // An opened database looks at its manifest once by itself; footers would be one request
        // more for each pack.
        let packs = world.bucket().list("packs/").await.unwrap().len() as u64;
        let asked = (world.bucket().requests() - before).get;
        assert!(packs >= 8 && asked <= 2, "{asked} requests, {packs} packs");
    });
}
