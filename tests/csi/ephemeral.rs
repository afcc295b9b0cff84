//! Inline ephemeral volumes, as kubelet asks for them: one call to publish, one to unpublish.

use crate::support::driver::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tonic::Code;
use zerofs_csi::catalog::{Dataset, State};
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::{FakeMounter, Mounter};
use zerofs_csi::types::{SyncMode, VolumeHandle};

const ALLOWED: &str = "ephemeral:\n  pools: [default]\n  maxSize: 2Gi\n";

async fn driver(settings: &str) -> Driver {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Driver::seated(dir, "", FakeMounter::new(), settings).await
}

fn id(digit: &str) -> String {
    format!("csi-{}", digit.repeat(64))
}

fn inline(id: &str, target: &Path, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
    let marks = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "pod"),
        ("csi.storage.k8s.io/pod.namespace", "default"),
    ];
    let context = marks.iter().chain(attributes);
    let volume_context: HashMap<String, String> =
        context.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: text(target),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        volume_context,
        ..Default::default()
    }
}

/// The datasets of inline volumes that are not deleted.
async fn inline_volumes(driver: &Driver) -> Vec<Dataset> {
    let datasets =
        catalog(&driver.dir).await.datasets().await.unwrap().into_iter().map(|at| at.record);
    datasets.filter(|dataset| dataset.ephemeral && dataset.state == State::Ready).collect()
}

