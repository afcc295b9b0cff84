//! Requests that must be refused, with which code and message.

use crate::support::driver::*;
use std::collections::HashMap;
use std::path::Path;
use tonic::Code;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use zerofs_csi::csi::proto::v1::*;

/// Well formed, of a pool that nobody has.
const FOREIGN: &str =
    "v1:aaaaaaaaaaaaaaaaaaaaaaaaaa:aaaaaaaaaaaaaaaaaaaaaaaaaa-aaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER_DRIVERS: &str = "vol-0123456789abcdef0";

fn with_parameter(name: &str, value: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        parameters: HashMap::from([(name.into(), value.into())]),
        ..new_volume("v")
    }
}

fn with_range(required_bytes: i64, limit_bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
        ..new_volume("v")
    }
}

fn from(source: Option<Type>) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: source }),
        ..new_volume("v")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_volume_refuses_nonsense() {
    let driver = Driver::start().await;
    let block = VolumeCapability {
        access_type: Some(volume_capability::AccessType::Block(volume_capability::BlockVolume {})),
        ..capability(Mode::SingleNodeWriter)
    };
    let cases = [
        (
            CreateVolumeRequest { name: String::new(), ..new_volume("") },
            Code::InvalidArgument,
            "name",
        ),
        (new_volume(&"x".repeat(129)), Code::InvalidArgument, "129 bytes"),
        (new_volume(&"x".repeat(4096)), Code::InvalidArgument, "4096 bytes"),
        (new_volume("a/b"), Code::InvalidArgument, "a/b"),
        (new_volume("a\u{7}b"), Code::InvalidArgument, "not allowed"),
        (
            CreateVolumeRequest { volume_capabilities: vec![], ..new_volume("v") },
            Code::InvalidArgument,
            "volume_capabilities",
        ),
        (
            CreateVolumeRequest { volume_capabilities: vec![block], ..new_volume("v") },
            Code::InvalidArgument,
            "block",
        ),
        (with_parameter("recordSize", "64k"), Code::InvalidArgument, "recordSize"),
        (with_parameter("recordsize", "3k"), Code::InvalidArgument, "power of two"),
        (with_parameter("uid", "4294967295"), Code::InvalidArgument, "4294967295"),
        (with_parameter("gid", "4294967295"), Code::InvalidArgument, "4294967295"),
        (with_parameter("pool", "nowhere"), Code::InvalidArgument, "nowhere"),
        (with_range(-1, 0), Code::InvalidArgument, "negative"),
        (with_range(0, i64::MIN), Code::InvalidArgument, "negative"),
        (with_range(2 * GIB, GIB), Code::InvalidArgument, "below"),
        (with_range(i64::MAX, 0), Code::OutOfRange, "at most"),
        (with_range(0, 1), Code::OutOfRange, "at least"),
        (from(None), Code::InvalidArgument, "volume_content_source"),
        (
            from(Some(Type::Snapshot(SnapshotSource { snapshot_id: "snap-1".into() }))),
            Code::NotFound,
            "snap-1",
        ),
        (
            from(Some(Type::Volume(VolumeSource { volume_id: FOREIGN.into() }))),
            Code::NotFound,
            "does not exist",
        ),
        (
            from(Some(Type::Volume(VolumeSource { volume_id: String::new() }))),
            Code::InvalidArgument,
            "volume_id",
        ),
    ];
    for (request, code, needle) in cases {
        refused(driver.controller().create_volume(request).await, code, needle);
    }
    let mutable = CreateVolumeRequest {
        mutable_parameters: HashMap::from([("a".into(), "b".into())]),
        ..new_volume("v")
    };
    refused(
        driver.controller().create_volume(mutable).await,
        Code::InvalidArgument,
        "mutable parameter \"a\" is unknown",
    );
    let all =
        driver.controller().list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.entries, [], "nothing was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_ids_are_answered_as_the_specification_says() {
    let driver = Driver::start().await;
    let mut controller = driver.controller();
    for id in [FOREIGN, OTHER_DRIVERS, &"z".repeat(5000), "v1:::", "../../etc"] {
        if id == FOREIGN {
            // Well formed: its pool may be configured elsewhere, and forgetting the volume would
            // leak it.
            let delete = DeleteVolumeRequest { volume_id: id.into(), ..Default::default() };
            refused(
                controller.delete_volume(delete).await,
                Code::FailedPrecondition,
                "not configured here",
            );
        } else {
            driver.delete(id).await;
        }
        let delete = DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        controller.delete_snapshot(delete).await.unwrap();
        let get = ControllerGetVolumeRequest { volume_id: id.into() };
        refused(controller.controller_get_volume(get).await, Code::NotFound, "");
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
            ..Default::default()
        };
        refused(controller.validate_volume_capabilities(validate).await, Code::NotFound, "");
        let expand = ControllerExpandVolumeRequest {
            volume_id: id.into(),
            capacity_range: Some(CapacityRange { required_bytes: GIB, limit_bytes: 0 }),
            ..Default::default()
        };
        refused(controller.controller_expand_volume(expand).await, Code::NotFound, "");
        refused(driver.snapshot("s", id).await, Code::NotFound, "");
        refused(driver.stage(id, &driver.path("staging")).await, Code::NotFound, "");
        let list = ListSnapshotsRequest { source_volume_id: id.into(), ..Default::default() };
        assert_eq!(controller.list_snapshots(list).await.unwrap().into_inner().entries, []);
        let list = ListSnapshotsRequest { snapshot_id: id.into(), ..Default::default() };
        assert_eq!(controller.list_snapshots(list).await.unwrap().into_inner().entries, []);
        let stats = NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: "/x".into(),
            ..Default::default()
        };
        refused(driver.node().node_get_volume_stats(stats).await, Code::NotFound, "");
        let expand = NodeExpandVolumeRequest {
            volume_id: id.into(),
            volume_path: "/x".into(),
            ..Default::default()
        };
        refused(driver.node().node_expand_volume(expand).await, Code::NotFound, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_ids_and_foreign_tokens_are_refused() {
    let driver = Driver::start().await;
    let (mut controller, mut node) = (driver.controller(), driver.node());
    refused(
        controller.delete_volume(DeleteVolumeRequest::default()).await,
        Code::InvalidArgument,
        "volume_id",
    );
    refused(
        controller.delete_snapshot(DeleteSnapshotRequest::default()).await,
        Code::InvalidArgument,
        "snapshot_id",
    );
    refused(
        controller.get_snapshot(GetSnapshotRequest::default()).await,
        Code::InvalidArgument,
        "snapshot_id",
    );
    refused(driver.snapshot("", FOREIGN).await, Code::InvalidArgument, "name");
    refused(driver.snapshot("s", "").await, Code::InvalidArgument, "source_volume_id");
    refused(driver.snapshot(&"s".repeat(129), FOREIGN).await, Code::InvalidArgument, "name");
    let expand = ControllerExpandVolumeRequest { volume_id: FOREIGN.into(), ..Default::default() };
    refused(
        controller.controller_expand_volume(expand).await,
        Code::InvalidArgument,
        "capacity_range",
    );
    for token in ["x", "v1:", "99999999", &"t".repeat(9000)] {
        let list = ListVolumesRequest { starting_token: token.into(), ..Default::default() };
        refused(controller.list_volumes(list).await, Code::Aborted, "starting_token");
        let list = ListSnapshotsRequest { starting_token: token.into(), ..Default::default() };
        refused(controller.list_snapshots(list).await, Code::Aborted, "starting_token");
    }
    let negative = ListVolumesRequest { max_entries: -1, ..Default::default() };
    refused(controller.list_volumes(negative).await, Code::InvalidArgument, "max_entries");
    let none = Path::new("");
    let (id, at) = (FOREIGN, driver.path("x"));
    refused(driver.stage("", &at).await, Code::InvalidArgument, "volume_id");
    refused(driver.stage(id, none).await, Code::InvalidArgument, "staging_target_path");
    refused(driver.stage(id, Path::new("relative")).await, Code::InvalidArgument, "absolute");
    refused(driver.stage(id, Path::new("/a/../b")).await, Code::InvalidArgument, "absolute");
    let bare = NodeStageVolumeRequest { volume_capability: None, ..stage(id, &at) };
    refused(node.node_stage_volume(bare).await, Code::InvalidArgument, "volume_capability");
    refused(driver.publish("", &at, &at).await, Code::InvalidArgument, "volume_id");
    refused(driver.publish(id, &at, none).await, Code::InvalidArgument, "target_path");
    refused(driver.unpublish("", &at).await, Code::InvalidArgument, "volume_id");
    refused(driver.unpublish(id, none).await, Code::InvalidArgument, "target_path");
    refused(driver.unstage("", &at).await, Code::InvalidArgument, "volume_id");
    refused(driver.unstage(id, none).await, Code::InvalidArgument, "staging_target_path");
    // A volume that is not found comes last, whatever else is wrong.
    for (id, path, code, why) in [
        ("", "some/path", Code::InvalidArgument, "volume_id"),
        (id, "", Code::InvalidArgument, "volume_path"),
        ("nothing", "", Code::InvalidArgument, "volume_path"),
        ("nothing", "some/path", Code::NotFound, ""),
        (id, "some/path", Code::NotFound, ""),
    ] {
        let (volume_id, volume_path) = (id.to_owned(), path.to_owned());
        let stats = NodeGetVolumeStatsRequest {
            volume_id: volume_id.clone(),
            volume_path: volume_path.clone(),
            ..Default::default()
        };
        refused(node.node_get_volume_stats(stats).await, code, why);
        let expand = NodeExpandVolumeRequest { volume_id, volume_path, ..Default::default() };
        refused(node.node_expand_volume(expand).await, code, why);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_says_so() {
    let driver = Driver::start().await;
    let mut controller = driver.controller();
    let publish = ControllerPublishVolumeRequest::default();
    refused(
        controller.controller_publish_volume(publish).await,
        Code::Unimplemented,
        "attachRequired",
    );
}
