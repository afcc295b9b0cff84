//! A whole driver in this process: the real services on a real socket, over a pool in a folder,
//! with a mounter that mounts nothing, or speaks MOUNT as the kernel does.

use super::world::World;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};
use zerofs_csi::app::{self, Config, ServeOptions};
use zerofs_csi::bucket::{Bucket, Credentials as Keys, Folder, Limits};
use zerofs_csi::catalog::{Catalog, RevocationReason};
use zerofs_csi::csi::proto::v1::controller_client::ControllerClient;
use zerofs_csi::csi::proto::v1::group_controller_client::GroupControllerClient;
use zerofs_csi::csi::proto::v1::identity_client::IdentityClient;
use zerofs_csi::csi::proto::v1::node_client::NodeClient;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use zerofs_csi::csi::proto::v1::*;
use zerofs_csi::mount::{FakeMounter, MountError, NfsMount};
use zerofs_csi::nfs::Peers;
use zerofs_csi::nfs::client::{Client, Credentials, FileHandle};

pub const GIB: i64 = 1 << 30;

pub struct Driver {
    pub dir: Arc<TempDir>,
    pub mounter: FakeMounter,
    /// Where the exports are served, if they are.
    pub exports: Option<SocketAddr>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    /// The runtime of this run of the driver alone: dropping it ends all that the process's end
    /// would end.
    runtime: Option<Runtime>,
    channel: Channel,
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Driver {
    pub async fn start() -> Self {
        Self::with(FakeMounter::new()).await
    }

    pub async fn with(mounter: FakeMounter) -> Self {
        Self::run(Arc::new(tempfile::tempdir().unwrap()), mounter).await
    }

    /// On a pool and a state folder that may have been used before.
    pub async fn run(dir: Arc<TempDir>, mounter: FakeMounter) -> Self {
        Self::seated(dir, "", mounter, "").await
    }

    /// A machine among several on the pool of a folder; `settings` are lines of its configuration.
    pub async fn seated(
        dir: Arc<TempDir>,
        seat: &str,
        mounter: FakeMounter,
        settings: &str,
    ) -> Self {
        Self::launch(dir, seat, mounter, settings, None).await
    }

    /// One that serves every dataset under NFS, too.
    pub async fn exporting(mounter: FakeMounter) -> Self {
        let (dir, listen) = (Arc::new(tempfile::tempdir().unwrap()), ([127, 0, 0, 1], 0).into());
        Self::launch(dir, "", mounter, "", Some(listen)).await
    }

    async fn launch(
        dir: Arc<TempDir>,
        seat: &str,
        mounter: FakeMounter,
        settings: &str,
        nfs_listen: Option<SocketAddr>,
    ) -> Self {
        // Shown for a test that fails.
        tracing_subscriber::fmt()
            .with_test_writer()
            .with_max_level(tracing::Level::WARN)
            .try_init()
            .ok();
        let pool = dir.path().join("pool");
        let config = Config::parse(&format!(
            "pools:\n  default:\n    url: file://{}\n{settings}",
            pool.display()
        ))
        .unwrap();
        let socket = dir.path().join(format!("{seat}csi.sock"));
        let options = ServeOptions {
            admin: None,
            state_dir: dir.path().join(format!("{seat}state")),
            csi_endpoint: Some(socket.clone()),
            nfs_listen,
            nfs_peers: Peers::Privileged,
            peers: Peers::Loopback,
            health_listen: None,
        };
        let stop = CancellationToken::new();
        let (ready, is_ready) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let task = runtime.spawn({
            let (mounter, stop) = (mounter.clone(), stop.clone());
            async move {
                let ready = Mutex::new(Some(ready));
                let tell = move |line: String| {
                    let _ = ready.lock().take().map(|ready| ready.send(line));
                };
                app::serve(config, options, mounter, &tell, stop).await
            }
        });
        let Ok(line) = is_ready.await else {
            panic!("the driver does not start: {:?}", task.await);
        };
        let exports = line.split_once("nfs ").map(|(_, at)| at.split(' ').next().unwrap());
        let exports = exports.map(|at| at.parse().unwrap());
        let channel = connect(&socket).await;
        Self { dir, mounter, exports, stop, task, runtime: Some(runtime), channel }
    }

    /// Ends the process in order; what is mounted stays mounted.
    pub async fn stop(mut self) -> (Arc<TempDir>, FakeMounter) {
        self.stop.cancel();
        (&mut self.task).await.unwrap().unwrap();
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10)))
            .await
            .unwrap();
        (self.dir.clone(), self.mounter.clone())
    }

    pub fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub fn groups(&self) -> GroupControllerClient<Channel> {
        GroupControllerClient::new(self.channel.clone())
    }

    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    pub fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn create(&self, name: &str) -> Volume {
        let made = self.controller().create_volume(new_volume(name)).await.unwrap();
        made.into_inner().volume.unwrap()
    }

    /// A name is free again when the collector has been there, which it is told at once; until then
    /// the answer is to repeat.
    pub async fn create_once_free(&self, name: &str) -> Volume {
        for _ in 0..400 {
            match self.controller().create_volume(new_volume(name)).await {
                Err(status) if status.code() == Code::Aborted => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                made => return made.unwrap().into_inner().volume.unwrap(),
            }
        }
        panic!("the name {name} stays taken")
    }

    pub async fn snapshot(&self, name: &str, of: &str) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest {
            source_volume_id: of.into(),
            name: name.into(),
            ..Default::default()
        };
        Ok(self.controller().create_snapshot(request).await?.into_inner().snapshot.unwrap())
    }

    pub async fn delete(&self, id: &str) {
        self.controller()
            .delete_volume(DeleteVolumeRequest { volume_id: id.into(), ..Default::default() })
            .await
            .unwrap();
    }

    pub async fn stage(
        &self,
        id: &str,
        at: &Path,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        self.node().node_stage_volume(stage(id, at)).await
    }

    pub async fn publish(
        &self,
        id: &str,
        staging: &Path,
        at: &Path,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        self.node().node_publish_volume(publish(id, staging, at)).await
    }

    pub async fn unpublish(
        &self,
        id: &str,
        at: &Path,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: text(at) };
        self.node().node_unpublish_volume(request).await
    }

    /// The adverse conditions of a staged volume.
    pub async fn health(&self, id: &str) -> Result<Vec<(VolumeHealthErrorType, String)>, Status> {
        let request = NodeGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        let health = self.node().node_get_volume_health(request).await?.into_inner();
        let statuses = health.volume_health.unwrap().health_statuses;
        Ok(statuses.into_iter().map(|entry| (entry.status(), entry.reason)).collect())
    }

    pub async fn unstage(
        &self,
        id: &str,
        at: &Path,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request =
            NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: text(at) };
        self.node().node_unstage_volume(request).await
    }
}

