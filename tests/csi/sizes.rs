//! Bounds that a volume cannot keep: of a range that it has outgrown already, and of a source that
//! holds more.

use crate::support::driver::*;

use std::collections::HashMap;
use tonic::Code;
use zerofs_csi::csi::proto::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::fs::api::{CreateHow, SetAttr};
use zerofs_csi::nfs::client::{Client, Credentials};

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_above_the_limit_of_an_expansion_is_out_of_range() {
    let driver = Driver::start().await;
    let size = Some(CapacityRange { required_bytes: 5 * GIB, limit_bytes: 0 });
    let request = CreateVolumeRequest { capacity_range: size, ..new_volume("v") };
    let id = driver
        .controller()
        .create_volume(request)
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap()
        .volume_id;
    let range = |required: i64, limit: i64| {
        Some(CapacityRange { required_bytes: required * GIB, limit_bytes: limit * GIB })
    };
    let expand = |required, limit| {
        let capacity_range = range(required, limit);
        let request = ControllerExpandVolumeRequest {
            volume_id: id.clone(),
            capacity_range,
            ..Default::default()
        };
        let mut controller = driver.controller();
        async move {
            controller
                .controller_expand_volume(request)
                .await
                .map(|answer| answer.into_inner().capacity_bytes)
        }
    };
    refused(expand(2, 3).await, Code::OutOfRange, "at most 3221225472");
    assert_eq!(expand(2, 5).await.unwrap(), 5 * GIB);
    assert_eq!(expand(6, 7).await.unwrap(), 6 * GIB);
    let staging = driver.path("staging");
    driver.stage(&id, &staging).await.unwrap();
    let on_node = |required, limit| {
        let (volume_id, volume_path, capacity_range) =
            (id.clone(), text(&staging), range(required, limit));
        let request = NodeExpandVolumeRequest {
            volume_id,
            volume_path,
            capacity_range,
            ..Default::default()
        };
        let mut node = driver.node();
        async move {
            node.node_expand_volume(request).await.map(|answer| answer.into_inner().capacity_bytes)
        }
    };
    refused(on_node(2, 3).await, Code::OutOfRange, "at most 3221225472");
    assert_eq!(on_node(6, 6).await.unwrap(), 6 * GIB);
}

fn copy_of(name: &str, source: Type, inodes: u32) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        parameters: HashMap::from([("inodeQuota".into(), inodes.to_string())]),
        ..new_volume(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_of_fewer_inodes_than_the_source_has_is_out_of_range() {
    let (mounter, mounted) = mounter();
    let driver = Driver::with(mounter).await;
    let (id, staging) = (driver.create("source").await.volume_id, driver.path("staging"));
    driver.stage(&id, &staging).await.unwrap();
    let Mounted { what, root } = mounted.lock().clone().unwrap();
    let client = Client::connect(what.endpoint, &Credentials::root()).await.unwrap();
    for n in 0..300 {
        let how = CreateHow::Guarded(SetAttr::default());
        client.create(&root, format!("file-{n}").as_bytes(), &how).await.unwrap();
    }
    let snapshot = driver.snapshot("cut", &id).await.unwrap().snapshot_id;
    driver.unstage(&id, &staging).await.unwrap();
    let released = driver.snapshot("cut-of-a-closed-volume", &id).await.unwrap().snapshot_id;
    let of = |snapshot: &str| Type::Snapshot(SnapshotSource { snapshot_id: snapshot.into() });
    let volume = || Type::Volume(VolumeSource { volume_id: id.clone() });
    for source in [of(&snapshot), of(&released), volume()] {
        let small = driver.controller().create_volume(copy_of("copy", source, 100)).await;
        refused(small, Code::OutOfRange, "inodeQuota 100");
    }
    let all =
        driver.controller().list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.entries.len(), 1, "nothing is left behind");
    for (name, source) in [("a", of(&snapshot)), ("b", of(&released)), ("c", volume())] {
        let fits = driver.controller().create_volume(copy_of(name, source, 301)).await.unwrap();
        let copy = fits.into_inner().volume.unwrap().volume_id;
        let staging = driver.path(name);
        driver.stage(&copy, &staging).await.unwrap();
        let stats = NodeGetVolumeStatsRequest {
            volume_id: copy.clone(),
            volume_path: text(&staging),
            ..Default::default()
        };
        let usage = driver.node().node_get_volume_stats(stats).await.unwrap().into_inner().usage;
        assert_eq!((usage[1].total, usage[1].available), (301, 0), "{usage:?}");
        driver.unstage(&copy, &staging).await.unwrap();
    }
}
