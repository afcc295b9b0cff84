//! Kubelet's and the sidecars' part: CSI calls over the socket.

use crate::csi::proto::v1::controller_client::ControllerClient;
use crate::csi::proto::v1::node_client::NodeClient;
use crate::csi::proto::v1::{self as csi, volume_capability, volume_content_source};
use anyhow::{Context, anyhow};
use std::path::{Path, PathBuf};
use tonic::transport::{Channel, Endpoint};

pub struct Csi {
    channel: Channel,
    /// Staging and target folders.
    root: PathBuf,
}

/// A published volume.
pub struct Published {
    pub id: String,
    pub staging: PathBuf,
    pub target: PathBuf,
}

fn refused(call: &'static str) -> impl FnOnce(tonic::Status) -> anyhow::Error {
    move |status| anyhow!("{call}: {:?}: {}", status.code(), status.message())
}

fn capability() -> csi::VolumeCapability {
    let mode = volume_capability::access_mode::Mode::SingleNodeWriter as i32;
    csi::VolumeCapability {
        access_type: Some(volume_capability::AccessType::Mount(
            volume_capability::MountVolume::default(),
        )),
        access_mode: Some(volume_capability::AccessMode { mode }),
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

impl Csi {
    pub async fn connect(socket: &Path, root: PathBuf) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel =
            endpoint.connect().await.with_context(|| format!("CSI socket {}", socket.display()))?;
        Ok(Self { channel, root })
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// CreateVolume; `snapshot`: its content.
    pub async fn create(
        &self,
        name: &str,
        bytes: i64,
        snapshot: Option<&str>,
    ) -> anyhow::Result<String> {
        let source = snapshot.map(|id| {
            let source = volume_content_source::SnapshotSource { snapshot_id: id.to_owned() };
            csi::VolumeContentSource { r#type: Some(volume_content_source::Type::Snapshot(source)) }
        });
        let request = csi::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![capability()],
            volume_content_source: source,
            ..Default::default()
        };
        let answer =
            self.controller().create_volume(request).await.map_err(refused("CreateVolume"))?;
        Ok(answer.into_inner().volume.context("CreateVolume answers no volume")?.volume_id)
    }

    /// NodeStageVolume and NodePublishVolume.
    pub async fn publish(&self, id: &str, name: &str) -> anyhow::Result<Published> {
        let published = Published {
            id: id.to_owned(),
            staging: self.root.join("staging").join(name),
            target: self.root.join("pods").join(name),
        };
        for dir in [&published.staging, &published.target] {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        let stage = csi::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: path(&published.staging),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.node().node_stage_volume(stage).await.map_err(refused("NodeStageVolume"))?;
        let publish = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: path(&published.staging),
            target_path: path(&published.target),
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.node().node_publish_volume(publish).await.map_err(refused("NodePublishVolume"))?;
        Ok(published)
    }

    pub async fn unpublish(&self, published: &Published) -> anyhow::Result<()> {
        let (volume_id, target_path) = (published.id.clone(), path(&published.target));
        let unpublish =
            csi::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path };
        self.node()
            .node_unpublish_volume(unpublish)
            .await
            .map_err(refused("NodeUnpublishVolume"))?;
        let unstage = csi::NodeUnstageVolumeRequest {
            volume_id,
            staging_target_path: path(&published.staging),
        };
        self.node().node_unstage_volume(unstage).await.map_err(refused("NodeUnstageVolume"))?;
        Ok(())
    }

    pub async fn snapshot(&self, id: &str, name: &str) -> anyhow::Result<String> {
        let request = csi::CreateSnapshotRequest {
            source_volume_id: id.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        };
        let answer =
            self.controller().create_snapshot(request).await.map_err(refused("CreateSnapshot"))?;
        let snapshot =
            answer.into_inner().snapshot.context("CreateSnapshot answers no snapshot")?;
        anyhow::ensure!(
            snapshot.ready_to_use,
            "CreateSnapshot answers a snapshot that is not ready"
        );
        Ok(snapshot.snapshot_id)
    }

    pub async fn delete(&self, id: &str) -> anyhow::Result<()> {
        let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.controller().delete_volume(request).await.map_err(refused("DeleteVolume")).map(drop)
    }

    pub async fn delete_snapshot(&self, id: &str) -> anyhow::Result<()> {
        let request =
            csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.controller()
            .delete_snapshot(request)
            .await
            .map_err(refused("DeleteSnapshot"))
            .map(drop)
    }
}
