//! A node plugin beside another one on the same node, as in an upgrade with surge: what kubelet
//! sees.

use crate::support::driver::*;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use zerofs_csi::app::{self, Config, NodeOptions};
use zerofs_csi::csi::proto::registration::RegistrationStatus;
use zerofs_csi::csi::proto::registration::registration_client::RegistrationClient;
use zerofs_csi::csi::proto::v1::node_client::NodeClient;
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::FakeMounter;
use zerofs_csi::nfs::Peers;

/// Far longer than anything takes.
const LIMIT: Duration = Duration::from_secs(60);

struct Plugin {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    ready: mpsc::UnboundedReceiver<String>,
    runtime: Option<Runtime>,
    health: PathBuf,
}

impl Plugin {
    /// `pools`: the configuration's.
    fn start(root: &Path, name: &str, mounter: &FakeMounter, pools: &str) -> Self {
        let config = Config::parse(pools).unwrap();
        let health = root.join(format!("{name}.health"));
        let options = NodeOptions {
            node_id: Some("node-a".into()),
            state_dir: root.join("node-state"),
            registration: Some((root.join("registry"), root.join("node.sock"))),
            peers: Peers::Loopback,
            run_dir: None,
            health_listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            health_socket: Some(health.clone()),
        };
        let (said, ready) = mpsc::unbounded_channel();
        let (stop, mounter, endpoint) =
            (CancellationToken::new(), mounter.clone(), root.join("node.sock"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let task = runtime.spawn({
            let stop = stop.clone();
            async move {
                let tell = move |line| drop(said.send(line));
                app::node(config, &endpoint, options, mounter, &tell, stop).await
            }
        });
        Self { stop, task, ready, runtime: Some(runtime), health }
    }

    async fn serves(&mut self) {
        let line = tokio::time::timeout(LIMIT, self.ready.recv()).await.expect("it serves in time");
        line.expect("it does not end");
    }

    async fn is_ready(&self) -> Result<String, String> {
        let health = self.health.clone();
        tokio::task::spawn_blocking(move || {
            app::ask_ready(&health).map_err(|error| error.to_string())
        })
        .await
        .unwrap()
    }

    async fn stop(mut self) {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, &mut self.task).await.unwrap().unwrap().unwrap();
    }

    /// Like a process that is killed.
    async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10)))
            .await
            .unwrap();
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Node {
    dir: std::sync::Arc<tempfile::TempDir>,
    mounter: FakeMounter,
    id: String,
}

impl Node {
    async fn new() -> Self {
        let driver = Driver::start().await;
        let id = driver.create("v").await.volume_id;
        let (dir, mounter) = driver.stop().await;
        std::fs::create_dir(dir.path().join("registry")).unwrap();
        Self { dir, mounter, id }
    }

    fn plugin(&self, name: &str) -> Plugin {
        let pools = format!(
            "pools:\n  default:\n    url: file://{}\n",
            self.dir.path().join("pool").display()
        );
        Plugin::start(self.dir.path(), name, &self.mounter, &pools)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A connection as kubelet makes one for each call.
    async fn kubelet(&self) -> NodeClient<tonic::transport::Channel> {
        NodeClient::new(connect(&self.path("node.sock")).await)
    }

    async fn is_served(&self) {
        let volume_path = text(&self.path("staging"));
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path,
            ..Default::default()
        };
        self.kubelet().await.node_get_volume_stats(request).await.unwrap();
    }

    fn registration(&self) -> u64 {
        std::fs::metadata(self.path("registry/zerofs.csi.dev@reg.sock")).unwrap().ino()
    }

