//! Kubelet's and the sidecars' part in the life of a volume: each call has the time that they give
//! it.

use super::driver::{Driver, Role, mounts_below};
use super::step::{awaiting, text};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tonic::{Code, Response, Status};
use zerofs_csi::csi::proto::v1::controller_client::ControllerClient;
use zerofs_csi::csi::proto::v1::node_client::NodeClient;
use zerofs_csi::csi::proto::v1::volume_capability::access_mode::Mode;
use zerofs_csi::csi::proto::v1::{self as csi, volume_capability, volume_content_source};

/// Kubelet's limit for a call. A call that ends later has failed, whatever it says.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// The time for which kubelet and the sidecars retry in this test.
const REPEAT_LIMIT: Duration = Duration::from_secs(180);

/// A volume published to a pod's folder.
#[derive(Clone)]
pub struct Volume {
    pub id: String,
    /// The plugin of the node where it is staged.
    pub node: Role,
    pub mode: Mode,
    pub path: PathBuf,
    pub staging: PathBuf,
    /// The PersistentVolume's mount options.
    pub flags: Vec<String>,
    pub context: HashMap<String, String>,
}

fn status(error: &Status) -> String {
    format!("{:?}: {}", error.code(), error.message())
}

/// One call, within its limit.
async fn once<T>(
    call: &str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Result<T, Status>, String> {
    awaiting(call);
    let answer = tokio::time::timeout(CALL_LIMIT, answer).await;
    let answer = answer.map_err(|_| format!("{call}: no answer within {CALL_LIMIT:?}"))?;
    Ok(answer.map(Response::into_inner))
}

/// One call that must succeed.
async fn succeeds<T>(
    call: &str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, String> {
    once(call, answer).await?.map_err(|error| format!("{call}: {}", status(&error)))
}

fn capability(mode: Mode, flags: &[String]) -> csi::VolumeCapability {
    let mode = mode as i32;
    let mount =
        volume_capability::MountVolume { mount_flags: flags.to_vec(), ..Default::default() };
    csi::VolumeCapability {
        access_type: Some(volume_capability::AccessType::Mount(mount)),
        access_mode: Some(volume_capability::AccessMode { mode }),
    }
}

fn range(bytes: i64) -> Option<csi::CapacityRange> {
    Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 })
}

fn new_volume(name: &str, bytes: i64) -> csi::CreateVolumeRequest {
    let (name, capacity_range) = (name.to_owned(), range(bytes));
    csi::CreateVolumeRequest { name, capacity_range, ..Default::default() }
}

impl Driver {
    /// Creates, stages and publishes a volume.
    pub fn volume(&self, name: &str, bytes: i64) -> Result<Volume, String> {
        self.provision(new_volume(name, bytes), Mode::SingleNodeWriter)
    }

    /// Of a class with a parameter.
    pub fn volume_with(
        &self,
        name: &str,
        bytes: i64,
        (parameter, value): (&str, &str),
    ) -> Result<Volume, String> {
        let parameters = HashMap::from([(parameter.to_owned(), value.to_owned())]);
        let request = csi::CreateVolumeRequest { parameters, ..new_volume(name, bytes) };
        self.provision(request, Mode::SingleNodeWriter)
    }

    /// A volume of many nodes, staged on the first.
    pub fn shared_volume(&self, name: &str, bytes: i64) -> Result<Volume, String> {
        self.provision(new_volume(name, bytes), Mode::MultiNodeMultiWriter)
    }

    /// The same volume on the other node.
    pub fn elsewhere(&self, volume: &Volume) -> Result<Volume, String> {
        let beside = |path: &std::path::Path| path.with_extension("elsewhere");
        let volume = Volume {
            node: Role::OtherNode,
            path: beside(&volume.path),
            staging: beside(&volume.staging),
            ..volume.clone()
        };
        for dir in [&volume.staging, &volume.path] {
            fs::create_dir_all(dir).map_err(text)?;
        }
        self.stage(&volume).map_err(|error| format!("{error}{}", self.log(volume.node)))?;
        Ok(volume)
    }

    pub fn volume_from(&self, snapshot: &str, name: &str, bytes: i64) -> Result<Volume, String> {
        let source = volume_content_source::SnapshotSource { snapshot_id: snapshot.to_owned() };
        let source = csi::VolumeContentSource {
            r#type: Some(volume_content_source::Type::Snapshot(source)),
        };
        let request = csi::CreateVolumeRequest {
            volume_content_source: Some(source),
            ..new_volume(name, bytes)
        };
        self.provision(request, Mode::SingleNodeWriter)
    }

    fn provision(&self, request: csi::CreateVolumeRequest, mode: Mode) -> Result<Volume, String> {
        let name = request.name.clone();
        let request = csi::CreateVolumeRequest {
            volume_capabilities: vec![capability(mode, &[])],
            ..request
        };
        let created = self.runtime.block_on(async {
            let mut controller = ControllerClient::new(self.connect(Role::Controller).await?);
            succeeds("CreateVolume", controller.create_volume(request)).await
        });
        let created = created.map_err(|error| format!("{error}{}", self.log(Role::Controller)))?;
        let created = created.volume.ok_or("CreateVolume answers no volume")?;
        let volume = Volume {
            id: created.volume_id,
            node: Role::Node,
            mode,
            context: created.volume_context,
            path: self.root.join(format!("pods/{name}")),
            staging: self.root.join(format!("staging/{name}")),
            flags: Vec::new(),
        };
        for dir in [&volume.staging, &volume.path] {
            fs::create_dir_all(dir).map_err(text)?;
        }
        self.stage(&volume).map_err(|error| format!("{error}{}", self.log(Role::Node)))?;
        Ok(volume)
    }

