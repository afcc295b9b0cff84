//! As many snapshots of one volume as there may be: the last costs what the first did, and all are
//! read and collected.

use super::snapdir::{child, read, root, write};
use super::{World, noise, run};
use zerofs_csi::bucket::Requests;
use zerofs_csi::control::ControlError;
use zerofs_csi::fs::api::{DirCookie, FileSystem, ListLimit};
use zerofs_csi::types::{SnapshotHandle, VolumeHandle};

const SNAPSHOTS: u64 = 500;
const BYTES: usize = 40_000;

/// The file as the snapshot of that number has it.
fn content(n: u64) -> Vec<u8> {
    noise(n, BYTES)
}

async fn snapshot(
    world: &World,
    volume: VolumeHandle,
    n: u64,
) -> Result<SnapshotHandle, ControlError> {
    let name = format!("s{n:03}").parse().unwrap();
    Ok(world.controller.create_snapshot(volume, name).await?.handle)
}

async fn packs(world: &World) -> u64 {
    world.catalog.bucket().list("packs/").await.unwrap().iter().map(|object| object.bytes).sum()
}

#[test]
fn the_last_of_hundreds_of_snapshots_costs_what_the_first_did() {
    run(async {
        let world = World::new().await;
        let volume = world.create("a", None).await.unwrap().handle;
        let open = world.volumes.attach(&world.catalog, volume.dataset).await.unwrap();
        let (fs, bucket) = (&open.exported, world.catalog.bucket().clone());
        let (mut all, mut costs) = (Vec::new(), Vec::<Requests>::new());
        for n in 0..SNAPSHOTS {
            write(fs, fs.root(), "file", &content(n)).await;
            let before = bucket.requests();
            all.push(snapshot(&world, volume, n).await.unwrap());
            costs.push(bucket.requests() - before);
        }
        // The least of a hundred: flushes and polls of the database's own are in the others.
        let least = |of: &[Requests]| {
            let least = |count: fn(&Requests) -> u64| of.iter().map(count).min().unwrap();
            (least(|r| r.put), least(|r| r.get), least(|r| r.list), least(|r| r.head))
        };
        let (first, last) = (least(&costs[1..101]), least(&costs[costs.len() - 100..]));
        println!(
            "PUT, GET, LIST, HEAD of a snapshot: {first:?} among the first, {last:?} among the last"
        );
        assert_eq!(first, last);

        let over = snapshot(&world, volume, SNAPSHOTS).await.unwrap_err().to_string();
        assert!(over.contains("500") && over.contains("delete some first"), "{over}");

        let snapshots = child(fs, fs.root(), ".snapshots").await.unwrap().file;
        let limit = ListLimit { entries: 100, bytes: 1 << 16, entry_bytes: 64, with_attr: false };
        let (mut names, mut after) = (Vec::new(), DirCookie::default());
        loop {
            let page = fs.readdir(&root(), snapshots, after, limit).await.unwrap();
            after = page.entries.last().map_or(after, |entry| entry.cookie);
            names.extend(
                page.entries
                    .into_iter()
                    .map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()),
            );
            if page.eof {
                break;
            }
        }
        let expected: Vec<String> = [".".into(), "..".into()]
            .into_iter()
            .chain((0..SNAPSHOTS).map(|n| format!("s{n:03}")))
            .collect();
        assert_eq!(names, expected);

        world.collect().await;
        let before = bucket.requests();
        let collected = world.collect().await;
        println!("a collection of {SNAPSHOTS} snapshots: {:?}", bucket.requests() - before);
        assert_eq!(collected.packs, 0);
        // Every second goes, from the newest on; the others keep what is theirs and nothing else.
        for at in all.iter().skip(1).step_by(2).rev() {
            world.controller.delete_snapshot(*at).await.unwrap();
        }
        world.collect().await;
        for n in (0..SNAPSHOTS).step_by(2) {
            let at = child(fs, snapshots, &format!("s{n:03}")).await.unwrap();
            let file = child(fs, at.file, "file").await.unwrap();
            assert!(read(fs, file.file).await == content(n), "snapshot {n}");
        }
        let left = packs(&world).await;
        assert!(left < (SNAPSHOTS / 2 + 10) * BYTES as u64 * 11 / 10, "{left} bytes are left");
        snapshot(&world, volume, SNAPSHOTS).await.unwrap();
    });
}
