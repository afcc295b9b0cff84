//! Data that a dataset stored in an earlier life of its owner, or that its origin stored, is not
//! stored again.

use super::{World, noise};
use bytes::Bytes;
use std::time::Duration;
use zerofs_csi::control::Source;
use zerofs_csi::fs::Fs;
use zerofs_csi::fs::api::{Caller, CreateHow, FileSystem, SetAttr, Stability};
use zerofs_csi::types::{EntryName, VolumeHandle};

const FILES: u64 = 40;
const BYTES: usize = 256 << 10;

async fn write(fs: &Fs, name: &str, data: Vec<u8>) {
    let (caller, name) = (Caller::root(), EntryName::try_from(name.as_bytes()).unwrap());
    let how = CreateHow::Guarded(SetAttr { mode: Some(0o644), ..SetAttr::default() });
    let file = fs.create(&caller, fs.root(), &name, how).await.unwrap().attr.file;
    fs.write(&caller, file, 0, Bytes::from(data), Stability::Unstable).await.unwrap();
    fs.commit(&caller, file, 0, 0).await.unwrap();
}

async fn stored(world: &World) -> u64 {
    world.catalog.bucket().list("packs/").await.unwrap().iter().map(|object| object.bytes).sum()
}

/// Opens the volume again, stores something else, and then copies of what is there already: sooner
/// or later none of them is stored.
async fn comes_to_know(catalog: &zerofs_csi::catalog::Catalog, volume: VolumeHandle) {
    // A process that remembers nothing.
    let world = World::on(catalog.clone(), "node-a");
    let open = world.open(volume).await;
    for n in 0..2 {
        write(&open.fs, &format!("new {n}"), noise(1000 + n, 1 << 20)).await;
    }
    let mut unknown = 0;
    for n in 0..FILES {
        let before = stored(&world).await;
        write(&open.fs, &format!("copy {n}"), noise(n, BYTES)).await;
        match stored(&world).await - before {
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
    drop(open);
    world.volumes.close(volume.dataset).await.unwrap();
    let found = world.read(volume).await;
    for n in 0..FILES {
        assert!(found[&format!("copy {n}")] == noise(n, BYTES), "copy {n}");
    }
}

#[test]
fn what_an_earlier_owner_stored_is_not_stored_again() {
    super::run(async {
        let world = World::new().await;
        let volume = world.create("volume", None).await.unwrap().handle;
        let open = world.open(volume).await;
        for n in 0..FILES {
            write(&open.fs, &format!("file {n}"), noise(n, BYTES)).await;
        }
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        let cut = world
            .controller
            .create_csi_snapshot(volume, "cut".parse().unwrap())
            .await
            .unwrap()
            .handle;
        let clone = world.create("clone", Some(Source::Snapshot(cut))).await.unwrap().handle;
        comes_to_know(&world.catalog, volume).await;
        comes_to_know(&world.catalog, clone).await;
    });
}

#[test]
fn who_stores_little_asks_for_nothing() {
    super::run(async {
        let world = World::new().await;
        let volume = world.create("volume", None).await.unwrap().handle;
        let open = world.open(volume).await;
        for n in 0..8 {
            write(&open.fs, &format!("file {n}"), noise(n, BYTES)).await;
        }
        drop(open);
        world.volumes.close(volume.dataset).await.unwrap();
        let world = World::on(world.catalog.clone(), "node-a");
        let open = world.open(volume).await;
        let before = world.catalog.bucket().requests();
        write(&open.fs, "small", noise(1000, 512 << 10)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // An opened database looks at its manifest once by itself; footers would be one request
        // more for each pack.
        let packs = world.catalog.bucket().list("packs/").await.unwrap().len() as u64;
        let asked = (world.catalog.bucket().requests() - before).get;
        assert!(packs >= 8 && asked <= 2, "{asked} requests, {packs} packs");
    });
}