    /// Stages and publishes, as for a pod that comes.
    pub fn stage(&self, volume: &Volume) -> Result<(), String> {
        let stage = csi::NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging.display().to_string(),
            volume_capability: Some(capability(volume.mode, &volume.flags)),
            volume_context: volume.context.clone(),
            ..Default::default()
        };
        self.runtime.block_on(async {
            let mut node = NodeClient::new(self.connect(volume.node).await?);
            succeeds("NodeStageVolume", node.node_stage_volume(stage)).await
        })?;
        self.publish(volume, false)
    }

    /// As for one more pod on the node, or for a repeated call.
    pub fn publish(&self, volume: &Volume, readonly: bool) -> Result<(), String> {
        let publish = csi::NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging.display().to_string(),
            target_path: volume.path.display().to_string(),
            volume_capability: Some(capability(volume.mode, &volume.flags)),
            volume_context: volume.context.clone(),
            readonly,
            ..Default::default()
        };
        self.runtime.block_on(async {
            let mut node = NodeClient::new(self.connect(volume.node).await?);
            succeeds("NodePublishVolume", node.node_publish_volume(publish)).await.map(drop)
        })
    }

    /// A pod ends: its own unmount does not depend on the store. One call, and its time.
    pub fn unpublish(&self, volume: &Volume) -> Result<Duration, String> {
        let target_path = volume.path.display().to_string();
        let request = csi::NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path };
        let started = Instant::now();
        self.runtime.block_on(async {
            let mut node = NodeClient::new(self.connect(volume.node).await?);
            succeeds("NodeUnpublishVolume", node.node_unpublish_volume(request)).await
        })?;
        match mounts_below(&volume.path)? {
            0 => Ok(started.elapsed()),
            left => {
                Err(format!("{left} mounts at {} after NodeUnpublishVolume", volume.path.display()))
            }
        }
    }

    /// The last pod has gone. One call: its answer, and its time.
    pub fn try_unstage(&self, volume: &Volume) -> Result<(Result<(), Status>, Duration), String> {
        let staging_target_path = volume.staging.display().to_string();
        let request =
            csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path };
        let started = Instant::now();
        let answer = self.runtime.block_on(async {
            let mut node = NodeClient::new(self.connect(volume.node).await?);
            once("NodeUnstageVolume", node.node_unstage_volume(request)).await
        })?;
        Ok((answer.map(drop), started.elapsed()))
    }

    pub fn unstage(&self, volume: &Volume) -> Result<Duration, String> {
        let (answer, took) = self.try_unstage(volume)?;
        answer.map_err(|error| {
            format!("NodeUnstageVolume: {}{}", status(&error), self.log(volume.node))
        })?;
        match mounts_below(&volume.staging)? {
            0 => Ok(took),
            left => Err(format!(
                "{left} mounts at {} after NodeUnstageVolume",
                volume.staging.display()
            )),
        }
    }

    /// Deletes a volume, repeating what is to be repeated as the provisioner does.
    pub fn delete(&self, volume: &Volume) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let request =
                csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
            let answer = self.runtime.block_on(async {
                let mut controller = ControllerClient::new(self.connect(Role::Controller).await?);
                once("DeleteVolume", controller.delete_volume(request)).await
            })?;
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Code::Aborted && started.elapsed() < REPEAT_LIMIT => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(error) => return Err(format!("DeleteVolume: {}", status(&error))),
            }
        }
    }

    /// Unpublishes, unstages and deletes a volume; nothing may be left mounted.
    pub fn remove(&self, volume: &Volume) -> Result<(), String> {
        self.unpublish(volume)?;
        self.unstage(volume)?;
        self.delete(volume)
    }

    pub fn snapshot(&self, volume: &Volume, name: &str) -> Result<String, String> {
        let request = csi::CreateSnapshotRequest {
            source_volume_id: volume.id.clone(),
            name: name.to_owned(),
            ..Default::default()
        };
        let made = self.runtime.block_on(async {
            let mut controller = ControllerClient::new(self.connect(Role::Controller).await?);
            succeeds("CreateSnapshot", controller.create_snapshot(request)).await
        })?;
        Ok(made.snapshot.ok_or("CreateSnapshot answers no snapshot")?.snapshot_id)
    }

    pub fn delete_snapshot(&self, snapshot: &str) -> Result<(), String> {
        let request =
            csi::DeleteSnapshotRequest { snapshot_id: snapshot.to_owned(), ..Default::default() };
        self.runtime.block_on(async {
            let mut controller = ControllerClient::new(self.connect(Role::Controller).await?);
            succeeds("DeleteSnapshot", controller.delete_snapshot(request)).await.map(drop)
        })
    }

    /// On the controller, and on the node where the controller asks for that.
    pub fn expand(&self, volume: &Volume, bytes: i64) -> Result<(), String> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: range(bytes),
            volume_capability: Some(capability(volume.mode, &volume.flags)),
            ..Default::default()
        };
        let on_node = csi::NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: volume.path.display().to_string(),
            staging_target_path: volume.staging.display().to_string(),
            capacity_range: range(bytes),
            volume_capability: Some(capability(volume.mode, &volume.flags)),
            ..Default::default()
        };
        self.runtime.block_on(async {
            let mut controller = ControllerClient::new(self.connect(Role::Controller).await?);
            let answer =
                succeeds("ControllerExpandVolume", controller.controller_expand_volume(request))
                    .await?;
            if answer.node_expansion_required {
                let mut node = NodeClient::new(self.connect(volume.node).await?);
                succeeds("NodeExpandVolume", node.node_expand_volume(on_node)).await?;
            }
            Ok(())
        })
    }
}
