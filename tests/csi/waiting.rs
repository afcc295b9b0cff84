//! A store that does not answer when a process starts.

use crate::support::driver::{capability, connect, new_volume, refused, stage};
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;
use zerofs_csi::app::config::PoolConfig;
use zerofs_csi::app::{self, Config, NodeOptions};
use zerofs_csi::csi::proto::v1::controller_client::ControllerClient;
use zerofs_csi::csi::proto::v1::identity_client::IdentityClient;
use zerofs_csi::csi::proto::v1::node_client::NodeClient;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::FakeMounter;
use zerofs_csi::nfs::Peers;

fn config(dir: &Path) -> Config {
    Config::parse(&format!("pools:\n  default:\n    url: file://{}\n", dir.join("pool").display()))
        .unwrap()
}

async fn is_ready(channel: &Channel) -> bool {
    IdentityClient::new(channel.clone()).probe(ProbeRequest {}).await.unwrap().into_inner().ready
        == Some(true)
}

async fn until_ready(channel: &Channel) {
    for _ in 0..600 {
        if is_ready(channel).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the pool exists and is not opened");
}

async fn storage_health(
    node: &NodeClient<Channel>,
) -> Vec<node_get_storage_health_response::StorageBackendHealth> {
    let request = NodeGetStorageHealthRequest::default();
    node.clone().node_get_storage_health(request).await.unwrap().into_inner().backend_health
}

#[tokio::test(flavor = "multi_thread")]
async fn controller_and_node_start_before_their_pool() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, mut tasks, mut channels) = (CancellationToken::new(), Vec::new(), Vec::new());
    for role in ["controller", "node"] {
        let (ready, started) = oneshot::channel();
        let (config, socket, stop, at) =
            (config(dir.path()), dir.path().join(role), stop.clone(), dir.path().to_owned());
        let endpoint = socket.clone();
        tasks.push(tokio::spawn(async move {
            let ready = parking_lot::Mutex::new(Some(ready));
            let tell = move |_: String| {
                let _ = ready.lock().take().map(|ready| ready.send(()));
            };
            if role == "controller" {
                return app::controller(config, &endpoint, None, None, &tell, stop).await;
            }
            let options = NodeOptions {
                node_id: Some("node-1".to_owned()),
                state_dir: at.join("state"),
                run_dir: None,
                registration: None,
                peers: Peers::Loopback,
                health_listen: None,
                health_socket: None,
            };
            app::node(config, &endpoint, options, FakeMounter::new(), &tell, stop).await
        }));
        started.await.unwrap();
        channels.push(connect(&socket).await);
    }
    let (controller, node) =
        (ControllerClient::new(channels[0].clone()), NodeClient::new(channels[1].clone()));
    assert!(!is_ready(&channels[0]).await && !is_ready(&channels[1]).await);
    refused(
        controller.clone().create_volume(new_volume("v")).await,
        Code::Unavailable,
        "not open yet",
    );
    refused(
        controller.clone().list_volumes(ListVolumesRequest::default()).await,
        Code::Unavailable,
        "not open yet",
    );
    let info = node.clone().node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, "node-1");
    // An id of a pool that may be this one: never "it does not exist".
    let other = tempfile::tempdir().unwrap();
    let foreign = PoolConfig::at(format!("file://{}/p", other.path().display()).parse().unwrap())
        .create()
        .await
        .unwrap();
    let id = format!("v1:{}:{}-{}", foreign.pool().id, "a".repeat(26), "b".repeat(25) + "a");
    refused(
        node.clone().node_stage_volume(stage(&id, &dir.path().join("staging"))).await,
        Code::Unavailable,
        "not open yet",
    );

    let backends = storage_health(&node).await;
    let unreachable = StorageHealthErrorType::StorageUnreachable;
    assert_eq!(backends.len(), 1, "{backends:?}");
    assert!(backends[0].status() == unreachable && backends[0].message.contains("default"));

    PoolConfig::at(config(dir.path()).pools["default"].url.clone()).create().await.unwrap();
    until_ready(&channels[0]).await;
    until_ready(&channels[1]).await;
    assert_eq!(storage_health(&node).await, []);
    let made = controller
        .clone()
        .create_volume(new_volume("v"))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    let request = ValidateVolumeCapabilitiesRequest {
        volume_id: made.volume_id,
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    };
    assert!(
        controller
            .clone()
            .validate_volume_capabilities(request)
            .await
            .unwrap()
            .into_inner()
            .confirmed
            .is_some()
    );
    refused(
        node.clone().node_stage_volume(stage(&id, &dir.path().join("staging"))).await,
        Code::NotFound,
        "",
    );
    stop.cancel();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}
