//! The Controller service: translates, never decides.

use super::capability::{self, Capability};
use super::capacity::{signed, wanted};
use super::convert::{required, snapshot, snapshot_id, volume_id};
use super::group::GroupControllerService;
use super::proto::v1::controller_server::Controller as ControllerApi;
use super::proto::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use super::proto::v1::*;
use super::status::{RequestError, invalid, ok, run, unlocked};
use super::{page, parameters};
use crate::catalog::Form;
use crate::control::secrets::{PoolOf, Unlock};
use crate::control::{Controller, NewVolume, SIZE_MAX, SIZE_MIN, SnapshotInfo, Source, VolumeInfo};
use crate::types::{DatasetName, SnapshotHandle, SnapshotName, VolumeHandle};
use controller_service_capability::rpc::Type as Rpc;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The capabilities of this service. Not the health of volumes: their nodes tell it.
const CAPABILITIES: [Rpc; 11] = [
    Rpc::CreateDeleteVolume,
    Rpc::ListVolumes,
    Rpc::GetCapacity,
    Rpc::CreateDeleteSnapshot,
    Rpc::ListSnapshots,
    Rpc::CloneVolume,
    Rpc::ExpandVolume,
    Rpc::GetVolume,
    Rpc::SingleNodeMultiWriter,
    Rpc::GetSnapshot,
    Rpc::ModifyVolume,
];

/// Only the process that has a volume open knows whether it is well.
const HEALTH_ELSEWHERE: &str =
    "the controller does not know the health of volumes: ask the node plugin of their node";

pub struct ControllerService {
    controller: Arc<Controller>,
    unlock: Arc<dyn Unlock>,
}

impl ControllerService {
    /// `unlock` checks the secrets of requests.
    pub fn new(controller: Arc<Controller>, unlock: Arc<dyn Unlock>) -> Self {
        Self { controller, unlock }
    }

    /// The GroupController service of the same controller.
    pub(super) fn groups(&self) -> GroupControllerService {
        GroupControllerService::new(self.controller.clone(), self.unlock.clone())
    }

    /// The volume of an id, which must be given; a foreign one does not exist.
    async fn known(&self, call: &'static str, id: &str) -> Result<VolumeInfo, Status> {
        let handle = volume_id(id)?;
        let controller = self.controller.clone();
        run(call, handle.to_string(), async move { controller.volume(handle).await }).await
    }
}

fn source(from: Option<&VolumeContentSource>) -> Result<Option<Source>, RequestError> {
    let Some(from) = from else { return Ok(None) };
    match &from.r#type {
        Some(SourceType::Snapshot(SnapshotSource { snapshot_id: id })) => {
            Ok(Some(Source::Snapshot(snapshot_id(id)?)))
        }
        Some(SourceType::Volume(VolumeSource { volume_id: id })) => {
            Ok(Some(Source::Volume(volume_id(id)?)))
        }
        None => Err(invalid("volume_content_source names neither a snapshot nor a volume")),
    }
}

/// The pool's name and the volume wanted.
fn new_volume(request: &CreateVolumeRequest) -> Result<(Option<String>, NewVolume), RequestError> {
    let name: DatasetName = required("name", &request.name)?
        .parse()
        .map_err(|error| invalid(format!("name: {error}")))?;
    let capabilities = capability::all(&request.volume_capabilities)?;
    let size = wanted(request.capacity_range.as_ref())?;
    let mut parameters = parameters::parse(&request.parameters)?;
    parameters::changes(&request.mutable_parameters)?.apply_to(&mut parameters.properties);
    let source = source(request.volume_content_source.as_ref())?;
    // Without a writer the volume can be the snapshot itself, on any number of nodes.
    let reads = capabilities.iter().all(Capability::reads_only)
        && matches!(source, Some(Source::Snapshot(_)));
    let new = NewVolume {
        name,
        size: size.size,
        size_limit: size.limit,
        source,
        properties: parameters.properties,
        access_modes: capability::mode_names(&capabilities),
        form: if reads { Form::Snapshot } else { Form::Writable },
        parameters: parameters.given,
    };
    Ok((parameters.pool, new))
}