    /// Kubelet has done its part.
    async fn is_registered(&self) {
        let socket = self.path("registry/zerofs.csi.dev@reg.sock");
        let mut kubelet = RegistrationClient::new(connect(&socket).await);
        let status = RegistrationStatus { plugin_registered: true, error: String::new() };
        kubelet.notify_registration_status(status).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_goes_on_with_anothers_volumes() {
    let node = Node::new().await;
    let mut old = node.plugin("old");
    old.serves().await;
    node.kubelet().await.node_stage_volume(stage(&node.id, &node.path("staging"))).await.unwrap();
    let (mounts, registration) = (node.mounter.asked().len(), node.registration());
    let mut early = node.kubelet().await;
    assert!(
        old.is_ready().await.unwrap_err().contains("kubelet has not registered"),
        "no pod can use it yet"
    );
    node.is_registered().await;
    assert_eq!(old.is_ready().await.unwrap(), "ok");

    let mut new = node.plugin("new");
    new.serves().await;
    assert_eq!(node.registration(), registration, "kubelet does not notice");
    assert_eq!(new.is_ready().await.unwrap(), "ok");
    // The old plugin resumes if the new one exits; a DaemonSet's controller would delete it at once
    // if it were not ready.
    assert!(old.is_ready().await.unwrap().contains("on standby"));
    node.is_served().await;
    // A caller with a connection to the old plugin is told to retry.
    let again = early.node_stage_volume(stage(&node.id, &node.path("staging"))).await;
    if let Err(status) = again {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    assert!(!old.task.is_finished(), "it stands by");
    old.stop().await;
    node.is_served().await;
    assert_eq!(node.registration(), registration);
    assert!(
        !node.mounter.asked()[mounts..].iter().any(|call| call.starts_with("mount")),
        "nothing was mounted again"
    );
    let staging_target_path = text(&node.path("staging"));
    let unstage = NodeUnstageVolumeRequest { volume_id: node.id.clone(), staging_target_path };
    node.kubelet().await.node_unstage_volume(unstage).await.unwrap();
    new.stop().await;
    assert!(!node.path("registry/zerofs.csi.dev@reg.sock").exists());
}

/// Whatever keeps kubelet from registering by the old plugin's socket, the new one makes its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_by_which_kubelet_registered_nothing_is_not_handed_over() {
    let node = Node::new().await;
    let mut old = node.plugin("old");
    old.serves().await;
    let before = node.registration();
    let mut new = node.plugin("new");
    new.serves().await;
    assert_ne!(node.registration(), before);
    assert!(new.is_ready().await.unwrap_err().contains("kubelet has not registered"));
    old.stop().await;
    node.is_registered().await;
    assert_eq!(new.is_ready().await.unwrap(), "ok");
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_that_stands_by_goes_on_when_the_new_one_ends() {
    let node = Node::new().await;
    let mut old = node.plugin("old");
    old.serves().await;
    node.is_registered().await;
    node.kubelet().await.node_stage_volume(stage(&node.id, &node.path("staging"))).await.unwrap();
    let mut new = node.plugin("new");
    new.serves().await;
    new.kill().await;
    old.serves().await;
    // Its end took the new one's name for the socket along: kubelet finds another.
    node.is_registered().await;
    assert_eq!(old.is_ready().await.unwrap(), "ok");
    node.is_served().await;
    // The next try.
    let mut newer = node.plugin("newer");
    newer.serves().await;
    node.is_served().await;
    old.stop().await;
    newer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_cannot_serve_what_is_in_use_waits_and_says_why() {
    let node = Node::new().await;
    let mut old = node.plugin("old");
    old.serves().await;
    node.kubelet().await.node_stage_volume(stage(&node.id, &node.path("staging"))).await.unwrap();
    let pools = format!("pools:\n  default:\n    url: file://{}\n", node.path("nowhere").display());
    let new = Plugin::start(node.dir.path(), "new", &node.mounter, &pools);
    let why = async {
        loop {
            match new.is_ready().await {
                Err(why) if why.contains("does not have pool") => return,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, why).await.expect("it says why");
    node.is_served().await;
    node.is_registered().await;
    assert_eq!(old.is_ready().await.unwrap(), "ok");
    // Nothing keeps it from ending.
    new.stop().await;
    old.stop().await;
}
