//! A PersistentVolume's mount options on every mount of it, and the places where kubelet's folder
//! may be.

use crate::support::driver::*;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tonic::Code;
use zerofs_csi::csi::proto::v1::volume_capability::AccessType;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::{FakeMounter, MountPoint, Mounter};

/// Like kubelet: the same options with each call.
fn with_flags(flags: &[&str]) -> Option<VolumeCapability> {
    let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let mount = volume_capability::MountVolume { mount_flags, ..Default::default() };
    Some(VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        ..capability(Mode::SingleNodeWriter)
    })
}

async fn stage_with(driver: &Driver, id: &str, staging: &Path, flags: &[&str]) {
    let request =
        NodeStageVolumeRequest { volume_capability: with_flags(flags), ..stage(id, staging) };
    driver.node().node_stage_volume(request).await.unwrap();
}

fn publish_with(
    id: &str,
    staging: &Path,
    target: &Path,
    flags: &[&str],
) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_capability: with_flags(flags),
        ..publish(id, staging, target)
    }
}

async fn mount_at(driver: &Driver, target: &Path) -> MountPoint {
    let mounts = driver.mounter.list().await.unwrap();
    mounts.into_iter().find(|mount| mount.target == target).expect("mounted")
}

/// Kubelet mounts a volume with the context of its pod (`seLinuxMount`).
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_has_the_context_of_its_pod() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mounter = FakeMounter::with({
        let asked = asked.clone();
        move |mount, _| {
            asked.lock().unwrap().push(mount.options);
            Box::pin(async { Ok(()) })
        }
    });
    let driver = Driver::with(mounter).await;
    let (id, staging) = (driver.create("v").await.volume_id, driver.path("staging"));
    let (one, other) = ([labelled("c1,c2")], [labelled("c3,c4")]);
    let (one, other) = ([&*one[0]], [&*other[0]]);
    stage_with(&driver, &id, &staging, &one).await;
    assert_eq!(asked.lock().unwrap().as_slice(), [[one[0].to_owned()]]);
    let target = driver.path("target");
    let publish = |flags: &[&str]| {
        let request = publish_with(&id, &staging, &target, flags);
        let mut node = driver.node();
        async move { node.node_publish_volume(request).await }
    };
    refused(publish(&other).await, Code::FailedPrecondition, "the same context");
    for _ in 0..2 {
        publish(&one).await.unwrap();
    }
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    // The next pod on this node has another one.
    stage_with(&driver, &id, &staging, &other).await;
    publish(&other).await.unwrap();
    assert_eq!(asked.lock().unwrap().last(), Some(&vec![other[0].to_owned()]));
}