/// Every volume can be reached from every node: no topology.
fn volume(info: &VolumeInfo, content_source: Option<VolumeContentSource>) -> Volume {
    Volume {
        capacity_bytes: info.dataset.size.map_or(0, signed),
        volume_id: info.handle.to_string(),
        volume_context: Default::default(),
        content_source,
        accessible_topology: Vec::new(),
    }
}

/// The snapshot that a volume was made from. That of a clone of a volume is not reported: no caller
/// can use it.
fn origin(info: &VolumeInfo) -> Option<VolumeContentSource> {
    let snapshot = SnapshotHandle { pool: info.handle.pool, snapshot: info.dataset.origin? };
    Some(VolumeContentSource {
        r#type: Some(SourceType::Snapshot(SnapshotSource { snapshot_id: snapshot.to_string() })),
    })
}

#[tonic::async_trait]
impl ControllerApi for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let (pool, new) = new_volume(&request)?;
        unlocked(&*self.unlock, "CreateVolume", PoolOf::Name(pool.clone()), request.secrets)
            .await?;
        let controller = self.controller.clone();
        let about = format!("{} in pool {}", new.name, pool.as_deref().unwrap_or("(default)"));
        let create = async move { controller.create_volume(pool.as_deref(), new).await };
        let info = run("CreateVolume", about, create).await?;
        ok(CreateVolumeResponse { volume: Some(volume(&info, request.volume_content_source)) })
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let DeleteVolumeRequest { volume_id: id, secrets } = request.into_inner();
        required("volume_id", &id)?;
        // CSI: deleting what does not exist succeeds.
        let Ok(handle) = volume_id(&id) else { return ok(DeleteVolumeResponse {}) };
        unlocked(&*self.unlock, "DeleteVolume", PoolOf::Id(handle.pool), secrets).await?;
        let controller = self.controller.clone();
        run("DeleteVolume", handle.to_string(), async move {
            Box::pin(controller.delete_volume(handle)).await
        })
        .await?;
        ok(DeleteVolumeResponse {})
    }

    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        Err(Status::unimplemented(
            "volumes are not attached: set attachRequired to false in the CSIDriver",
        ))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        Err(Status::unimplemented(
            "volumes are not attached: set attachRequired to false in the CSIDriver",
        ))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        required("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(invalid("volume_capabilities is empty").into());
        }
        let info = self.known("ValidateVolumeCapabilities", &request.volume_id).await?;
        let checked = capability::all(&request.volume_capabilities)
            .and_then(|modes| same_use(&info, &modes, &request));
        ok(match checked {
            Ok(()) => confirmed(request),
            // CSI: "not confirmed" is an answer, not an error.
            Err(why) => {
                ValidateVolumeCapabilitiesResponse { confirmed: None, message: why.to_string() }
            }
        })
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let request = request.into_inner();
        // A bad token is refused before anything is read.
        page::cut::<VolumeHandle, VolumeHandle>(
            Vec::new(),
            ToString::to_string,
            &request.starting_token,
            request.max_entries,
        )?;
        let controller = self.controller.clone();
        let all =
            run("ListVolumes", String::new(), async move { controller.volumes().await }).await?;
        let id = |info: &VolumeInfo| info.handle.to_string();
        let (entries, next_token) =
            page::cut::<_, VolumeHandle>(all, id, &request.starting_token, request.max_entries)?;
        let entry = |info: &VolumeInfo| list_volumes_response::Entry {
            volume: Some(volume(info, origin(info))),
            status: None,
        };
        ok(ListVolumesResponse { entries: entries.iter().map(entry).collect(), next_token })
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let request = request.into_inner();
        let capabilities = &request.volume_capabilities;
        let fits = capabilities.is_empty() || capability::all(capabilities).is_ok();
        let pool = parameters::pool(&request.parameters).map(str::to_owned);
        let controller = self.controller.clone();
        let about = format!("pool {}", pool.as_deref().unwrap_or("(default)"));
        let free =
            run("GetCapacity", about, async move { controller.capacity(pool.as_deref()).await })
                .await?;
        // An object store reports no capacity: the size limit of a volume is then the only bound.
        let available = if fits { free.unwrap_or(SIZE_MAX) } else { 0 };
        ok(GetCapacityResponse {
            available_capacity: signed(available),
            maximum_volume_size: Some(signed(SIZE_MAX)),
            minimum_volume_size: Some(signed(SIZE_MIN)),
        })
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        use controller_service_capability::{Rpc as RpcMessage, Type};
        let capability = |rpc: Rpc| ControllerServiceCapability {
            r#type: Some(Type::Rpc(RpcMessage { r#type: rpc.into() })),
        };
        ok(ControllerGetCapabilitiesResponse {
            capabilities: CAPABILITIES.map(capability).to_vec(),
        })
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let name = required("name", &request.name)?;
        let name: SnapshotName = name.parse().map_err(|error| invalid(format!("name: {error}")))?;
        required("source_volume_id", &request.source_volume_id)?;
        parameters::none(&request.parameters)?;
        let of = volume_id(&request.source_volume_id)?;
        unlocked(&*self.unlock, "CreateSnapshot", PoolOf::Id(of.pool), request.secrets).await?;
        let controller = self.controller.clone();
        let about = format!("{name} of {of}");
        // CSI: a snapshot's name is unique in the whole driver, not only in its volume.
        let info =
            run(
                "CreateSnapshot",
                about,
                async move { controller.create_csi_snapshot(of, name).await },
            )
            .await?;
        ok(CreateSnapshotResponse { snapshot: Some(snapshot(&info)) })
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let DeleteSnapshotRequest { snapshot_id: id, secrets } = request.into_inner();
        required("snapshot_id", &id)?;
        let Ok(handle) = snapshot_id(&id) else { return ok(DeleteSnapshotResponse {}) };
        unlocked(&*self.unlock, "DeleteSnapshot", PoolOf::Id(handle.pool), secrets).await?;
        let controller = self.controller.clone();
        run("DeleteSnapshot", handle.to_string(), async move {
            controller.delete_snapshot(handle).await
        })
        .await?;
        ok(DeleteSnapshotResponse {})
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let (token, max) = (&request.starting_token, request.max_entries);
        page::cut::<SnapshotHandle, SnapshotHandle>(Vec::new(), ToString::to_string, token, max)?;
        let found = self.find_snapshots(&request).await?;
        let id = |info: &SnapshotInfo| info.handle.to_string();
        let (entries, next_token) = page::cut::<_, SnapshotHandle>(found, id, token, max)?;
        let entry =
            |info: &SnapshotInfo| list_snapshots_response::Entry { snapshot: Some(snapshot(info)) };
        ok(ListSnapshotsResponse { entries: entries.iter().map(entry).collect(), next_token })
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        let handle = snapshot_id(&request.into_inner().snapshot_id)?;
        let controller = self.controller.clone();
        let info =
            run(
                "GetSnapshot",
                handle.to_string(),
                async move { controller.snapshot(handle).await },
            )
            .await?;
        ok(GetSnapshotResponse { snapshot: Some(snapshot(&info)) })
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        required("volume_id", &request.volume_id)?;
        if request.volume_capability.is_some() {
            capability::one(request.volume_capability.as_ref())?;
        }
        let size = wanted(request.capacity_range.as_ref())?;
        let bytes = size.size.ok_or_else(|| invalid("capacity_range.required_bytes is missing"))?;
        let handle = volume_id(&request.volume_id)?;
        unlocked(&*self.unlock, "ControllerExpandVolume", PoolOf::Id(handle.pool), request.secrets)
            .await?;
        let controller = self.controller.clone();
        let about = format!("{handle} to {bytes} bytes");
        let now = run("ControllerExpandVolume", about, async move {
            controller.expand_volume(handle, bytes, size.limit).await
        })
        .await?;
        // The node that has it open gets the new quota by NodeExpandVolume.
        ok(ControllerExpandVolumeResponse {
            capacity_bytes: signed(now),
            node_expansion_required: true,
        })
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let info = self.known("ControllerGetVolume", &request.into_inner().volume_id).await?;
        let owner = info.dataset.owner.iter().map(|owner| owner.node.clone()).collect();
        let status = controller_get_volume_response::VolumeStatus { published_node_ids: owner };
        ok(ControllerGetVolumeResponse {
            volume: Some(volume(&info, origin(&info))),
            status: Some(status),
        })
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<ControllerListVolumeHealthRequest>,
    ) -> Result<Response<ControllerListVolumeHealthResponse>, Status> {
        Err(Status::unimplemented(HEALTH_ELSEWHERE))
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<ControllerGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented(HEALTH_ELSEWHERE))
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        let ControllerModifyVolumeRequest { volume_id: id, secrets, mutable_parameters } =
            request.into_inner();
        let volume = volume_id(&id)?;
        let changes = parameters::changes(&mutable_parameters)?;
        unlocked(&*self.unlock, "ControllerModifyVolume", PoolOf::Id(volume.pool), secrets).await?;
        let controller = self.controller.clone();
        run("ControllerModifyVolume", volume.to_string(), async move {
            controller.set_properties(volume, changes).await
        })
        .await?;
        ok(ControllerModifyVolumeResponse {})
    }
}

