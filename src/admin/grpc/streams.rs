//! Streams of answers: they hold what they read from, and end with their caller or their deadline.

use super::call::{Call, late};
use crate::control::ControlError;
use crate::rpc::status;
use futures::{Stream, StreamExt, stream};
use std::pin::Pin;
use tonic::Status;

/// The answers of a call.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Ends a stream with its first error, and at the deadline of its call. `held`: dropped with the
/// stream.
pub(super) fn answers<T: Send + 'static>(
    call: Call,
    held: impl Send + 'static,
    inner: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Answers<T> {
    let state = (Box::pin(inner), Some((call, held)));
    Box::pin(stream::unfold(state, async |(mut inner, held)| {
        let (call, held) = held?;
        match tokio::time::timeout_at(call.deadline, inner.next()).await {
            Ok(Some(Ok(item))) => Some((Ok(item), (inner, Some((call, held))))),
            Ok(Some(Err(error))) => Some((Err(error), (inner, None))),
            Ok(None) => None,
            Err(_) => Some((Err(late()), (inner, None))),
        }
    }))
}

/// The outcome of a task of this process, for the end of a stream.
pub(super) fn ended<T>(
    joined: Result<Result<T, ControlError>, tokio::task::JoinError>,
) -> Result<T, Status> {
    match joined {
        Ok(done) => done.map_err(|error| status(&error)),
        Err(error) => {
            tracing::error!(%error, "a stream ended without a result; please report it");
            Err(Status::internal("the work ended without a result"))
        }
    }
}
