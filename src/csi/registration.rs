//! Kubelet's plugin registration, served by the driver itself.
//!
//! The stock registrar unlinks its socket when it is stopped: in a rolling update the old pod would
//! unregister the new one. Here the socket is made under another name and renamed over the old one,
//! and on the way out it is unlinked only if it is still ours. CSINode never loses the driver.
//!
//! Kubelet dials the socket with its path as gRPC target and sets no authority, so that grpc-go
//! sends the percent-encoded path as `:authority`. The `http` crate refuses a percent sign there,
//! and h2 resets the stream, unless it stands in the user information, before an `@`: hence the `@`
//! in the socket's name.

use super::proto::registration::registration_server::{Registration, RegistrationServer};
use super::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use crate::rpc::{self, Living, Name};
use parking_lot::Mutex;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// The driver's registration, as kubelet asks for it.
#[derive(Clone, Debug)]
pub struct Registrar {
    pub driver: String,
    /// The socket's folder, as this process sees it: `<kubeletDir>/plugins_registry`.
    pub registry_dir: PathBuf,
    /// The CSI socket, as kubelet sees it: `<kubeletDir>/plugins/<driver>/csi.sock`.
    pub endpoint: PathBuf,
    /// The answer of kubelet.
    pub state: RegistrationState,
}

/// The state of the driver's registration, as kubelet reported it last. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RegistrationState(Arc<Mutex<Answer>>);

#[derive(Debug, Default)]
enum Answer {
    #[default]
    Nothing,
    Registered,
    Refused(String),
}

impl RegistrationState {
    /// Why pods of this node cannot use the driver; `None`: kubelet has registered it.
    pub fn missing(&self) -> Option<String> {
        match &*self.0.lock() {
            Answer::Registered => None,
            Answer::Nothing => Some(
                "kubelet has not registered the driver yet: if this lasts, check kubelet's log"
                    .to_owned(),
            ),
            Answer::Refused(why) => {
                Some(format!("kubelet refused to register the driver and retries: {why}"))
            }
        }
    }

    pub fn is_registered(&self) -> bool {
        self.missing().is_none()
    }

    fn set(&self, answer: Answer) {
        *self.0.lock() = answer;
    }
}

/// The socket that kubelet finds.
pub struct Registering {
    listener: UnixListener,
    name: Arc<Name>,
}

/// The same, for the process that takes over.
pub struct RegistrationSocket {
    listener: OwnedFd,
    name: Arc<Name>,
}

impl RegistrationSocket {
    pub fn path(&self) -> &Path {
        self.name.path()
    }

    /// The name stays when this process ends.
    pub fn give(self) -> OwnedFd {
        self.name.give();
        self.listener
    }
}

impl Registering {
    /// # Errors
    /// Out of file descriptors.
    pub fn socket(&self) -> std::io::Result<RegistrationSocket> {
        Ok(RegistrationSocket {
            listener: self.listener.as_fd().try_clone_to_owned()?,
            name: self.name.clone(),
        })
    }
}

impl Registrar {
    pub fn path(&self) -> PathBuf {
        self.registry_dir.join(format!("{}@reg.sock", self.driver))
    }

    /// Makes the socket. `inherited`: that of the process before this one, with its name, by which
    /// kubelet has registered the driver: kubelet does not even notice then, where a new socket
    /// would have it forget the driver and learn of it again.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(&self, inherited: Option<OwnedFd>) -> std::io::Result<Registering> {
        rpc::check_dir(&self.registry_dir)?;
        let path = self.path();
        if let Some(fd) = inherited
            && let Ok(name) = Name::of(&path)
        {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            self.state.set(Answer::Registered);
            return Ok(Registering {
                listener: UnixListener::from_std(listener)?,
                name: Arc::new(name),
            });
        }
        self.state.set(Answer::Nothing);
        let (listener, name) = rpc::bind(&path, Living::Replace)?;
        tracing::info!(
            socket = %path.display(),
            endpoint = %self.endpoint.display(),
            "waiting for kubelet to register the driver"
        );
        Ok(Registering { listener, name: Arc::new(name) })
    }

    /// Registers until `shutdown`.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve(
        self,
        registering: Registering,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        let Registering { listener, name } = registering;
        let router = tonic::transport::Server::builder().add_service(RegistrationServer::new(self));
        let served = router
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                shutdown.cancelled_owned(),
            )
            .await;
        drop(name);
        served.map_err(std::io::Error::other)
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
            tracing::info!(driver = self.driver, "kubelet registered the driver");
            self.state.set(Answer::Registered);
        } else {
            tracing::error!(
                driver = self.driver,
                error = status.error,
                "kubelet refused to register the driver and retries; pods of this node cannot \
                 use it meanwhile"
            );
            self.state.set(Answer::Refused(status.error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