pub async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await;
            stream.map(hyper_util::rt::TokioIo::new)
        }
    });
    Endpoint::from_static("http://socket").connect_with_connector(connector).await.unwrap()
}

pub fn text(path: &Path) -> String {
    path.display().to_string()
}

pub fn capability(mode: Mode) -> VolumeCapability {
    let access_type = Some(AccessType::Mount(MountVolume::default()));
    VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type }
}

pub fn new_volume(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: GIB, limit_bytes: 0 }),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

pub fn stage(id: &str, at: &Path) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: id.into(),
        staging_target_path: text(at),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        ..Default::default()
    }
}

pub fn publish(id: &str, staging: &Path, at: &Path) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: id.into(),
        staging_target_path: text(staging),
        target_path: text(at),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        ..Default::default()
    }
}

/// The answer must be this error, and say this.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, needle: &str) {
    let status = answer.expect_err("must be refused");
    assert!(
        status.code() == code && status.message().contains(needle),
        "{:?}: {}",
        status.code(),
        status.message()
    );
}

/// The catalog of the pool of a folder.
pub async fn catalog(dir: &TempDir) -> Catalog {
    let url = format!("file://{}", dir.path().join("pool").display()).parse().unwrap();
    let bucket =
        Bucket::open(&url, &Keys::default(), Folder::MustExist, Limits::default()).unwrap();
    Catalog::open(bucket, None).await.unwrap()
}

/// Like a controller that sees the node tainted out-of-service.
pub async fn revoke(dir: &TempDir, id: &str) {
    let world = World::builder("controller-1").on(catalog(dir).await);
    world.revoke(id.parse().unwrap(), RevocationReason::OutOfService).await;
}

/// The state that the kernel's client keeps of a mount.
#[derive(Clone)]
pub struct Mounted {
    pub what: NfsMount,
    pub root: FileHandle,
}

pub type LastMount = Arc<Mutex<Option<Mounted>>>;

/// A mounter that speaks MOUNT as the kernel does; what came of it last.
pub fn mounter() -> (FakeMounter, LastMount) {
    let last = LastMount::default();
    let keep = last.clone();
    let mounter = FakeMounter::with(move |what, target| {
        let keep = keep.clone();
        Box::pin(async move {
            let mounted = async {
                let client = Client::connect(what.endpoint, &Credentials::root()).await?;
                client.mount(&what.export).await
            };
            let root = mounted.await.map_err(|error| MountError::Kernel {
                path: target,
                doing: "mounting",
                why: error.to_string(),
            })?;
            *keep.lock() = Some(Mounted { what, root });
            Ok(())
        })
    });
    (mounter, last)
}
