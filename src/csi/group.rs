//! The GroupController service: snapshots of several volumes at one point in time.

use super::convert::{required, snapshot, snapshot_id, timestamp, volume_id};
use super::parameters;
use super::proto::v1::group_controller_server::GroupController;
use super::proto::v1::*;
use super::status::{RequestError, invalid, ok, run, unlocked};
use crate::control::secrets::{PoolOf, Unlock};
use crate::control::{Controller, GroupInfo};
use crate::types::{GroupHandle, SnapshotHandle, SnapshotName};
use group_controller_service_capability::rpc::Type as Rpc;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(super) struct GroupControllerService {
    controller: Arc<Controller>,
    unlock: Arc<dyn Unlock>,
}

impl GroupControllerService {
    pub(super) fn new(controller: Arc<Controller>, unlock: Arc<dyn Unlock>) -> Self {
        Self { controller, unlock }
    }
}

/// `None`: an id that is none of ours, of a group snapshot that does not exist.
fn group_id(id: &str) -> Result<Option<GroupHandle>, RequestError> {
    Ok(required("group_snapshot_id", id)?.parse().ok())
}

/// The snapshots that the caller takes for the group's. `None`: it names none.
fn named(ids: &[String]) -> Result<Option<Vec<SnapshotHandle>>, RequestError> {
    let named = ids
        .iter()
        .map(|id| snapshot_id(id).map_err(|error| invalid(format!("snapshot_ids: {error}"))));
    let named: Vec<SnapshotHandle> = named.collect::<Result<_, _>>()?;
    Ok(Some(named).filter(|named| !named.is_empty()))
}

fn group(info: &GroupInfo) -> VolumeGroupSnapshot {
    let snapshots: Vec<Snapshot> = info.snapshots.iter().map(snapshot).collect();
    VolumeGroupSnapshot {
        group_snapshot_id: info.handle.to_string(),
        ready_to_use: snapshots.iter().all(|snapshot| snapshot.ready_to_use),
        snapshots,
        creation_time: Some(timestamp(info.created)),
    }
}

#[tonic::async_trait]
impl GroupController for GroupControllerService {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        use group_controller_service_capability::{Rpc as RpcMessage, Type};
        let rpc = RpcMessage { r#type: Rpc::CreateDeleteGetVolumeGroupSnapshot.into() };
        let capability = GroupControllerServiceCapability { r#type: Some(Type::Rpc(rpc)) };
        ok(GroupControllerGetCapabilitiesResponse { capabilities: vec![capability] })
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let request = request.into_inner();
        let name = required("name", &request.name)?;
        let name: SnapshotName = name.parse().map_err(|error| invalid(format!("name: {error}")))?;
        if request.source_volume_ids.is_empty() {
            return Err(invalid("source_volume_ids is empty").into());
        }
        parameters::none(&request.parameters)?;
        let of = request.source_volume_ids.iter().map(|id| volume_id(id));
        let of = of.collect::<Result<Vec<_>, _>>()?;
        let pool = of.first().map(|volume| volume.pool).ok_or_else(|| invalid("no volume"))?;
        unlocked(&*self.unlock, "CreateVolumeGroupSnapshot", PoolOf::Id(pool), request.secrets)
            .await?;
        let controller = self.controller.clone();
        let about = format!("{name} of {} volumes", of.len());
        let info = run("CreateVolumeGroupSnapshot", about, async move {
            Box::pin(controller.create_group_snapshot(&of, name)).await
        })
        .await?;
        ok(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(group(&info)) })
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, secrets } =
            request.into_inner();
        let Some(handle) = group_id(&group_snapshot_id)? else {
            return ok(DeleteVolumeGroupSnapshotResponse {});
        };
        let named = named(&snapshot_ids)?;
        unlocked(&*self.unlock, "DeleteVolumeGroupSnapshot", PoolOf::Id(handle.pool), secrets)
            .await?;
        let controller = self.controller.clone();
        run("DeleteVolumeGroupSnapshot", handle.to_string(), async move {
            controller.delete_group_snapshot(handle, named.as_deref()).await
        })
        .await?;
        ok(DeleteVolumeGroupSnapshotResponse {})
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        let GetVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, secrets } =
            request.into_inner();
        let handle = group_id(&group_snapshot_id)?.ok_or_else(|| {
            RequestError::NotFound(format!("{group_snapshot_id:?}: no such group snapshot"))
        })?;
        let named = named(&snapshot_ids)?;
        unlocked(&*self.unlock, "GetVolumeGroupSnapshot", PoolOf::Id(handle.pool), secrets).await?;
        let controller = self.controller.clone();
        let info = run("GetVolumeGroupSnapshot", handle.to_string(), async move {
            controller.group_snapshot(handle, named.as_deref()).await
        })
        .await?;
        ok(GetVolumeGroupSnapshotResponse { group_snapshot: Some(group(&info)) })
    }
}
