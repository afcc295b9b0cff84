//! The state that a restart of the driver finds, and its recovery (R24).

use crate::support::driver::*;
use std::time::Duration;
use tonic::Code;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::Mounter;

fn stats(id: &str, at: &std::path::Path) -> NodeGetVolumeStatsRequest {
    NodeGetVolumeStatsRequest { volume_id: id.into(), volume_path: text(at), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_volume_is_served_again_without_a_new_mount() {
    let driver = Driver::start().await;
    let (id, staging, target) =
        (driver.create("v").await.volume_id, driver.path("staging"), driver.path("target"));
    driver.stage(&id, &staging).await.unwrap();
    driver.publish(&id, &staging, &target).await.unwrap();
    let asked = driver.mounter.asked().iter().filter(|call| call.starts_with("mount")).count();
    let mut driver = driver;
    // Again: what the first restart reopened must not be taken for what it may close.
    for _ in 0..2 {
        let (dir, mounter) = driver.stop().await;
        driver = Driver::run(dir, mounter).await;
        driver.node().node_get_volume_stats(stats(&id, &target)).await.unwrap();
    }
    driver.stage(&id, &staging).await.unwrap();
    driver.publish(&id, &staging, &target).await.unwrap();
    assert_eq!(
        driver.mounter.asked().iter().filter(|call| call.starts_with("mount")).count(),
        asked
    );
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_mounted_any_more_is_closed_and_released() {
    let driver = Driver::start().await;
    let (id, staging) = (driver.create("v").await.volume_id, driver.path("staging"));
    driver.stage(&id, &staging).await.unwrap();
    let (dir, mounter) = driver.stop().await;
    mounter.reboot();
    let driver = Driver::run(dir, mounter).await;
    let owners = async || {
        let get = ControllerGetVolumeRequest { volume_id: id.clone() };
        driver
            .controller()
            .controller_get_volume(get)
            .await
            .unwrap()
            .into_inner()
            .status
            .unwrap()
            .published_node_ids
            .len()
    };
    for _ in 0..200 {
        if owners().await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(owners().await, 0);
    refused(
        driver.node().node_get_volume_stats(stats(&id, &staging)).await,
        Code::NotFound,
        "staging",
    );
    driver.stage(&id, &staging).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_record_keeps_nobody_waiting() {
    let driver = Driver::start().await;
    let (good, bad) = (driver.create("good").await.volume_id, driver.create("bad").await.volume_id);
    let (at, lost) = (driver.path("good"), driver.path("bad"));
    driver.stage(&good, &at).await.unwrap();
    driver.stage(&bad, &lost).await.unwrap();
    let (dir, mounter) = driver.stop().await;
    // The record of one names a session that the pool does not know; another file is no record at
    // all.
    for entry in std::fs::read_dir(dir.path().join("state/staged")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        if text.contains(&bad) {
            let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
            record["sessions"] = serde_json::json!(["aaaaaaaaaaaaaaaaaaaaaaaaaa"]);
            std::fs::write(&path, record.to_string()).unwrap();
        }
    }
    std::fs::write(dir.path().join("state/staged/torn.json"), "{\"format\":1,").unwrap();
    let driver = Driver::run(dir, mounter).await;
    driver.node().node_get_volume_stats(stats(&good, &at)).await.unwrap();
    // R24, R25: no longer ours, so its mount answers ESTALE until it is unstaged.
    refused(driver.stage(&bad, &lost).await, Code::FailedPrecondition, "lost");
    refused(
        driver.node().node_get_volume_stats(stats(&bad, &lost)).await,
        Code::FailedPrecondition,
        "lost",
    );
    assert_eq!(driver.health(&good).await.unwrap(), []);
    let lost_here = (VolumeHealthErrorType::Inaccessible, "OwnershipLost".to_owned());
    assert_eq!(driver.health(&bad).await.unwrap(), [lost_here]);
    driver.unstage(&bad, &lost).await.unwrap();
    driver.unstage(&good, &at).await.unwrap();
    assert_eq!(driver.mounter.list().await.unwrap(), []);
    refused(driver.health(&good).await, Code::NotFound, "on this node");
}
