//! Kubelet's plugin registration, served by the driver itself.
//!
//! The stock registrar unlinks its socket when it is stopped: in a rolling update the old pod would unregister the new one.
//! Here the socket is made under another name and renamed over the old one, and on the way out it is unlinked only if it is
//! still ours. CSINode never loses the driver.

use super::proto::registration::registration_server::{Registration, RegistrationServer};
use super::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use super::socket::{self, Living};
use std::path::PathBuf;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// What kubelet is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registrar {
    pub driver: String,
    /// The socket's folder, as this process sees it: `<kubeletDir>/plugins_registry`.
    pub registry_dir: PathBuf,
    /// The CSI socket, as kubelet sees it: `<kubeletDir>/plugins/<driver>/csi.sock`.
    pub endpoint: PathBuf,
}

impl Registrar {
    /// Registers until `shutdown`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn serve(self, shutdown: CancellationToken) -> std::io::Result<()> {
        socket::check_dir(&self.registry_dir)?;
        let path = self.registry_dir.join(format!("{}-reg.sock", self.driver));
        let (listener, _name) = socket::bind(&path, Living::Replace)?;
        tracing::info!(socket = %path.display(), endpoint = %self.endpoint.display(), "kubelet may register the driver");
        tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(self))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled_owned())
            .await
            .map_err(std::io::Error::other)
    }
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            // Kubelet's word for CSI 1.x.
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.driver, "kubelet has registered the driver");
        } else {
            tracing::error!(
                driver = self.driver,
                error = status.error,
                "kubelet refused the driver: it tries again when the socket is made anew"
            );
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
