//! As many snapshots of one volume as there may be: the last costs what the first did, and all are
//! read and collected.

use super::{World, noise, run};
use crate::support::files::{child, content as content_of, list, top};
use zerofs_csi::bucket::Requests;
use zerofs_csi::control::ControlError;
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

#[test]
fn the_last_of_hundreds_of_snapshots_costs_what_the_first_did() {
    run(async {
        let world = World::new().await;
        let volume = world.volume("a").await;
        let open = world.attach(volume).await;
        let (fs, bucket) = (&*open.exported, world.bucket().clone());
        let (mut all, mut costs) = (Vec::new(), Vec::<Requests>::new());
        for n in 0..SNAPSHOTS {
            top::write(fs, "file", &content(n)).await;
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

        let snapshots = top::child(fs, ".snapshots").await.unwrap().file;
        let listed = list(fs, snapshots).await.unwrap().into_iter();
        let names: Vec<String> =
            listed.map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()).collect();
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
            let at = child(fs, snapshots, &format!("s{n:03}")).await.unwrap().file;
            assert!(content_of(fs, at, "file").await == content(n), "snapshot {n}");
        }
        let left = world.stored().await;
        assert!(left < (SNAPSHOTS / 2 + 10) * BYTES as u64 * 11 / 10, "{left} bytes are left");
        snapshot(&world, volume, SNAPSHOTS).await.unwrap();
    });
}