impl ControllerService {
    /// Lists by snapshot, by volume, or all. An unknown id gives an empty list.
    async fn find_snapshots(
        &self,
        request: &ListSnapshotsRequest,
    ) -> Result<Vec<SnapshotInfo>, Status> {
        let controller = self.controller.clone();
        if !request.snapshot_id.is_empty() {
            let Ok(handle) = snapshot_id(&request.snapshot_id) else { return Ok(Vec::new()) };
            let found = run("ListSnapshots", handle.to_string(), async move {
                controller.snapshot(handle).await
            })
            .await;
            return match found {
                Ok(info) => Ok(vec![info]),
                Err(status) if status.code() == tonic::Code::NotFound => Ok(Vec::new()),
                Err(status) => Err(status),
            };
        }
        let of = match request.source_volume_id.as_str() {
            "" => None,
            id => match volume_id(id) {
                Ok(handle) => Some(handle),
                Err(_) => return Ok(Vec::new()),
            },
        };
        let about = of.map(|handle| handle.to_string()).unwrap_or_default();
        let found =
            run("ListSnapshots", about, async move { controller.snapshots(of).await }).await;
        match found {
            Err(status) if status.code() == tonic::Code::NotFound => Ok(Vec::new()),
            found => found,
        }
    }
}

/// The capabilities must be those that the volume was created for.
fn same_use(
    info: &VolumeInfo,
    capabilities: &[Capability],
    request: &ValidateVolumeCapabilitiesRequest,
) -> Result<(), RequestError> {
    if !request.volume_context.is_empty() {
        return Err(invalid("volume_context: this volume has no context"));
    }
    if !request.parameters.is_empty()
        && parameters::parse(&request.parameters)?.given != info.dataset.parameters
    {
        return Err(invalid("parameters differ from those that the volume was created with"));
    }
    if info.dataset.ephemeral {
        return Err(invalid("it is the inline volume of a pod, and is deleted with that pod"));
    }
    if info.dataset.form == Form::Snapshot && !capabilities.iter().all(Capability::reads_only) {
        return Err(invalid("the volume is a read-only snapshot: use a read-only access mode"));
    }
    // A volume made for one node syncs less eagerly (R15): it must not be used from several.
    let multi_node = |name: &str| name.starts_with("MULTI_NODE");
    let made_for_many = info.dataset.access_modes.iter().any(|mode| multi_node(mode));
    match capabilities
        .iter()
        .map(|capability| capability.mode.as_str_name())
        .find(|mode| multi_node(mode))
    {
        Some(mode) if !made_for_many => Err(invalid(format!(
            "the volume was created for one node: access mode {mode} is not possible"
        ))),
        _ => Ok(()),
    }
}

fn confirmed(request: ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse {
    let confirmed = validate_volume_capabilities_response::Confirmed {
        volume_context: request.volume_context,
        volume_capabilities: request.volume_capabilities,
        parameters: request.parameters,
        mutable_parameters: request.mutable_parameters,
    };
    ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() }
}
