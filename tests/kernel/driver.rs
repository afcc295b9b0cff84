//! The driver's processes and kubelet's part in the life of a volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use zerofs_csi::csi::proto::v1::controller_client::ControllerClient;
use zerofs_csi::csi::proto::v1::node_client::NodeClient;
use zerofs_csi::csi::proto::v1::{self as csi, volume_capability, volume_content_source};

/// A controller and a node plugin, on a pool in a folder of their own.
pub struct Driver {
    root: PathBuf,
    controller: Option<Child>,
    node: Option<Child>,
    runtime: Runtime,
}

/// A volume published to a pod's folder.
pub struct Volume {
    pub id: String,
    pub path: PathBuf,
    staging: PathBuf,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn status(error: &tonic::Status) -> String {
    format!("{:?}: {}", error.code(), error.message())
}

impl Driver {
    pub fn start(name: &str) -> Result<Self, String> {
        let root = std::env::temp_dir().join(format!("zerofs-{name}"));
        fs::create_dir_all(root.join("pool")).map_err(text)?;
        let pool = format!("file://{}", root.join("pool").display());
        fs::write(root.join("config.yaml"), format!("pools:\n  default:\n    url: {pool}\n")).map_err(text)?;
        let create = Command::new(binary()?).args(["pool", "create", "--pool", &pool]).output().map_err(text)?;
        if !create.status.success() {
            return Err(format!("pool create: {}", String::from_utf8_lossy(&create.stderr)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
        let mut driver = Self { root, controller: None, node: None, runtime };
        driver.controller = Some(driver.spawn("controller", &[])?);
        driver.wait_for("controller")?;
        driver.start_node()?;
        Ok(driver)
    }

    pub fn start_node(&mut self) -> Result<(), String> {
        let state = self.root.join("state").display().to_string();
        self.node = Some(self.spawn("node", &["--node-id", "guest", "--state-dir", &state])?);
        self.wait_for("node")
    }

    /// kill -9, as the kernel's memory killer does.
    pub fn kill_node(&mut self) -> Result<(), String> {
        let mut node = self.node.take().ok_or("the node plugin does not run")?;
        node.kill().map_err(text)?;
        node.wait().map_err(text)?;
        fs::remove_file(self.root.join("node.sock")).ok();
        Ok(())
    }

    fn spawn(&self, role: &str, more: &[&str]) -> Result<Child, String> {
        let log = fs::File::options().create(true).append(true).open(self.root.join(format!("{role}.log"))).map_err(text)?;
        let socket = format!("unix://{}", self.root.join(format!("{role}.sock")).display());
        Command::new(binary()?)
            .args([role, "--config", &self.root.join("config.yaml").display().to_string(), "--csi-endpoint", &socket])
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(text)?)
            .stderr(log)
            .spawn()
            .map_err(text)
    }

    fn wait_for(&self, role: &str) -> Result<(), String> {
        let started = Instant::now();
        let socket = self.root.join(format!("{role}.sock"));
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if started.elapsed() > Duration::from_secs(60) {
                return Err(format!("{role} does not start: {}", self.log(role)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn log(&self, role: &str) -> String {
        let log = fs::read_to_string(self.root.join(format!("{role}.log"))).unwrap_or_default();
        log.lines().rev().take(15).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    async fn connect(&self, role: &str) -> Result<Channel, String> {
        let socket = self.root.join(format!("{role}.sock"));
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        Endpoint::from_static("http://socket").connect_with_connector(connector).await.map_err(text)
    }

    /// Creates, stages and publishes a volume.
    pub fn volume(&mut self, name: &str, bytes: i64) -> Result<Volume, String> {
        self.provision(name, bytes, None)
    }

    pub fn volume_from(&mut self, snapshot: &str, name: &str, bytes: i64) -> Result<Volume, String> {
        let source = volume_content_source::SnapshotSource { snapshot_id: snapshot.to_owned() };
        self.provision(name, bytes, Some(csi::VolumeContentSource { r#type: Some(volume_content_source::Type::Snapshot(source)) }))
    }

    fn provision(&self, name: &str, bytes: i64, source: Option<csi::VolumeContentSource>) -> Result<Volume, String> {
        self.runtime.block_on(async {
            let request = csi::CreateVolumeRequest {
                name: name.to_owned(),
                capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
                volume_capabilities: vec![capability()],
                volume_content_source: source,
                ..Default::default()
            };
            let mut controller = ControllerClient::new(self.connect("controller").await?);
            let created = controller.create_volume(request).await.map_err(|e| format!("CreateVolume: {}", status(&e)))?;
            let created = created.into_inner().volume.ok_or("CreateVolume answers no volume")?;
            let volume = Volume {
                id: created.volume_id,
                path: self.root.join(format!("pods/{name}")),
                staging: self.root.join(format!("staging/{name}")),
            };
            for dir in [&volume.staging, &volume.path] {
                fs::create_dir_all(dir).map_err(text)?;
            }
            let stage = csi::NodeStageVolumeRequest {
                volume_id: volume.id.clone(),
                staging_target_path: volume.staging.display().to_string(),
                volume_capability: Some(capability()),
                volume_context: created.volume_context.clone(),
                ..Default::default()
            };
            let publish = csi::NodePublishVolumeRequest {
                volume_id: volume.id.clone(),
                staging_target_path: volume.staging.display().to_string(),
                target_path: volume.path.display().to_string(),
                volume_capability: Some(capability()),
                volume_context: created.volume_context,
                ..Default::default()
            };
            let mut node = NodeClient::new(self.connect("node").await?);
            let staged = node.node_stage_volume(stage).await;
            staged.map_err(|e| format!("NodeStageVolume: {}\n{}", status(&e), self.log("node")))?;
            node.node_publish_volume(publish).await.map_err(|e| format!("NodePublishVolume: {}", status(&e)))?;
            Ok(volume)
        })
    }

    pub fn snapshot(&mut self, volume: &Volume, name: &str) -> Result<String, String> {
        self.runtime.block_on(async {
            let request =
                csi::CreateSnapshotRequest { source_volume_id: volume.id.clone(), name: name.to_owned(), ..Default::default() };
            let mut controller = ControllerClient::new(self.connect("controller").await?);
            let answer = controller.create_snapshot(request).await.map_err(|e| format!("CreateSnapshot: {}", status(&e)))?;
            Ok(answer.into_inner().snapshot.ok_or("CreateSnapshot answers no snapshot")?.snapshot_id)
        })
    }

    pub fn delete_snapshot(&mut self, snapshot: &str) -> Result<(), String> {
        self.runtime.block_on(async {
            let request = csi::DeleteSnapshotRequest { snapshot_id: snapshot.to_owned(), ..Default::default() };
            let mut controller = ControllerClient::new(self.connect("controller").await?);
            controller.delete_snapshot(request).await.map_err(|e| format!("DeleteSnapshot: {}", status(&e)))?;
            Ok(())
        })
    }

    pub fn expand(&mut self, volume: &Volume, bytes: i64) -> Result<(), String> {
        let range = Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 });
        self.runtime.block_on(async {
            let request = csi::ControllerExpandVolumeRequest {
                volume_id: volume.id.clone(),
                capacity_range: range,
                volume_capability: Some(capability()),
                ..Default::default()
            };
            let mut controller = ControllerClient::new(self.connect("controller").await?);
            let answer = controller
                .controller_expand_volume(request)
                .await
                .map_err(|e| format!("ControllerExpandVolume: {}", status(&e)))?;
            if !answer.into_inner().node_expansion_required {
                return Ok(());
            }
            let request = csi::NodeExpandVolumeRequest {
                volume_id: volume.id.clone(),
                volume_path: volume.path.display().to_string(),
                staging_target_path: volume.staging.display().to_string(),
                capacity_range: range,
                volume_capability: Some(capability()),
                ..Default::default()
            };
            let mut node = NodeClient::new(self.connect("node").await?);
            node.node_expand_volume(request).await.map_err(|e| format!("NodeExpandVolume: {}", status(&e)))?;
            Ok(())
        })
    }

    /// Unpublishes, unstages and deletes a volume; nothing may be left mounted.
    pub fn remove(&mut self, volume: &Volume) -> Result<(), String> {
        self.runtime.block_on(async {
            let mut node = NodeClient::new(self.connect("node").await?);
            let target = volume.path.display().to_string();
            let unpublish = csi::NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: target };
            node.node_unpublish_volume(unpublish).await.map_err(|e| format!("NodeUnpublishVolume: {}", status(&e)))?;
            let staging = volume.staging.display().to_string();
            let unstage = csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path: staging };
            node.node_unstage_volume(unstage).await.map_err(|e| format!("NodeUnstageVolume: {}", status(&e)))?;
            let mut controller = ControllerClient::new(self.connect("controller").await?);
            let delete = csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
            controller.delete_volume(delete).await.map_err(|e| format!("DeleteVolume: {}", status(&e)))?;
            Ok::<_, String>(())
        })?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(text)?;
        let left = |path: &Path| mounts.contains(&path.display().to_string());
        if left(&volume.path) || left(&volume.staging) {
            return Err(format!("still mounted after NodeUnstageVolume: {}", volume.path.display()));
        }
        Ok(())
    }

    /// SIGTERM to both, which must end cleanly.
    pub fn stop(mut self) -> Result<(), String> {
        for (role, child) in [("node", self.node.take()), ("controller", self.controller.take())] {
            let Some(mut child) = child else { continue };
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).map_err(text)?;
            let started = Instant::now();
            let code = loop {
                match child.try_wait().map_err(text)? {
                    Some(code) => break code,
                    None if started.elapsed() > Duration::from_secs(60) => {
                        child.kill().ok();
                        return Err(format!("{role} does not end on SIGTERM: {}", self.log(role)));
                    }
                    None => std::thread::sleep(Duration::from_millis(20)),
                }
            };
            if !code.success() {
                return Err(format!("{role} ends with {code}: {}", self.log(role)));
            }
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for child in [self.node.take(), self.controller.take()].into_iter().flatten() {
            let mut child = child;
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn binary() -> Result<String, String> {
    std::env::var("ZEROFS_BIN").map_err(|_| "ZEROFS_BIN names no binary".to_owned())
}

fn capability() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_type: Some(volume_capability::AccessType::Mount(volume_capability::MountVolume::default())),
        access_mode: Some(volume_capability::AccessMode { mode: volume_capability::access_mode::Mode::SingleNodeWriter as i32 }),
    }
}