fn labelled(categories: &str) -> String {
    format!("context=\"system_u:object_r:container_file_t:s0:{categories}\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_options_of_a_volume_hold_on_every_mount_of_it() {
    let driver = Driver::start().await;
    let (id, staging) = (driver.create("v").await.volume_id, driver.path("staging"));
    let flags = ["noexec", "noatime"];
    stage_with(&driver, &id, &staging, &flags).await;
    let (first, second) = (driver.path("first"), driver.path("second"));
    driver.node().node_publish_volume(publish_with(&id, &staging, &first, &flags)).await.unwrap();
    let reader =
        NodePublishVolumeRequest { readonly: true, ..publish_with(&id, &staging, &second, &flags) };
    driver.node().node_publish_volume(reader).await.unwrap();
    for (target, read_only) in [(&staging, false), (&first, false), (&second, true)] {
        let mount = mount_at(&driver, target).await;
        assert_eq!(
            (mount.read_only, mount.flags.join(",")),
            (read_only, "nosuid,nodev,noexec,noatime".into()),
            "{target:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_read_only_by_option_is_published_again_and_again() {
    let driver = Driver::start().await;
    let (id, staging, target) =
        (driver.create("v").await.volume_id, driver.path("staging"), driver.path("target"));
    for _ in 0..2 {
        stage_with(&driver, &id, &staging, &["ro"]).await;
    }
    for _ in 0..2 {
        driver
            .node()
            .node_publish_volume(publish_with(&id, &staging, &target, &["ro"]))
            .await
            .unwrap();
    }
    assert!(mount_at(&driver, &target).await.read_only);
    // Options of one pod on a volume that is staged for writing.
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    stage_with(&driver, &id, &staging, &[]).await;
    for _ in 0..2 {
        driver
            .node()
            .node_publish_volume(publish_with(&id, &staging, &target, &["ro"]))
            .await
            .unwrap();
    }
    assert!(
        mount_at(&driver, &target).await.read_only && !mount_at(&driver, &staging).await.read_only
    );
    refused(driver.publish(&id, &staging, &target).await, Code::AlreadyExists, "read-only");
}

/// Somebody wrote into a pod's target while nothing was mounted there.
#[tokio::test(flavor = "multi_thread")]
async fn files_left_in_a_target_do_not_keep_a_pod_from_ending() {
    let driver = Driver::start().await;
    let (id, staging) = (driver.create("v").await.volume_id, driver.path("staging"));
    driver.stage(&id, &staging).await.unwrap();
    let target = driver.path("kubelet/pods/0e4f/volumes/kubernetes.io~csi/pvc-1/mount");
    driver.publish(&id, &staging, &target).await.unwrap();
    std::fs::write(target.join("stray"), "somebody's").unwrap();
    for _ in 0..2 {
        driver.unpublish(&id, &target).await.unwrap();
    }
    assert!(!target.exists());
    let kept = driver.path("kubelet/plugins/zerofs.csi.dev/strays/0e4f/pvc-1/stray");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "somebody's");
    // Not in kubelet's folder: nobody but its owner knows what it is.
    let elsewhere = driver.path("elsewhere");
    driver.publish(&id, &staging, &elsewhere).await.unwrap();
    std::fs::write(elsewhere.join("stray"), "somebody's").unwrap();
    for _ in 0..2 {
        refused(
            driver.unpublish(&id, &elsewhere).await,
            Code::FailedPrecondition,
            "move them away",
        );
    }
    assert!(
        !driver.mounter.list().await.unwrap().iter().any(|mount| mount.target == elsewhere),
        "it is no longer mounted"
    );
    std::fs::remove_file(elsewhere.join("stray")).unwrap();
    driver.unpublish(&id, &elsewhere).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
}

/// mountinfo shows where a link leads, kubelet names the link.
#[tokio::test(flavor = "multi_thread")]
async fn kubelets_folder_may_be_a_link() {
    let driver = Driver::start().await;
    std::fs::create_dir_all(driver.path("disk/kubelet")).unwrap();
    symlink("disk/kubelet", driver.path("kubelet")).unwrap();
    let id = driver.create("v").await.volume_id;
    let (staging, target) =
        (driver.path("kubelet/plugins/v/globalmount"), driver.path("kubelet/pods/1/mount"));
    for _ in 0..2 {
        driver.stage(&id, &staging).await.unwrap();
    }
    for _ in 0..2 {
        driver.publish(&id, &staging, &target).await.unwrap();
    }
    let (dir, mounter) = driver.stop().await;
    let driver = Driver::run(dir, mounter).await;
    for path in [&staging, &target] {
        let stats = NodeGetVolumeStatsRequest {
            volume_id: id.clone(),
            volume_path: text(path),
            ..Default::default()
        };
        driver.node().node_get_volume_stats(stats).await.unwrap();
    }
    refused(driver.unstage(&id, &staging).await, Code::FailedPrecondition, "still published");
    for _ in 0..2 {
        driver.unpublish(&id, &target).await.unwrap();
    }
    assert!(!target.exists());
    for _ in 0..2 {
        driver.unstage(&id, &staging).await.unwrap();
    }
    assert_eq!(driver.mounter.list().await.unwrap(), []);
    driver.delete(&id).await;
}
