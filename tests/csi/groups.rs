//! Snapshots of several volumes at one point in time.

use crate::support::driver::*;
use tonic::Code;
use zerofs_csi::csi::proto::v1::*;

fn of(name: &str, volumes: &[&str]) -> CreateVolumeGroupSnapshotRequest {
    CreateVolumeGroupSnapshotRequest {
        name: name.into(),
        source_volume_ids: volumes.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    }
}

async fn create(
    driver: &Driver,
    request: CreateVolumeGroupSnapshotRequest,
) -> Result<VolumeGroupSnapshot, tonic::Status> {
    let made = driver.groups().create_volume_group_snapshot(request).await?;
    Ok(made.into_inner().group_snapshot.unwrap())
}

async fn listed(driver: &Driver) -> Vec<Snapshot> {
    let request = ListSnapshotsRequest::default();
    let page = driver.controller().list_snapshots(request).await.unwrap().into_inner();
    page.entries.into_iter().map(|entry| entry.snapshot.unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_snapshot_is_made_got_and_deleted_as_the_specification_says() {
    let driver = Driver::start().await;
    let (a, b) = (driver.create("a").await.volume_id, driver.create("b").await.volume_id);
    let staging = driver.path("staging-a");
    driver.stage(&a, &staging).await.unwrap();
    let capabilities = driver
        .groups()
        .group_controller_get_capabilities(GroupControllerGetCapabilitiesRequest {})
        .await
        .unwrap();
    assert_eq!(capabilities.into_inner().capabilities.len(), 1);

    let mut request = of("group", &[&a, &b]);
    // As the sidecar adds them.
    let extra = "csi.storage.k8s.io/volumegroupsnapshot/name".to_owned();
    request.parameters.insert(extra, "daily".into());
    let made = create(&driver, request.clone()).await.unwrap();
    assert!(made.ready_to_use && made.creation_time.is_some());
    assert_eq!(made.snapshots.len(), 2);
    for snapshot in &made.snapshots {
        assert!(snapshot.ready_to_use);
        assert_eq!(snapshot.group_snapshot_id, made.group_snapshot_id);
        assert_eq!(snapshot.creation_time, made.creation_time);
    }
    assert_eq!(create(&driver, request).await.unwrap(), made, "a retry answers the same");
    let mut all = listed(&driver).await;
    all.sort_by_key(|snapshot| snapshot.snapshot_id.clone());
    let mut members = made.snapshots.clone();
    members.sort_by_key(|snapshot| snapshot.snapshot_id.clone());
    assert_eq!(all, members);

    let ids: Vec<String> = made.snapshots.iter().map(|s| s.snapshot_id.clone()).collect();
    let get = GetVolumeGroupSnapshotRequest {
        group_snapshot_id: made.group_snapshot_id.clone(),
        snapshot_ids: ids.clone(),
        ..Default::default()
    };
    let got = driver.groups().get_volume_group_snapshot(get.clone()).await.unwrap().into_inner();
    assert_eq!(got.group_snapshot, Some(made.clone()));
    let single = DeleteSnapshotRequest { snapshot_id: ids[0].clone(), ..Default::default() };
    refused(driver.controller().delete_snapshot(single).await, Code::FailedPrecondition, "group");

    let delete = DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: made.group_snapshot_id.clone(),
        snapshot_ids: ids.clone(),
        ..Default::default()
    };
    let fewer =
        DeleteVolumeGroupSnapshotRequest { snapshot_ids: ids[1..].to_vec(), ..delete.clone() };
    let mismatch = driver.groups().delete_volume_group_snapshot(fewer).await;
    refused(mismatch, Code::InvalidArgument, "snapshots named");
    for _ in 0..2 {
        driver.groups().delete_volume_group_snapshot(delete.clone()).await.unwrap();
    }
    refused(driver.groups().get_volume_group_snapshot(get).await, Code::NotFound, "not exist");
    assert!(listed(&driver).await.is_empty());
    driver.unstage(&a, &staging).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_of_groups_say_what_is_wrong() {
    let driver = Driver::start().await;
    let (a, b) = (driver.create("a").await.volume_id, driver.create("b").await.volume_id);
    create(&driver, of("group", &[&a])).await.unwrap();
    let unknown = a.replace(a.split('-').next_back().unwrap(), &"a".repeat(26));
    for (request, code, text) in [
        (of("", &[&a]), Code::InvalidArgument, "name"),
        (of("x", &[]), Code::InvalidArgument, "source_volume_ids"),
        (of("x", &[&a, ""]), Code::InvalidArgument, "volume_id"),
        (of("x", &[&a, "foreign"]), Code::NotFound, "foreign"),
        (of("x", &[&a, &unknown]), Code::NotFound, "does not exist"),
        (of("x", &[&a, &a]), Code::InvalidArgument, "twice"),
        (of("group", &[&a, &b]), Code::AlreadyExists, "other volumes"),
    ] {
        refused(create(&driver, request).await, code, text);
    }
    let unknown = CreateVolumeGroupSnapshotRequest {
        parameters: [("color".to_owned(), "blue".to_owned())].into(),
        ..of("x", &[&a])
    };
    refused(create(&driver, unknown).await, Code::InvalidArgument, "color");
    let get = |id: &str| GetVolumeGroupSnapshotRequest {
        group_snapshot_id: id.to_owned(),
        ..Default::default()
    };
    let got = driver.groups().get_volume_group_snapshot(get("")).await;
    refused(got, Code::InvalidArgument, "group_snapshot_id");
    refused(driver.groups().get_volume_group_snapshot(get("x")).await, Code::NotFound, "x");
    let delete = |id: &str| DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: id.to_owned(),
        ..Default::default()
    };
    let deleted = driver.groups().delete_volume_group_snapshot(delete("")).await;
    refused(deleted, Code::InvalidArgument, "group_snapshot_id");
    driver.groups().delete_volume_group_snapshot(delete("foreign")).await.unwrap();
}
