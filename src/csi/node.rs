//! The Node service: translates, never decides.

use super::capability::{self, Capability};
use super::capacity::{signed, wanted};
use super::convert::volume_id;
use super::ephemeral;
use super::proto::v1::node_server::Node as NodeApi;
use super::proto::v1::volume_usage::Unit;
use super::proto::v1::*;
use super::status::{RequestError, invalid, ok, run, unlocked};
use crate::control::node::{
    Access, Endpoints, EphemeralId, NodeAgent, Publish, Sharing, Stage, StorageCondition,
    VolumeCondition,
};
use crate::control::secrets::{PoolOf, Unlock};
use crate::mount::Mounter;
use crate::types::VolumeHandle;
use node_service_capability::rpc::Type as Rpc;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The capabilities of this service.
const CAPABILITIES: [Rpc; 7] = [
    Rpc::StageUnstageVolume,
    Rpc::GetVolumeStats,
    Rpc::ExpandVolume,
    Rpc::SingleNodeMultiWriter,
    Rpc::VolumeMountGroup,
    Rpc::GetVolumeHealth,
    Rpc::GetStorageHealth,
];
/// Linux's PATH_MAX.
const PATH_BYTES_MAX: usize = 4096;

/// The identity of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Kubernetes' name of the node.
    pub id: String,
    /// More than this many volumes are scheduled elsewhere, or fewer where the node's reserved
    /// ports do not suffice.
    pub volumes_max: u32,
    /// Connections of the usual mount (`nconnect`): each takes a reserved port.
    pub connections_per_volume: u32,
}

pub struct NodeService<M, E> {
    agent: Arc<NodeAgent<M, E>>,
    info: NodeInfo,
    unlock: Arc<dyn Unlock>,
}

impl<M: Mounter, E: Endpoints> NodeService<M, E> {
    /// `unlock` checks the secrets of requests.
    pub fn new(agent: Arc<NodeAgent<M, E>>, info: NodeInfo, unlock: Arc<dyn Unlock>) -> Self {
        Self { agent, info, unlock }
    }

    /// The volume of an id: one of ours, or kubelet's of an inline volume that is mounted here.
    fn volume(&self, id: &str) -> Result<VolumeHandle, RequestError> {
        required_id(id)?;
        let Ok(inline) = id.parse::<EphemeralId>() else { return volume_id(id) };
        self.agent.ephemeral(&inline).ok_or_else(|| {
            RequestError::NotFound(format!("inline volume {id} is not mounted here"))
        })
    }

    /// Returns a volume and its path. A field that is missing is reported before a volume that is
    /// not found, as csi-sanity asks.
    fn volume_at(&self, id: &str, path: &str) -> Result<(VolumeHandle, PathBuf), RequestError> {
        required_id(id)?;
        let at = volume_path(path)?;
        Ok((self.volume(id)?, at))
    }

    async fn publish_ephemeral(
        &self,
        request: NodePublishVolumeRequest,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        required_id(&request.volume_id)?;
        let target = path("target_path", &request.target_path)?;
        let wanted = ephemeral::publish(&request, target)?;
        // The author of the pod names them, who must not open a pool for others.
        if !request.secrets.is_empty() {
            let why = "an inline volume takes no secrets: leave out nodePublishSecretRef";
            return Err(invalid(why).into());
        }
        let agent = self.agent.clone();
        let about = format!("inline volume {} at {}", wanted.id, wanted.target.display());
        let work = async move { agent.publish_ephemeral(wanted).await };
        run("NodePublishVolume", about, work).await?;
        ok(NodePublishVolumeResponse {})
    }

    async fn unpublish_ephemeral(
        &self,
        id: EphemeralId,
        target: PathBuf,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let agent = self.agent.clone();
        let about = format!("inline volume {id} at {}", target.display());
        let work = async move { agent.unpublish_ephemeral(&id, &target).await };
        run("NodeUnpublishVolume", about, work).await?;
        ok(NodeUnpublishVolumeResponse {})
    }
}

/// A path as kubelet gives it: absolute and without detours.
fn path(field: &str, value: &str) -> Result<PathBuf, RequestError> {
    if value.is_empty() {
        return Err(invalid(format!("{field} is missing")));
    }
    let path = Path::new(value);
    let plain = path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !plain || value.len() > PATH_BYTES_MAX || value.contains('\0') {
        let shown: String = value.chars().take(160).collect();
        return Err(invalid(format!(
            "{field} {shown:?} is not an absolute path without `..` of at most {PATH_BYTES_MAX} \
             bytes"
        )));
    }
    // The form in mountinfo: without repeated or trailing slashes.
    Ok(path.components().collect())
}

