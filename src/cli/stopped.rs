//! Lists that are printed while they are found, and how they end before they are complete.

use super::exit::Interrupted;
use super::remote::MaybeBusy;
use crate::admin::ClientError;
use crate::control::ControlError;
use crate::types::{Class, Classify};
use std::io::ErrorKind;
use tokio_util::sync::CancellationToken;

/// The reason why a list is not complete.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error(transparent)]
    Failed(#[from] ControlError),
    #[error(transparent)]
    Server(#[from] ClientError),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
    #[error("writing the output: {0}")]
    Output(#[from] std::io::Error),
    #[error("stopped by a signal")]
    Signal,
}

impl MaybeBusy for Stopped {
    fn is_busy(&self) -> bool {
        matches!(self, Self::Server(error) if error.is_busy())
    }
}

impl Stopped {
    /// Finds and prints until all is done or a signal arrives.
    pub async fn unless<T>(
        stop: &CancellationToken,
        work: impl Future<Output = Result<T, Self>>,
    ) -> Result<T, Self> {
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Self::Signal),
            done = work => done,
        }
    }

    /// Whether a server says that what was asked about does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Server(error) if error.class() == Class::NotFound)
    }

    /// The error with which the command ends. `next`: advice after a signal.
    pub fn end(self, next: &'static str) -> anyhow::Result<()> {
        match self {
            // The reader of the pipe has seen enough.
            Self::Output(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            Self::Output(error) => Err(error.into()),
            Self::Failed(error) => Err(error.into()),
            Self::Server(error) => Err(error.into()),
            Self::Other(error) => Err(error),
            Self::Signal => Err(Interrupted::new(next)),
        }
    }
}
