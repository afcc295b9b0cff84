//! Every chunk is verified, and what is damaged is told by the names of its files.

use super::{World, noise};
use crate::support::fault::{Fault, FaultStore, Op, Rule};
use zerofs_csi::control::{Scrub, Scrubbed, Source};
use zerofs_csi::types::{PackId, SnapshotHandle, VolumeHandle};

async fn scrub(world: &World, resumed: Option<Scrubbed>) -> Scrubbed {
    // A process of its own: nothing is in its memory.
    let cold = world.beside("node-cold");
    let pool = cold.pool();
    let mut scrub = Scrub::new(pool, &cold.volumes, None, resumed).unwrap();
    assert!(scrub.run(None, &Default::default(), |_, _| {}).await.unwrap());
    scrub.found().clone()
}

fn files(found: &Scrubbed) -> Vec<(String, u64)> {
    let mut files: Vec<_> = found.damaged.iter().map(|d| (d.file.clone(), d.offset)).collect();
    files.sort();
    files
}

/// A volume with a file of its own and one that its snapshot and clone share.
async fn family(world: &World) -> (VolumeHandle, String) {
    let source = world.volume("source").await;
    world.write(source, "shared", &noise(1, 300_000)).await;
    let packs = world.bucket().list("packs/").await.unwrap();
    assert_eq!(packs.len(), 1);
    let cut = world.csi_snapshot(source, "cut").await;
    let clone = world.copy("clone", Source::Snapshot(cut)).await;
    world.write(clone, "own", &noise(2, 200_000)).await;
    (source, packs[0].key.clone())
}

#[test]
fn what_is_damaged_is_told_by_every_name_it_has() {
    super::run(async {
        let world = World::new().await;
        let (source, pack) = family(&world).await;
        let clean = scrub(&world, None).await;
        assert_eq!(clean.damaged, []);
        let mut roots = clean.roots.clone();
        roots.sort();
        assert_eq!(roots, ["clone", "source", "source@cut"]);
        assert_eq!((clean.packs.len(), clean.chunks), (2, 3 * 5 + 3));

        let bucket = world.bucket();
        let whole = bucket.get(&pack, 1 << 30).await.unwrap().unwrap();
        let mut bent = whole.to_vec();
        // In the second record.
        bent[8 + (64 << 10) + 5] ^= 4;
        bucket.put(&pack, bent.into()).await.unwrap();
        let found = scrub(&world, None).await;
        let wanted: Vec<_> = ["clone:/shared", "source:/shared", "source@cut:/shared"]
            .map(|f| (f.to_owned(), 64 << 10))
            .into();
        assert_eq!(files(&found), wanted, "{found:?}");

        // A footer that cannot be read hides nothing, and damages nothing.
        let mut bent = whole.to_vec();
        let at = bent.len() - 60;
        bent[at] ^= 1;
        bucket.put(&pack, bent.into()).await.unwrap();
        assert_eq!(scrub(&world, None).await.damaged, []);

        bucket.delete(std::slice::from_ref(&pack)).await.unwrap();
        let found = scrub(&world, None).await;
        assert_eq!(found.damaged.len(), 15, "{found:?}");
        assert!(found.damaged.iter().all(|d| d.why.contains("not in the bucket")), "{found:?}");
        bucket.put(&pack, whole).await.unwrap();
        assert_eq!(scrub(&world, None).await.damaged, []);
        // A deleted dataset needs nothing.
        world.controller.delete_volume(source).await.unwrap();
        assert_eq!(scrub(&world, None).await.roots.len(), 2);
    });
}

