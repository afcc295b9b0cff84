//! The life of volumes, and what each call says when it is repeated.

use crate::support::driver::*;
use std::collections::{BTreeSet, HashMap};
use tonic::Code;
use zerofs_csi::chunk::Codec;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::types::{IoLimits, SyncMode};

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_says_what_it_is() {
    let driver = Driver::start().await;
    let info =
        driver.identity().get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.name.as_str(), info.vendor_version.is_empty()), ("zerofs.csi.dev", false));
    assert_eq!(
        driver.identity().probe(ProbeRequest {}).await.unwrap().into_inner().ready,
        Some(true)
    );
    let capabilities =
        driver.identity().get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(capabilities.into_inner().capabilities.len(), 3);
    let node = driver.node().node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert!(
        !node.node_id.is_empty()
            && node.max_volumes_per_node > 0
            && node.accessible_topology.is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_created_once_and_deleted_once() {
    let driver = Driver::start().await;
    let first = driver.create("pvc-1").await;
    assert_eq!((first.capacity_bytes, first.accessible_topology.len()), (GIB, 0));
    assert_eq!(driver.create("pvc-1").await, first, "a repeat answers the same volume");
    assert_ne!(driver.create("pvc-2").await.volume_id, first.volume_id);
    let larger = CapacityRange { required_bytes: 2 * GIB, limit_bytes: 0 };
    let differs = CreateVolumeRequest { capacity_range: Some(larger), ..new_volume("pvc-1") };
    refused(driver.controller().create_volume(differs).await, Code::AlreadyExists, "pvc-1");
    driver.delete(&first.volume_id).await;
    driver.delete(&first.volume_id).await;
    let next = driver.create_once_free("pvc-1").await;
    assert_ne!(next.volume_id, first.volume_id, "another life has another id (R2)");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_size_there_is_a_default() {
    let driver = Driver::start().await;
    let request = CreateVolumeRequest { capacity_range: None, ..new_volume("plain") };
    let volume =
        driver.controller().create_volume(request).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(volume.capacity_bytes, 10 * GIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_1_and_128_bytes_are_volumes() {
    let driver = Driver::start().await;
    for name in
        ["a".to_owned(), "x".repeat(128), "é".repeat(64), "with space and: punctuation".to_owned()]
    {
        let volume = driver.create(&name).await;
        assert!(volume.volume_id.len() <= 128, "{}", volume.volume_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_grows_and_never_shrinks() {
    let driver = Driver::start().await;
    let volume = driver.create("grows").await;
    let expand = |bytes: i64| {
        let mut controller = driver.controller();
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            ..Default::default()
        };
        async move { controller.controller_expand_volume(request).await }
    };
    let grown = expand(3 * GIB).await.unwrap().into_inner();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (3 * GIB, true));
    assert_eq!(expand(2 * GIB).await.unwrap().into_inner().capacity_bytes, 3 * GIB);
    let get = ControllerGetVolumeRequest { volume_id: volume.volume_id.clone() };
    let got = driver.controller().controller_get_volume(get).await.unwrap().into_inner();
    assert_eq!(got.volume.unwrap().capacity_bytes, 3 * GIB);
}

/// As a VolumeAttributesClass does: at creation, later, and back again.
#[tokio::test(flavor = "multi_thread")]
async fn a_class_of_attributes_is_given_and_changed() {
    let driver = Driver::start().await;
    let class = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>()
    };
    let fast = class(&[("sync", "disabled"), ("compression", "none"), ("maxIops", "900")]);
    let request = CreateVolumeRequest { mutable_parameters: fast.clone(), ..new_volume("changes") };
    let create = || {
        let (mut controller, request) = (driver.controller(), request.clone());
        async move { controller.create_volume(request).await }
    };
    let volume = create().await.unwrap().into_inner().volume.unwrap();
    let id = volume.volume_id.clone();
    let modify = |id: &str, mutable_parameters: HashMap<String, String>| {
        let mut controller = driver.controller();
        let volume_id = id.to_owned();
        let request =
            ControllerModifyVolumeRequest { volume_id, mutable_parameters, ..Default::default() };
        async move { controller.controller_modify_volume(request).await }
    };
    let safe = class(&[
        ("sync", "always"),
        ("inodeQuota", "500"),
        ("maxReadBandwidth", "20Mi"),
        ("maxIops", "10"),
    ]);
    for again in [&safe, &safe, &fast] {
        modify(&id, again.clone()).await.unwrap();
    }
    assert_eq!(create().await.unwrap().into_inner().volume.unwrap(), volume, "a late retry");
    let catalog = catalog(&driver.dir).await;
    let record = catalog.dataset(&"changes".parse().unwrap()).await.unwrap().unwrap().record;
    let properties = record.properties;
    assert_eq!((properties.sync, properties.codec), (Some(SyncMode::Disabled), Codec::None));
    assert_eq!(properties.quota_inodes, Some(500), "a class changes what it names");
    let limits = IoLimits {
        max_read_bandwidth: Some(20 << 20),
        max_write_bandwidth: None,
        max_iops: Some(900),
    };
    assert_eq!(properties.limits, limits);

    let refusals = [
        ("", &safe, Code::InvalidArgument, "volume_id"),
        ("none-of-ours", &safe, Code::NotFound, "no such volume"),
        (&*id, &class(&[("uid", "5")]), Code::InvalidArgument, "chosen once"),
        (&*id, &class(&[("maxIops", "1")]), Code::InvalidArgument, "maxIops 1"),
        (&*id, &class(&[("maxReadBandwidth", "5")]), Code::InvalidArgument, "use 1Mi to 1Ti"),
        (&*id, &class(&[("recordsize", "5k")]), Code::InvalidArgument, "power of two"),
    ];
    for (id, parameters, code, why) in refusals {
        refused(modify(id, parameters.clone()).await, code, why);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_whatever_happens_between_them() {
    let driver = Driver::start().await;
    let mut ids = BTreeSet::new();
    for n in 0..5 {
        ids.insert(driver.create(&format!("v{n}")).await.volume_id);
    }
    let page = |token: String| {
        let mut controller = driver.controller();
        async move {
            let request = ListVolumesRequest { max_entries: 2, starting_token: token };
            let page = controller.list_volumes(request).await.unwrap().into_inner();
            (
                page.entries.into_iter().map(|e| e.volume.unwrap().volume_id).collect::<Vec<_>>(),
                page.next_token,
            )
        }
    };
    let (first, token) = page(String::new()).await;
    assert_eq!((first.len(), token.is_empty()), (2, false));
    driver.delete(&first[1]).await;
    let (second, token) = page(token).await;
    let (third, end) = page(token).await;
    assert_eq!(end, "");
    let seen: BTreeSet<_> = first.into_iter().chain(second).chain(third).collect();
    assert_eq!(seen, ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_are_confirmed_or_the_reason_is_told() {
    let driver = Driver::start().await;
    let volume = driver.create("v").await;
    let validate = |modes: &[Mode]| ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_capabilities: modes.iter().map(|mode| capability(*mode)).collect(),
        ..Default::default()
    };
    let yes = driver
        .controller()
        .validate_volume_capabilities(validate(&[Mode::SingleNodeMultiWriter]))
        .await
        .unwrap();
    assert_eq!(yes.into_inner().confirmed.unwrap().volume_capabilities.len(), 1);
    let no = driver
        .controller()
        .validate_volume_capabilities(validate(&[Mode::MultiNodeMultiWriter]))
        .await
        .unwrap()
        .into_inner();
    assert!(no.confirmed.is_none() && no.message.contains("one node"), "{}", no.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_pool_tells_its_free_space() {
    let driver = Driver::start().await;
    let capacity =
        driver.controller().get_capacity(GetCapacityRequest::default()).await.unwrap().into_inner();
    assert!(
        capacity.available_capacity > 0 && capacity.available_capacity < 1 << 50,
        "{capacity:?}"
    );
    assert_eq!(
        (capacity.minimum_volume_size, capacity.maximum_volume_size),
        (Some(1 << 20), Some(1 << 50))
    );
    let block = VolumeCapability {
        access_type: Some(volume_capability::AccessType::Block(volume_capability::BlockVolume {})),
        ..capability(Mode::SingleNodeWriter)
    };
    let request = GetCapacityRequest { volume_capabilities: vec![block], ..Default::default() };
    assert_eq!(
        driver.controller().get_capacity(request).await.unwrap().into_inner().available_capacity,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_twice_at_once_makes_one_volume() {
    let driver = Driver::start().await;
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let mut controller = driver.controller();
            tokio::spawn(async move { controller.create_volume(new_volume("busy")).await })
        })
        .collect();
    let mut ids = BTreeSet::new();
    for call in calls {
        match call.await.unwrap() {
            Ok(made) => drop(ids.insert(made.into_inner().volume.unwrap().volume_id)),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
    }
    assert_eq!(ids.len(), 1);
}
