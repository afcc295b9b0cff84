//! Stage, publish and back, as kubelet does it, and as it must not.

use crate::support::driver::*;
use std::sync::Arc;
use tonic::Code;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::volume_usage::Unit;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::{FakeMounter, MountError, MountPoint, Mounter};

async fn mounts(driver: &Driver) -> Vec<MountPoint> {
    driver.mounter.list().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_staged_published_and_taken_back() {
    let driver = Driver::start().await;
    let id = driver.create("v").await.volume_id;
    let (staging, target) = (driver.path("staging"), driver.path("pods/1/volume"));
    for _ in 0..2 {
        driver.stage(&id, &staging).await.unwrap();
    }
    for _ in 0..2 {
        driver.publish(&id, &staging, &target).await.unwrap();
    }
    let there = mounts(&driver).await;
    assert_eq!(
        there.iter().map(|m| (m.target.clone(), m.read_only)).collect::<Vec<_>>(),
        [(staging.clone(), false), (target.clone(), false)]
    );
    refused(driver.unstage(&id, &staging).await, Code::FailedPrecondition, "still published");
    for _ in 0..2 {
        driver.unpublish(&id, &target).await.unwrap();
        assert!(!target.exists(), "the target folder is removed");
    }
    for _ in 0..2 {
        driver.unstage(&id, &staging).await.unwrap();
    }
    assert_eq!(mounts(&driver).await, []);
    assert_eq!(
        std::fs::read_dir(driver.path("state/staged")).unwrap().count(),
        0,
        "no record is left"
    );
    let get = ControllerGetVolumeRequest { volume_id: id };
    let got = driver.controller().controller_get_volume(get).await.unwrap().into_inner();
    assert!(got.status.unwrap().published_node_ids.is_empty(), "it is released");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_comes_from_memory_and_only_where_the_volume_is() {
    let driver = Driver::start().await;
    let id = driver.create("v").await.volume_id;
    let (staging, target) = (driver.path("staging"), driver.path("target"));
    driver.stage(&id, &staging).await.unwrap();
    driver.publish(&id, &staging, &target).await.unwrap();
    let stats = |path: &std::path::Path| {
        let mut node = driver.node();
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.clone(),
            volume_path: text(path),
            ..Default::default()
        };
        async move { node.node_get_volume_stats(request).await }
    };
    for path in [&staging, &target] {
        let usage = stats(path).await.unwrap().into_inner().usage;
        assert_eq!(
            usage.iter().map(|u| u.unit).collect::<Vec<_>>(),
            [i32::from(Unit::Bytes), i32::from(Unit::Inodes)]
        );
        assert_eq!(usage[0].total, GIB);
        assert!(usage[1].total > 0 && usage[1].available > 0);
    }
    refused(stats(&driver.path("elsewhere")).await, Code::NotFound, "elsewhere");
    driver.unpublish(&id, &target).await.unwrap();
    refused(stats(&target).await, Code::NotFound, "target");
    driver.unstage(&id, &staging).await.unwrap();
    refused(stats(&staging).await, Code::NotFound, "staging");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expanded_volume_has_its_new_size_at_once() {
    let driver = Driver::start().await;
    let (id, staging) = (driver.create("v").await.volume_id, driver.path("staging"));
    driver.stage(&id, &staging).await.unwrap();
    let range = Some(CapacityRange { required_bytes: 4 * GIB, limit_bytes: 0 });
    let expand = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: range,
        ..Default::default()
    };
    driver.controller().controller_expand_volume(expand).await.unwrap();
    let expand = NodeExpandVolumeRequest {
        volume_id: id.clone(),
        volume_path: text(&staging),
        ..Default::default()
    };
    assert_eq!(
        driver.node().node_expand_volume(expand).await.unwrap().into_inner().capacity_bytes,
        4 * GIB
    );
    let stats = NodeGetVolumeStatsRequest {
        volume_id: id.clone(),
        volume_path: text(&staging),
        ..Default::default()
    };
    let usage = driver.node().node_get_volume_stats(stats).await.unwrap().into_inner().usage;
    assert_eq!(usage[0].total, 4 * GIB);
    driver.unstage(&id, &staging).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_is_kept_on_every_way() {
    let driver = Driver::start().await;
    let id = driver.create("v").await.volume_id;
    let (staging, ro, rw) = (driver.path("staging"), driver.path("ro"), driver.path("rw"));
    driver.stage(&id, &staging).await.unwrap();
    let read_only = NodePublishVolumeRequest { readonly: true, ..publish(&id, &staging, &ro) };
    driver.node().node_publish_volume(read_only.clone()).await.unwrap();
    driver.node().node_publish_volume(read_only).await.unwrap();
    refused(driver.publish(&id, &staging, &ro).await, Code::AlreadyExists, "read-only");
    driver.publish(&id, &staging, &rw).await.unwrap();
    let seen: Vec<bool> = mounts(&driver).await.iter().map(|mount| mount.read_only).collect();
    assert_eq!(seen, [false, true, false]);
    for target in [&ro, &rw] {
        driver.unpublish(&id, target).await.unwrap();
    }
    driver.unstage(&id, &staging).await.unwrap();
    let reader = NodeStageVolumeRequest {
        volume_capability: Some(capability(Mode::MultiNodeReaderOnly)),
        ..stage(&id, &staging)
    };
    driver.node().node_stage_volume(reader).await.unwrap();
    driver.publish(&id, &staging, &rw).await.unwrap();
    assert!(mounts(&driver).await.iter().all(|mount| mount.read_only));
    refused(driver.stage(&id, &staging).await, Code::AlreadyExists, "other access");
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_are_taken_are_refused_and_left_alone() {
    let driver = Driver::start().await;
    let id = driver.create("v").await.volume_id;
    let (staging, busy, file) = (driver.path("staging"), driver.path("busy"), driver.path("file"));
    std::fs::create_dir(&busy).unwrap();
    std::fs::write(&file, "mine").unwrap();
    let (target, device, kind) = (busy.clone(), "/dev/sdz".into(), "ext4".into());
    let foreign = MountPoint { target, device, kind, read_only: false, flags: vec![] };
    driver.mounter.add(foreign.clone());
    refused(driver.stage(&id, &busy).await, Code::FailedPrecondition, "/dev/sdz");
    refused(driver.stage(&id, &file).await, Code::FailedPrecondition, "not a directory");
    refused(driver.publish(&id, &staging, &busy).await, Code::FailedPrecondition, "not staged");
    driver.stage(&id, &staging).await.unwrap();
    refused(driver.publish(&id, &staging, &busy).await, Code::FailedPrecondition, "/dev/sdz");
    refused(
        driver.publish(&id, &staging, &file).await,
        Code::FailedPrecondition,
        "not a directory",
    );
    refused(driver.unpublish(&id, &busy).await, Code::FailedPrecondition, "/dev/sdz");
    refused(
        driver.stage(&id, &driver.path("other")).await,
        Code::FailedPrecondition,
        "unstage it there first",
    );
    driver.unstage(&id, &staging).await.unwrap();
    assert_eq!(mounts(&driver).await, [foreign]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_for_one_pod_has_one_target() {
    let driver = Driver::start().await;
    let (id, staging) = (driver.create("v").await.volume_id, driver.path("staging"));
    driver.stage(&id, &staging).await.unwrap();
    let alone = |name: &str| NodePublishVolumeRequest {
        volume_capability: Some(capability(Mode::SingleNodeSingleWriter)),
        ..publish(&id, &staging, &driver.path(name))
    };
    driver.node().node_publish_volume(alone("one")).await.unwrap();
    driver.node().node_publish_volume(alone("one")).await.unwrap();
    refused(
        driver.node().node_publish_volume(alone("two")).await,
        Code::FailedPrecondition,
        "one pod",
    );
    driver.unpublish(&id, &driver.path("one")).await.unwrap();
    driver.node().node_publish_volume(alone("two")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_fails_leaves_nothing_and_its_repeat_succeeds() {
    let driver = Driver::start().await;
    let (id, staging) = (driver.create("v").await.volume_id, driver.path("staging"));
    let why = "Protocol not supported".to_owned();
    driver
        .mounter
        .fail_next("mount", MountError::Kernel { path: staging.clone(), doing: "mounting", why });
    refused(driver.stage(&id, &staging).await, Code::Internal, "Protocol not supported");
    assert_eq!(std::fs::read_dir(driver.path("state/staged")).unwrap().count(), 0);
    driver.delete(&driver.create("other").await.volume_id).await;
    driver.stage(&id, &staging).await.unwrap();
    let late =
        MountError::Timeout { path: staging.clone(), doing: "writing out dirty pages", secs: 30 };
    driver.mounter.fail_next("sync", late);
    refused(driver.unstage(&id, &staging).await, Code::Unavailable, "dirty pages");
    assert_eq!(mounts(&driver).await.len(), 1, "what could not be written stays mounted");
    driver.unstage(&id, &staging).await.unwrap();
    assert_eq!(mounts(&driver).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_call_runs_another_for_the_volume_is_aborted() {
    let (go, held) = tokio::sync::watch::channel(false);
    let (began, begun) = tokio::sync::mpsc::channel(1);
    let (held, began) = (Arc::new(held), Arc::new(began));
    let mounter = FakeMounter::with(move |_, _| {
        let (mut held, began) = (held.as_ref().clone(), began.clone());
        Box::pin(async move {
            let _ = began.try_send(());
            let _ = held.wait_for(|go| *go).await;
            Ok(())
        })
    });
    let mut begun = begun;
    let driver = Driver::with(mounter).await;
    let (id, staging) = (driver.create("v").await.volume_id, driver.path("staging"));
    let mut node = driver.node();
    let first = tokio::spawn({
        let request = stage(&id, &staging);
        async move { node.node_stage_volume(request).await }
    });
    begun.recv().await.unwrap();
    refused(driver.stage(&id, &staging).await, Code::Aborted, "retry");
    refused(driver.unstage(&id, &staging).await, Code::Aborted, "retry");
    let other = driver.create("other").await.volume_id;
    refused(
        driver.publish(&other, &staging, &driver.path("t")).await,
        Code::FailedPrecondition,
        "not staged",
    );
    go.send(true).unwrap();
    first.await.unwrap().unwrap();
    driver.unstage(&id, &staging).await.unwrap();
}
