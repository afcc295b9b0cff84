//! Creating, snapshotting and cloning take as many requests for 100,000 files as for ten.

use super::World;
use zerofs_csi::bucket::Requests;
use zerofs_csi::control::Source;
use zerofs_csi::fs::api::{Caller, CreateHow, FileSystem, SetAttr};
use zerofs_csi::types::EntryName;

async fn fill(world: &World, volume: zerofs_csi::types::VolumeHandle, files: usize) {
    let open = world.volumes.open(&world.catalog, volume.dataset).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..16 {
        let open = open.clone();
        tasks.spawn(async move {
            let how = || CreateHow::Unchecked(SetAttr { mode: Some(0o644), ..SetAttr::default() });
            for i in (lane..files).step_by(16) {
                let name = EntryName::try_from(format!("file{i}").as_bytes()).unwrap();
                open.fs.create(&Caller::root(), open.fs.root(), &name, how()).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    drop(open);
    world.volumes.close(volume.dataset).await.unwrap();
}

async fn counted(files: usize) -> [Requests; 3] {
    let world = World::new().await;
    let bucket = world.catalog.bucket().clone();
    let since = |before: Requests| {
        let now = bucket.requests();
        Requests {
            get: now.get - before.get,
            put: now.put - before.put,
            list: now.list - before.list,
            delete: now.delete - before.delete,
            head: now.head - before.head,
        }
    };
    let at = bucket.requests();
    let volume = world.create("source", None).await.unwrap().handle;
    let create = since(at);
    fill(&world, volume, files).await;
    let at = bucket.requests();
    let cut = world.controller.create_snapshot(volume, "cut".parse().unwrap(), true).await.unwrap().handle;
    let snapshot = since(at);
    let at = bucket.requests();
    world.create("clone", Some(Source::Snapshot(cut))).await.unwrap();
    [create, snapshot, since(at)]
}

#[test]
fn requests_do_not_depend_on_the_number_of_files() {
    super::run(async {
        let (few, many) = (counted(10).await, counted(100_000).await);
        println!("CreateVolume, CreateSnapshot, CreateVolume from snapshot: {few:#?}");
        assert_eq!(few, many);
    });
}