#[test]
fn a_chunk_that_its_pack_does_not_hold_is_found() {
    super::run(async {
        let world = World::new().await;
        let (_, pack) = family(&world).await;
        let store = zerofs_csi::chunk::ChunkStore::new(
            world.bucket().clone(),
            pack.split('/').nth(1).unwrap().parse().unwrap(),
            world.catalog.keyring(),
            zerofs_csi::chunk::ChunkCache::memory(1 << 20),
        );
        let id: PackId = pack.splitn(3, '/').nth(2).unwrap().parse().unwrap();
        // A rewriting that knew of one chunk only.
        let first = store.contents(id).await.unwrap()[0].hash;
        store.rewrite(id, &[first].into()).await.unwrap();
        let found = scrub(&world, None).await;
        assert_eq!(found.damaged.len(), 12, "{found:?}");
        assert!(
            found.damaged.iter().all(|d| d.why.contains("does not hold it") && d.offset > 0),
            "{found:?}"
        );
    });
}

#[test]
fn an_ended_scrub_goes_on_without_reading_packs_again() {
    super::run(async {
        let world = World::new().await;
        let (_, pack) = family(&world).await;
        let bucket = world.bucket();
        let mut bent = bucket.get(&pack, 1 << 30).await.unwrap().unwrap().to_vec();
        bent[100] ^= 4;
        bucket.put(&pack, bent.into()).await.unwrap();
        let first = scrub(&world, None).await;
        let state = serde_json::to_vec(&first).unwrap();
        let again = scrub(&world, Some(serde_json::from_slice(&state).unwrap())).await;
        assert_eq!(again.bytes, first.bytes, "nothing was read again");
        assert_eq!(files(&again), files(&first));
        assert_eq!(again.damaged.len(), 3);
        let pool = world.pool();
        assert!(
            Scrub::new(pool, &world.volumes, None, Some(Scrubbed { format: 9, ..first })).is_err()
        );
    });
}

/// A scrub whose registration has expired, as one that could not renew it for an hour: the snapshot
/// that it reads is deleted and collected under its hands. What is missing then is not damage.
#[test]
fn what_is_collected_during_a_scrub_is_not_damaged() {
    super::run(async {
        let world = World::new().await;
        let source = world.volume("source").await;
        for n in 0..3 {
            // Each in a pack of its own.
            world.write(source, &format!("f{n}"), &noise(n, 200_000)).await;
        }
        world.csi_snapshot(source, "cut").await;
        world.controller.delete_volume(source).await.unwrap();
        let bucket = world.bucket();
        let cold = world.beside("node-cold");
        let pool = cold.pool();
        let mut scrub = Scrub::new(pool, &cold.volumes, None, None).unwrap();
        let (mut packs, stop) = (0, Default::default());
        let done = scrub.run(None, &stop, |_, _| {
            packs += 1;
            if packs > 1 {
                return;
            }
            let collecting = async {
                let readers = bucket.list("readers/").await.unwrap();
                let keys: Vec<String> = readers.into_iter().map(|reader| reader.key).collect();
                assert_eq!(keys.len(), 1, "it is registered");
                bucket.delete(&keys).await.unwrap();
                let snapshots = world.catalog.snapshots(None).await.unwrap();
                let pool = world.pool().id();
                let snapshot = snapshots[0].record.id();
                let handle = SnapshotHandle { pool, snapshot };
                world.controller.delete_snapshot(handle).await.unwrap();
                world.collect().await;
                assert!(bucket.list("packs/").await.unwrap().is_empty());
            };
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| runtime.block_on(Box::pin(collecting)));
        });
        assert!(done.await.unwrap());
        assert_eq!(packs, 1, "the others were collected");
        assert_eq!(scrub.found().damaged, []);
    });
}

/// Credentials that may only read: the snapshot is not registered as being read.
#[test]
fn a_scrub_only_reads() {
    super::run(async {
        let world = World::new().await;
        family(&world).await;
        let store = FaultStore::over(world.bucket().store());
        for op in [Op::Put, Op::PutNew, Op::Delete] {
            store.script(Rule::on(op).then(Fault::Denied));
        }
        let reader = World::builder("reader").open(store.quick_bucket()).await;
        let found = scrub(&reader, None).await;
        assert_eq!((found.roots.len(), found.damaged.len()), (3, 0));
    });
}
