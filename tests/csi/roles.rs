//! Controller and node plugin as processes of their own, as a cluster has them.

use crate::support::driver::*;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use zerofs_csi::app::{self, Config, NodeOptions};
use zerofs_csi::csi::proto::v1::controller_client::ControllerClient;
use zerofs_csi::csi::proto::v1::node_client::NodeClient;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::FakeMounter;
use zerofs_csi::nfs::Peers;

struct Roles {
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

/// A role is ready when it says so.
async fn ready(told: oneshot::Receiver<()>) {
    told.await.expect("the role does not start");
}

fn tell(told: oneshot::Sender<()>) -> impl Fn(String) + Send + Sync {
    let told = parking_lot::Mutex::new(Some(told));
    move |_| {
        let _ = told.lock().take().map(|told| told.send(()));
    }
}

impl Roles {
    async fn start(root: &Path, mounter: FakeMounter) -> Self {
        let config = || {
            Config::parse(&format!(
                "pools:\n  default:\n    url: file://{}\n",
                root.join("pool").display()
            ))
            .unwrap()
        };
        let (sockets, stop) =
            ([root.join("controller.sock"), root.join("node.sock")], CancellationToken::new());
        let [at_controller, at_node] = sockets.clone();
        let options = NodeOptions {
            node_id: Some("node-a".into()),
            state_dir: PathBuf::from(root).join("node-state"),
            registration: None,
            peers: Peers::Loopback,
            run_dir: None,
            health_listen: None,
            health_socket: None,
        };
        let (tells, told) = oneshot::channel();
        let (config_, stop_) = (config(), stop.clone());
        let controller = tokio::spawn(async move {
            app::controller(config_, &at_controller, None, None, &tell(tells), stop_).await
        });
        ready(told).await;
        let (tells, told) = oneshot::channel();
        let (config_, stop_) = (config(), stop.clone());
        let node = tokio::spawn(async move {
            app::node(config_, &at_node, options, mounter, &tell(tells), stop_).await
        });
        ready(told).await;
        Self {
            controller: ControllerClient::new(connect(&sockets[0]).await),
            node: NodeClient::new(connect(&sockets[1]).await),
            stop,
            tasks: vec![controller, node],
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_has_the_node_snapshot_what_it_has_open() {
    let driver = Driver::start().await;
    let id = driver.create("v").await.volume_id;
    let (dir, mounter) = driver.stop().await;
    let at = dir.path().join("staging");
    let mut roles = Roles::start(dir.path(), mounter.clone()).await;
    roles.node.node_stage_volume(stage(&id, &at)).await.unwrap();
    let request = CreateSnapshotRequest {
        source_volume_id: id.clone(),
        name: "s".into(),
        ..Default::default()
    };
    let made =
        roles.controller.create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
    assert!(made.ready_to_use && made.source_volume_id == id);
    assert!(
        mounter.asked().contains(&format!("sync {}", at.display())),
        "the pages of the mount are written first"
    );
    let unstage = NodeUnstageVolumeRequest { volume_id: id, staging_target_path: text(&at) };
    roles.node.node_unstage_volume(unstage).await.unwrap();
    roles.stop().await;
}
