//! Snapshots, and volumes made from them and from volumes.

use crate::support::driver::*;
use tonic::Code;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use zerofs_csi::csi::proto::v1::*;

fn from_snapshot(name: &str, id: &str) -> CreateVolumeRequest {
    let source = VolumeContentSource {
        r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })),
    };
    CreateVolumeRequest { volume_content_source: Some(source), ..new_volume(name) }
}

async fn listed(driver: &Driver, request: ListSnapshotsRequest) -> Vec<String> {
    let page = driver.controller().list_snapshots(request).await.unwrap().into_inner();
    page.entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_made_once_and_its_name_is_the_drivers() {
    let driver = Driver::start().await;
    let (a, b) = (driver.create("a").await.volume_id, driver.create("b").await.volume_id);
    let made = driver.snapshot("snap", &a).await.unwrap();
    assert!(made.ready_to_use && made.size_bytes == GIB && made.creation_time.is_some());
    assert_eq!(made.source_volume_id, a);
    assert_eq!(
        driver.snapshot("snap", &a).await.unwrap(),
        made,
        "a repeat answers the same snapshot"
    );
    refused(driver.snapshot("snap", &b).await, Code::AlreadyExists, "snap");
    let get = GetSnapshotRequest { snapshot_id: made.snapshot_id.clone(), ..Default::default() };
    assert_eq!(
        driver.controller().get_snapshot(get).await.unwrap().into_inner().snapshot,
        Some(made.clone())
    );
    let delete =
        DeleteSnapshotRequest { snapshot_id: made.snapshot_id.clone(), ..Default::default() };
    driver.controller().delete_snapshot(delete.clone()).await.unwrap();
    driver.controller().delete_snapshot(delete).await.unwrap();
    assert_eq!(listed(&driver, ListSnapshotsRequest::default()).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_listed_by_volume_by_id_and_in_pages() {
    let driver = Driver::start().await;
    let (a, b) = (driver.create("a").await.volume_id, driver.create("b").await.volume_id);
    let mut of_a = Vec::new();
    for n in 0..3 {
        of_a.push(driver.snapshot(&format!("a{n}"), &a).await.unwrap().snapshot_id);
    }
    let of_b = driver.snapshot("b0", &b).await.unwrap().snapshot_id;
    of_a.sort();
    let by_volume = ListSnapshotsRequest { source_volume_id: a.clone(), ..Default::default() };
    assert_eq!(listed(&driver, by_volume).await, of_a);
    let by_id = ListSnapshotsRequest { snapshot_id: of_b.clone(), ..Default::default() };
    assert_eq!(listed(&driver, by_id).await, [of_b]);
    let first = ListSnapshotsRequest { max_entries: 3, ..Default::default() };
    let page = driver.controller().list_snapshots(first).await.unwrap().into_inner();
    assert_eq!((page.entries.len(), page.next_token.is_empty()), (3, false));
    let rest = ListSnapshotsRequest {
        max_entries: 3,
        starting_token: page.next_token,
        ..Default::default()
    };
    assert_eq!(listed(&driver, rest).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_come_from_snapshots_and_volumes_and_outlive_them() {
    let driver = Driver::start().await;
    let source = driver.create("source").await.volume_id;
    let snapshot = driver.snapshot("snap", &source).await.unwrap().snapshot_id;
    let clone = driver
        .controller()
        .create_volume(from_snapshot("clone", &snapshot))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    assert_eq!((clone.capacity_bytes, clone.content_source.is_some()), (GIB, true));
    let repeat = driver
        .controller()
        .create_volume(from_snapshot("clone", &snapshot))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    assert_eq!(repeat, clone);
    let copy = VolumeContentSource {
        r#type: Some(Type::Volume(VolumeSource { volume_id: source.clone() })),
    };
    let copy = CreateVolumeRequest { volume_content_source: Some(copy), ..new_volume("copy") };
    let copy = driver.controller().create_volume(copy).await.unwrap().into_inner().volume.unwrap();
    let larger = CapacityRange { required_bytes: 2 * GIB, limit_bytes: 0 };
    let larger =
        CreateVolumeRequest { capacity_range: Some(larger), ..from_snapshot("larger", &snapshot) };
    let larger =
        driver.controller().create_volume(larger).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(larger.capacity_bytes, 2 * GIB);
    refused(
        driver.controller().create_volume(new_volume("clone")).await,
        Code::AlreadyExists,
        "clone",
    );
    // Any order: the source first.
    driver.delete(&source).await;
    let delete = DeleteSnapshotRequest { snapshot_id: snapshot, ..Default::default() };
    driver.controller().delete_snapshot(delete).await.unwrap();
    for id in [&clone.volume_id, &copy.volume_id] {
        let at = driver.path("staging");
        driver.stage(id, &at).await.unwrap();
        driver.unstage(id, &at).await.unwrap();
        driver.delete(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_mounted_volume_writes_its_pages_out_first() {
    let driver = Driver::start().await;
    let (id, at) = (driver.create("v").await.volume_id, driver.path("staging"));
    driver.stage(&id, &at).await.unwrap();
    assert!(!driver.mounter.asked().iter().any(|call| call.starts_with("sync")));
    driver.snapshot("s", &id).await.unwrap();
    assert!(driver.mounter.asked().contains(&format!("sync {}", at.display())));
    driver.unstage(&id, &at).await.unwrap();
}

/// ReadOnlyMany from a snapshot: the snapshot itself, without an owner, through a restart of the
/// driver.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_nobody_writes_to_is_a_volume_by_itself() {
    let driver = Driver::start().await;
    let source = driver.create("source").await.volume_id;
    let snapshot = driver.snapshot("snap", &source).await.unwrap().snapshot_id;
    let many = Mode::MultiNodeReaderOnly;
    let wanted = CreateVolumeRequest {
        volume_capabilities: vec![capability(many)],
        ..from_snapshot("many", &snapshot)
    };
    let made = driver
        .controller()
        .create_volume(wanted.clone())
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    assert_eq!(
        driver.controller().create_volume(wanted).await.unwrap().into_inner().volume.unwrap(),
        made
    );
    let id = made.volume_id;
    let clone = driver.controller().create_volume(from_snapshot("many", &snapshot)).await;
    refused(clone, Code::AlreadyExists, "read only");
    for (mode, confirmed) in [(many, true), (Mode::MultiNodeMultiWriter, false)] {
        let ask = ValidateVolumeCapabilitiesRequest {
            volume_id: id.clone(),
            volume_capabilities: vec![capability(mode)],
            ..Default::default()
        };
        let answer =
            driver.controller().validate_volume_capabilities(ask).await.unwrap().into_inner();
        assert_eq!(answer.confirmed.is_some(), confirmed, "{}", answer.message);
    }
    let at = driver.path("staging");
    refused(driver.stage(&id, &at).await, Code::FailedPrecondition, "read-only access mode");
    let reader =
        NodeStageVolumeRequest { volume_capability: Some(capability(many)), ..stage(&id, &at) };
    driver.node().node_stage_volume(reader.clone()).await.unwrap();
    driver.node().node_stage_volume(reader).await.unwrap();
    driver.delete(&source).await;
    driver
        .controller()
        .delete_snapshot(DeleteSnapshotRequest { snapshot_id: snapshot, ..Default::default() })
        .await
        .unwrap();

    let (dir, mounter) = driver.stop().await;
    let driver = Driver::run(dir, mounter).await;
    let stats = NodeGetVolumeStatsRequest {
        volume_id: id.clone(),
        volume_path: text(&at),
        ..Default::default()
    };
    let stats = driver.node().node_get_volume_stats(stats).await.unwrap().into_inner();
    assert!(stats.usage.iter().all(|usage| usage.available == 0), "{stats:?}");
    driver.unstage(&id, &at).await.unwrap();
    driver.delete(&id).await;
}
