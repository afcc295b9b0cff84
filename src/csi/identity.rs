//! The Identity service.

use super::proto::v1::identity_server::Identity;
use super::proto::v1::plugin_capability::{self, service, volume_expansion};
use super::proto::v1::*;
use super::status::ok;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Asked by each Probe.
pub type IsReady = Arc<dyn Fn() -> bool + Send + Sync>;

/// The driver's name, and whether it can be called yet.
#[derive(Clone)]
pub struct IdentityService {
    /// The driver's name, `zerofs.csi.dev` unless the configuration says otherwise.
    pub driver: String,
    pub with_controller: bool,
    /// False while pools are being opened.
    pub ready: IsReady,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        ok(GetPluginInfoResponse {
            name: self.driver.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        })
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        use plugin_capability::{Service, Type, VolumeExpansion};
        let mut types = Vec::new();
        if self.with_controller {
            for service in [service::Type::ControllerService, service::Type::GroupControllerService]
            {
                types.push(Type::Service(Service { r#type: service.into() }));
            }
        }
        types.push(Type::VolumeExpansion(VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        }));
        let capabilities =
            types.into_iter().map(|kind| PluginCapability { r#type: Some(kind) }).collect();
        ok(GetPluginCapabilitiesResponse { capabilities })
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        ok(ProbeResponse { ready: Some((self.ready)()) })
    }
}
