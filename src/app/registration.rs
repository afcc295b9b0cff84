//! The registration with kubelet.

use super::handover::{Listening, Service, Sockets};
use super::lifecycle::Lifecycle;
use crate::csi::{Registrar, RegistrationSocket, RegistrationState};
use anyhow::Context;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The registration with kubelet, and its socket until that is handed over.
#[derive(Default)]
pub(super) struct Registration {
    pub(super) state: RegistrationState,
    socket: Mutex<Option<RegistrationSocket>>,
}

impl Registration {
    /// The socket for the next process. A socket through which kubelet has not registered the
    /// driver is not handed over: the next process creates a new one, and kubelet starts over.
    pub(super) fn take(&self) -> Option<Listening> {
        let socket = self.socket.lock().take().filter(|_| self.state.is_registered())?;
        let path = socket.path().to_owned();
        Some(Listening::on_path(Service::Registration, path, socket.give()))
    }

    /// Makes the driver known to kubelet. A failure stops the process.
    pub(super) fn register(
        &self,
        registrar: Registrar,
        lifecycle: &Lifecycle,
        sockets: &Sockets,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let inherited = sockets.take_path(Service::Registration, &registrar.path());
        let registering = registrar.listen(inherited).context("kubelet's registration folder")?;
        *self.socket.lock() = Some(registering.socket()?);
        let serve = registrar.serve(registering, lifecycle.services.clone());
        lifecycle.service_tasks.spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(
                    %error,
                    "kubelet cannot register the driver; check the registration folder; stopping"
                );
                stop.cancel();
            }
        });
        Ok(())
    }
}