async fn is_mounted(driver: &Driver, target: &Path) -> bool {
    driver.mounter.list().await.unwrap().iter().any(|mount| mount.target == target)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_a_volume_of_its_own_while_it_lives() {
    let driver = driver(ALLOWED).await;
    let (id, target) = (id("a"), driver.path("target"));
    let wanted = inline(&id, &target, &[("size", "1Gi"), ("maxIops", "500")]);
    for _ in 0..2 {
        driver.node().node_publish_volume(wanted.clone()).await.unwrap();
    }
    let [made] = &inline_volumes(&driver).await[..] else { panic!("one volume") };
    assert_eq!((made.name.to_string(), made.size), (format!("ephemeral-{id}"), Some(1 << 30)));
    assert_eq!(made.properties.sync, Some(SyncMode::Disabled));
    assert_eq!(made.properties.limits.max_iops, Some(500));
    assert!(is_mounted(&driver, &target).await);
    let stats = NodeGetVolumeStatsRequest {
        volume_id: id.clone(),
        volume_path: text(&target),
        ..Default::default()
    };
    let stats = driver.node().node_get_volume_stats(stats).await.unwrap().into_inner();
    assert_eq!(stats.usage[0].total, 1 << 30);
    assert_eq!(driver.health(&id).await.unwrap(), []);
    let listed = driver.controller().list_volumes(ListVolumesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().entries, [], "it is no PersistentVolume");
    for _ in 0..2 {
        driver.unpublish(&id, &target).await.unwrap();
        assert!(!is_mounted(&driver, &target).await && !target.exists());
        assert_eq!(inline_volumes(&driver).await, []);
    }
    refused(driver.health(&id).await, Code::NotFound, "not mounted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_what_the_administrator_allows() {
    let closed = driver("").await;
    let target = closed.path("target");
    let publish = |driver: &Driver, id: &str, attributes: &[(&str, &str)]| {
        let (mut node, request) = (driver.node(), inline(id, &target, attributes));
        async move { node.node_publish_volume(request).await }
    };
    refused(publish(&closed, &id("b"), &[]).await, Code::FailedPrecondition, "ephemeral.pools");
    let open = driver(ALLOWED).await;
    for (attribute, code, why) in [
        (("pool", "other"), Code::FailedPrecondition, "not allowed in pool"),
        (("size", "3Gi"), Code::OutOfRange, "2147483648"),
        (("size", "much"), Code::InvalidArgument, "size"),
        (("maxIops", "1"), Code::InvalidArgument, "maxIops"),
        (("volumeHandle", "v1:x"), Code::InvalidArgument, "unknown parameter"),
    ] {
        refused(publish(&open, &id("c"), &[attribute]).await, code, why);
    }
    refused(publish(&open, "pvc-1", &[]).await, Code::InvalidArgument, "inline volume");
    // Whoever makes a pod must not open a pool with a store of their own.
    let mut secret = inline(&id("c"), &target, &[]);
    secret.secrets.insert("endpoint".to_owned(), "http://192.0.2.1".to_owned());
    let answer = open.node().node_publish_volume(secret).await;
    refused(answer, Code::InvalidArgument, "takes no secrets");
    assert_eq!(inline_volumes(&open).await, []);
    assert!(!is_mounted(&open, &target).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_outlives_the_plugin_and_a_reboot_but_not_its_pod() {
    let first = driver(ALLOWED).await;
    let (id, target) = (id("d"), first.path("target"));
    let wanted = inline(&id, &target, &[]);
    first.node().node_publish_volume(wanted.clone()).await.unwrap();
    let made = inline_volumes(&first).await;
    let (dir, mounter) = first.stop().await;
    let second = Driver::seated(dir, "", mounter, ALLOWED).await;
    second.node().node_publish_volume(wanted.clone()).await.unwrap();
    assert!(is_mounted(&second, &target).await);
    // The mounts and the staged records are gone with a reboot, the journals are not.
    let (dir, mounter) = second.stop().await;
    mounter.reboot();
    std::fs::remove_dir_all(dir.path().join("state/staged")).unwrap();
    let third = Driver::seated(dir, "", mounter, ALLOWED).await;
    third.node().node_publish_volume(wanted).await.unwrap();
    let again = inline_volumes(&third).await;
    assert_eq!((again.len(), again[0].incarnation), (1, made[0].incarnation));
    let (dir, mounter) = third.stop().await;
    mounter.reboot();
    std::fs::remove_dir_all(dir.path().join("state/staged")).unwrap();
    let fourth = Driver::seated(dir, "", mounter, ALLOWED).await;
    fourth.unpublish(&id, &target).await.unwrap();
    assert_eq!(inline_volumes(&fourth).await, []);
}

/// Every file below a folder.
fn files(below: PathBuf) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![below], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// Overwrites all that the dataset's database consists of.
fn damage(dir: &TempDir, dataset: &Dataset) {
    for file in files(dir.path().join("pool/vol").join(dataset.incarnation.to_string())) {
        std::fs::write(file, "damaged").unwrap();
    }
}

/// The volume is not closed in order: the tombstone makes its journal void (R34).
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_volume_goes_with_its_pod() {
    for restarted in [false, true] {
        let mut driver = driver(ALLOWED).await;
        let (id, target) = (id("e"), driver.path("target"));
        driver.node().node_publish_volume(inline(&id, &target, &[])).await.unwrap();
        let made = inline_volumes(&driver).await.remove(0);
        if restarted {
            let (dir, mounter) = driver.stop().await;
            damage(&dir, &made);
            driver = Driver::seated(dir, "", mounter, ALLOWED).await;
        } else {
            damage(&driver.dir, &made);
        }
        for _ in 0..2 {
            driver.unpublish(&id, &target).await.unwrap();
            assert!(!is_mounted(&driver, &target).await && !target.exists(), "{restarted}");
            assert_eq!(inline_volumes(&driver).await, [], "{restarted}");
        }
        let mut left = files(driver.path("state"));
        left.retain(|file| file.display().to_string().contains(".journal"));
        assert_eq!(left, Vec::<PathBuf>::new(), "{restarted}");
        // A pod of that name gets another one.
        driver.node().node_publish_volume(inline(&id, &target, &[])).await.unwrap();
        assert_eq!(inline_volumes(&driver).await.len(), 1);
        driver.unpublish(&id, &target).await.unwrap();
    }
}

/// Nothing of the mount waits for the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_unmounted_while_the_store_is_away() {
    let driver = driver(ALLOWED).await;
    let (id, target) = (id("f"), driver.path("target"));
    driver.node().node_publish_volume(inline(&id, &target, &[])).await.unwrap();
    let (pool, away) = (driver.path("pool"), driver.path("away"));
    std::fs::rename(&pool, &away).unwrap();
    refused(driver.unpublish(&id, &target).await, Code::Unavailable, "is not deleted yet");
    assert!(!is_mounted(&driver, &target).await);
    std::fs::rename(&away, &pool).unwrap();
    let mut unpublished = driver.unpublish(&id, &target).await;
    for _ in 0..100 {
        match &unpublished {
            Ok(_) => break,
            Err(status) => {
                assert!(matches!(status.code(), Code::Unavailable | Code::Aborted), "{status:?}");
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        unpublished = driver.unpublish(&id, &target).await;
    }
    unpublished.unwrap();
    assert!(!target.exists());
    assert_eq!(inline_volumes(&driver).await, []);
}

/// A PersistentVolume that somebody wrote by hand.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_uses_the_volume_of_a_pod() {
    let driver = driver(ALLOWED).await;
    let (id, target) = (id("0"), driver.path("target"));
    driver.node().node_publish_volume(inline(&id, &target, &[])).await.unwrap();
    let made = inline_volumes(&driver).await[0].id();
    let pool = catalog(&driver.dir).await.pool().id;
    let handle = VolumeHandle { pool, dataset: made }.to_string();
    let says = "inline volume of a pod";
    for staging in [driver.path("staging"), target.clone()] {
        let staged = driver.stage(&handle, &staging).await;
        refused(staged, Code::FailedPrecondition, says);
    }
    let asked = ValidateVolumeCapabilitiesRequest {
        volume_id: handle.clone(),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    };
    let answer = driver.controller().validate_volume_capabilities(asked).await.unwrap();
    let answer = answer.into_inner();
    assert!(answer.confirmed.is_none() && answer.message.contains(says), "{answer:?}");
    // Nor while it is mounted nowhere, as after a crash of its node.
    let (dir, mounter) = driver.stop().await;
    mounter.reboot();
    std::fs::remove_dir_all(dir.path().join("state/staged")).unwrap();
    let other = Driver::seated(dir, "other-", FakeMounter::new(), ALLOWED).await;
    refused(other.stage(&handle, &other.path("staging")).await, Code::FailedPrecondition, says);
    assert_eq!(inline_volumes(&other).await.len(), 1);
}
