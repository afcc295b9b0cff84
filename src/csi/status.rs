//! Calls and their errors, as gRPC has them.

use crate::control::secrets::{PoolOf, RequestSecrets, Unlock};
use crate::rpc::status;
use crate::types::{Class, Classify};
use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::sync::LazyLock;
use tokio::sync::Semaphore;
use tonic::{Response, Status};

/// Use cases running at once, those whose caller has gone included.
const CALLS_MAX: usize = 256;

static CALLS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(CALLS_MAX));

/// The defects of a request that no use case sees.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    OutOfRange(String),
    #[error("{0}")]
    NotFound(String),
    /// CSI: the caller should start again without a token (ListVolumes, ListSnapshots errors).
    #[error("starting_token {0:?} was not issued by this driver: start over without a token")]
    Token(String),
}

impl Classify for RequestError {
    fn class(&self) -> Class {
        match self {
            Self::Invalid(_) => Class::Invalid,
            Self::OutOfRange(_) => Class::OutOfRange,
            Self::NotFound(_) => Class::NotFound,
            Self::Token(_) => Class::InProgress,
        }
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        status(&error)
    }
}

pub(super) fn invalid(why: impl Into<String>) -> RequestError {
    RequestError::Invalid(why.into())
}

/// Runs a use case to its end even when its caller goes away: half a mount would have no owner.
/// `about` names the object in the log; it never holds secrets.
pub(super) async fn run<T, E>(
    call: &'static str,
    about: String,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, Status>
where
    T: Send + 'static,
    E: Classify + Error + Send + 'static,
{
    let permit =
        CALLS.acquire().await.map_err(|_| Status::unavailable("the driver is stopping"))?;
    let task = tokio::spawn(async move {
        let _permit = permit;
        let started = std::time::Instant::now();
        let result = work.await;
        log(call, &about, started.elapsed(), result.as_ref().err());
        result.map_err(|error| status(&error))
    });
    task.await.unwrap_or_else(|error| {
        tracing::error!(
            call,
            %error,
            "a call ended without an answer; this is a defect, please report it"
        );
        Err(Status::internal(format!("{call} ended without an answer")))
    })
}

/// Judges the secrets of a request before it is done. They go no further than here.
pub(super) async fn unlocked(
    unlock: &dyn Unlock,
    call: &'static str,
    pool: PoolOf,
    secrets: HashMap<String, String>,
) -> Result<(), Status> {
    let judged = match RequestSecrets::new(secrets) {
        Ok(secrets) => unlock.unlock(pool, secrets).await,
        Err(error) => Err(error),
    };
    judged.map_err(|error| {
        tracing::info!(call, %error, "refused");
        status(&error)
    })
}

fn log<E: Classify + Error>(call: &str, about: &str, took: std::time::Duration, error: Option<&E>) {
    let millis = took.as_millis();
    match error.map(|error| (error.class(), status(error))) {
        None => tracing::info!(call, about, millis, "done"),
        Some((Class::Internal | Class::Corrupt, status)) => {
            tracing::error!(call, about, millis, error = status.message(), "failed");
        }
        // For the caller to handle: it retries, waits, or reports it to the user.
        Some((_, status)) => {
            tracing::info!(
                call,
                about,
                millis,
                code = ?status.code(),
                error = status.message(),
                "refused"
            );
        }
    }
}

/// For the short way out of a handler.
pub(super) fn ok<T>(message: T) -> Result<Response<T>, Status> {
    Ok(Response::new(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ControlError;
    use tonic::Code;

    #[test]
    fn an_error_becomes_a_status() {
        let missing = ControlError::NotFound { what: "volume v".into() };
        assert_eq!(
            (status(&missing).code(), status(&missing).message()),
            (Code::NotFound, "volume v does not exist")
        );
        assert_eq!(status(&RequestError::Token("x".into())).code(), Code::Aborted);
    }

    #[tokio::test]
    async fn a_call_whose_caller_goes_away_still_ends() {
        let (done, ended) = tokio::sync::oneshot::channel();
        let (go, held) = tokio::sync::oneshot::channel::<()>();
        let work = async move {
            let _ = held.await;
            let _ = done.send(());
            Ok::<(), RequestError>(())
        };
        let call = tokio::time::timeout(
            std::time::Duration::from_millis(20),
            run("Test", "x".into(), work),
        )
        .await;
        assert!(call.is_err(), "the caller gave up");
        go.send(()).unwrap();
        ended.await.unwrap();
    }
}
