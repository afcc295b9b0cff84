//! Read-only volumes: a snapshot on any number of nodes, without an owner.

use super::{World, data, run};
use crate::support::files::{GUARDED, name, root, top, try_read};
use crate::support::world::new_volume;
use zerofs_csi::catalog::Form;
use zerofs_csi::control::{ControlError, NewVolume, Source, VolumeInfo};
use zerofs_csi::fs::FsError;
use zerofs_csi::fs::api::FileSystem;
use zerofs_csi::types::{Class, Classify, SnapshotHandle};
use zerofs_csi::volume::{Attached, VolumeError};

async fn create(
    world: &World,
    name: &str,
    from: SnapshotHandle,
) -> Result<VolumeInfo, ControlError> {
    let new = NewVolume {
        access_modes: vec!["MULTI_NODE_READER_ONLY".into()],
        form: Form::Snapshot,
        ..new_volume(name, Some(Source::Snapshot(from)))
    };
    world.controller.create_volume(None, new).await
}

async fn read(attached: &Attached, name: &str) -> Result<Vec<u8>, FsError> {
    let fs = &*attached.exported;
    try_read(fs, top::child(fs, name).await?.file).await
}

#[test]
fn a_snapshot_is_a_volume_on_every_node_at_once() {
    run(async {
        let world = World::new().await;
        let source = world.volume("source").await;
        let content = data(3, 700_000);
        world.write(source, "file", &content).await;
        let cut = world.snapshot(source, "cut").await;
        world.write(source, "file", b"other").await;
        // The call fails once after it was done: a retry answers the same volume.
        world.failpoints().set("control.create.reader", "1*return->off").unwrap();
        let failed = create(&world, "reader", cut).await.unwrap_err();
        assert_eq!(failed.class(), Class::Unavailable, "{failed}");
        let requests = world.bucket().requests();
        let made = create(&world, "reader", cut).await.unwrap();
        assert_eq!(world.bucket().requests().put, requests.put, "nothing is made: {made:?}");
        assert!(
            world
                .bucket()
                .list(&format!("vol/{}", made.handle.dataset.incarnation))
                .await
                .unwrap()
                .is_empty()
        );

        let others = ["node-b", "node-c"].map(|node| world.beside(node));
        let mut all = vec![world.attach(made.handle).await];
        for other in &others {
            all.push(other.attach(made.handle).await);
        }
        // The source, its snapshot: gone. The volume is what keeps them (R14).
        world.controller.delete_snapshot(cut).await.unwrap();
        world.controller.delete_volume(source).await.unwrap();
        let collected = world.collect().await;
        assert!(collected.packs == 0 && collected.retained.len() == 2, "{collected:?}");
        for attached in &all {
            assert!(!attached.is_owned());
            assert!(read(attached, "file").await.unwrap() == content);
            let fs = &*attached.exported;
            let created = fs.create(&root(), fs.root(), &name("new"), GUARDED).await;
            assert!(matches!(created, Err(FsError::ReadOnly)));
            let stat = fs.statfs().await.unwrap();
            assert!(stat.free_bytes == 0 && stat.total_bytes >= content.len() as u64, "{stat:?}");
        }
        assert_eq!(world.record(made.handle).await.owner, None);
        let refused =
            world.volumes.open(&world.catalog, made.handle.dataset).await.map(drop).unwrap_err();
        assert!(matches!(refused, VolumeError::ReadOnly { .. }), "{refused}");
        let refused =
            world.controller.create_snapshot(made.handle, "s".parse().unwrap()).await.unwrap_err();
        assert_eq!(refused.class(), Class::Precondition);
        let refused =
            world.create("clone", Some(Source::Volume(made.handle))).await.map(drop).unwrap_err();
        assert_eq!(refused.class(), Class::Precondition);

        // With the volume goes everything.
        world.controller.delete_volume(made.handle).await.unwrap();
        for other in &others {
            other.volumes.open_snapshots().close().await;
        }
        world.volumes.open_snapshots().close().await;
        world.collect().await;
        for attached in &all {
            let gone = read(attached, "file").await;
            assert!(matches!(gone, Err(FsError::Stale)), "{gone:?}");
        }
        world.assert_empty("all is deleted").await;
    });
}