fn stage(request: &NodeStageVolumeRequest) -> Result<Stage, RequestError> {
    required_id(&request.volume_id)?;
    let target = path("staging_target_path", &request.staging_target_path)?;
    let capability = capability::one(request.volume_capability.as_ref())?;
    let access = if capability.mounts_read_only() { Access::ReadOnly } else { Access::ReadWrite };
    Ok(Stage {
        volume: volume_id(&request.volume_id)?,
        target,
        access,
        options: capability.options,
        group: capability.group,
        ephemeral: None,
    })
}

fn publish(request: &NodePublishVolumeRequest) -> Result<Publish, RequestError> {
    required_id(&request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    let capability = capability::one(request.volume_capability.as_ref())?;
    let volume = volume_id(&request.volume_id)?;
    if request.staging_target_path.is_empty() {
        // CSI: this is not the plugin's to guess (NodePublishVolume errors: staging target path not
        // set).
        return Err(invalid("staging_target_path is missing"));
    }
    let staging = path("staging_target_path", &request.staging_target_path)?;
    let read_only = request.readonly || capability.mounts_read_only();
    let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
    let sharing =
        if capability.single_target() { Sharing::OneTarget } else { Sharing::ManyTargets };
    let Capability { options, group, .. } = capability;
    Ok(Publish { volume, staging, target, access, options, group, sharing })
}

fn required_id(id: &str) -> Result<(), RequestError> {
    if id.is_empty() { Err(invalid("volume_id is missing")) } else { Ok(()) }
}

/// The id and the one path of the calls that have just these.
fn place(id: &str, field: &str, value: &str) -> Result<(VolumeHandle, PathBuf), RequestError> {
    required_id(id)?;
    let path = path(field, value)?;
    Ok((volume_id(id)?, path))
}

/// The path of calls that do not touch it, but only compare it with the volume's: no volume is at
/// an invalid one.
fn volume_path(value: &str) -> Result<PathBuf, RequestError> {
    if value.is_empty() {
        return Err(invalid("volume_path is missing"));
    }
    path("volume_path", value)
        .map_err(|error| RequestError::NotFound(format!("no volume has this id: {error}")))
}

fn usage(unit: Unit, total: u64, free: u64) -> VolumeUsage {
    VolumeUsage {
        available: signed(free),
        total: signed(total),
        used: signed(total.saturating_sub(free)),
        unit: unit.into(),
    }
}

fn volume_entry(condition: &VolumeCondition) -> volume_health::VolumeHealthEntry {
    use VolumeHealthErrorType::{DataLoss, Degraded, Inaccessible};
    let (status, reason) = match condition {
        VolumeCondition::Reopening => (Inaccessible, "Reopening"),
        VolumeCondition::Lost => (Inaccessible, "OwnershipLost"),
        VolumeCondition::Damaged(_) => (DataLoss, "DatabaseDamaged"),
        VolumeCondition::StoreRefuses(_) => (Degraded, "StoreRefusesWrites"),
    };
    volume_health::VolumeHealthEntry {
        status: status.into(),
        reason: reason.to_owned(),
        message: condition.to_string(),
    }
}

fn backend_entry(
    condition: &StorageCondition,
) -> node_get_storage_health_response::StorageBackendHealth {
    use StorageHealthErrorType::{StorageDegraded, StorageUnreachable};
    let (status, reason) = match condition {
        StorageCondition::NotOpen(_) => (StorageUnreachable, "PoolNotOpen"),
        StorageCondition::Refuses(_) => (StorageDegraded, "StoreRefusesWrites"),
    };
    node_get_storage_health_response::StorageBackendHealth {
        status: status.into(),
        reason: reason.to_owned(),
        message: condition.to_string(),
        // Volumes of every capability are affected.
        volume_capability: None,
    }
}

#[tonic::async_trait]
impl<M: Mounter, E: Endpoints> NodeApi for NodeService<M, E> {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let wanted = stage(request.get_ref())?;
        unlocked(
            &*self.unlock,
            "NodeStageVolume",
            PoolOf::Id(wanted.volume.pool),
            request.into_inner().secrets,
        )
        .await?;
        let agent = self.agent.clone();
        let about = format!("{} at {}", wanted.volume, wanted.target.display());
        run("NodeStageVolume", about, async move { agent.stage(wanted).await }).await?;
        ok(NodeStageVolumeResponse {})
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let (volume, target) =
            place(&request.volume_id, "staging_target_path", &request.staging_target_path)?;
        let agent = self.agent.clone();
        let about = format!("{volume} at {}", target.display());
        run("NodeUnstageVolume", about, async move { agent.unstage(volume, &target).await })
            .await?;
        ok(NodeUnstageVolumeResponse {})
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        if ephemeral::is_ephemeral(&request.get_ref().volume_context) {
            return self.publish_ephemeral(request.into_inner()).await;
        }
        let wanted = publish(request.get_ref())?;
        let agent = self.agent.clone();
        let about = format!("{} at {}", wanted.volume, wanted.target.display());
        run("NodePublishVolume", about, async move { agent.publish(wanted).await }).await?;
        ok(NodePublishVolumeResponse {})
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        if let Ok(id) = request.volume_id.parse::<EphemeralId>() {
            let target = path("target_path", &request.target_path)?;
            return self.unpublish_ephemeral(id, target).await;
        }
        let (volume, target) = place(&request.volume_id, "target_path", &request.target_path)?;
        let agent = self.agent.clone();
        let about = format!("{volume} at {}", target.display());
        run("NodeUnpublishVolume", about, async move { agent.unpublish(volume, &target).await })
            .await?;
        ok(NodeUnpublishVolumeResponse {})
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let (volume, at) = self.volume_at(&request.volume_id, &request.volume_path)?;
        let agent = self.agent.clone();
        let stat =
            run(
                "NodeGetVolumeStats",
                volume.to_string(),
                async move { agent.stats(volume, &at).await },
            )
            .await?;
        let bytes = usage(Unit::Bytes, stat.total_bytes, stat.free_bytes);
        let inodes = usage(Unit::Inodes, stat.total_inodes, stat.free_inodes);
        ok(NodeGetVolumeStatsResponse { usage: vec![bytes, inodes] })
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        required_id(&request.volume_id)?;
        for (field, value) in [
            ("volume_publish_path", &request.volume_publish_path),
            ("staging_target_path", &request.staging_target_path),
        ] {
            if !value.is_empty() {
                path(field, value)?;
            }
        }
        let volume = self.volume(&request.volume_id)?;
        let conditions = self.agent.health(volume).map_err(|error| crate::rpc::status(&error))?;
        let health_statuses = conditions.iter().map(volume_entry).collect();
        let volume_health = Some(VolumeHealth { volume_id: request.volume_id, health_statuses });
        ok(NodeGetVolumeHealthResponse { volume_health })
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        let backend_health = self.agent.storage_health().iter().map(backend_entry).collect();
        ok(NodeGetStorageHealthResponse { backend_health })
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let (volume, at) = self.volume_at(&request.volume_id, &request.volume_path)?;
        let limit = wanted(request.capacity_range.as_ref())?.limit;
        if request.volume_capability.is_some() {
            capability::one(request.volume_capability.as_ref())?;
        }
        let agent = self.agent.clone();
        let bytes = run("NodeExpandVolume", volume.to_string(), async move {
            agent.expand(volume, &at, limit).await
        })
        .await?;
        ok(NodeExpandVolumeResponse { capacity_bytes: signed(bytes) })
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        use node_service_capability::{Rpc as RpcMessage, Type};
        let capability = |rpc: Rpc| NodeServiceCapability {
            r#type: Some(Type::Rpc(RpcMessage { r#type: rpc.into() })),
        };
        ok(NodeGetCapabilitiesResponse { capabilities: CAPABILITIES.map(capability).to_vec() })
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        ok(NodeGetInfoResponse {
            node_id: self.info.id.clone(),
            max_volumes_per_node: i64::from(
                self.agent.volumes_max(self.info.volumes_max, self.info.connections_per_volume),
            ),
            // Every node reaches every pool.
            accessible_topology: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        assert_eq!(path("p", "/var//lib/kubelet/").unwrap(), PathBuf::from("/var/lib/kubelet"));
        for bad in ["", "relative", "./x", "/a/../b", "/a\0b", &format!("/{}", "x".repeat(4096))] {
            assert!(matches!(path("p", bad), Err(RequestError::Invalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn usage_never_underflows() {
        let usage = usage(Unit::Bytes, 10, 20);
        assert_eq!((usage.total, usage.used, usage.available), (10, 0, 20));
        assert_eq!(super::usage(Unit::Inodes, u64::MAX, 0).total, i64::MAX);
    }
}
