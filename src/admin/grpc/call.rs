//! One call: whom it is from, its limits, and what it may do.

use super::super::access::{Access, Authenticated, Peer};
use super::super::auth::{Action, Caller, NoPlace, Place, Places, Resource, audit, share_of_one};
use super::super::problem::Problem;
use super::super::strangers::Connection;
use crate::control::ControlError;
use crate::control::browse::DatasetFacts;
use crate::rpc::status;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::Status;

/// Calls at once, streams included.
const CALLS_MAX: usize = 256;
/// The longest that a call takes to answer, or to begin its stream, whatever deadline it has.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The same for a call that measures a pool.
const MEASURE_LIMIT: Duration = Duration::from_secs(600);
/// The longest that a stream lasts.
const STREAM_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// Methods that take long or much memory.
const WORK: [&str; 5] = ["Diff", "FileHistory", "Find", "GetSpace", "SimulatePolicy"];
/// The header of a call's deadline.
const TIMEOUT_HEADER: &str = "grpc-timeout";

/// The result of a method.
pub(super) type RpcResult<T> = Result<tonic::Response<T>, Status>;

/// Admits calls: who may do what, and how many at once.
pub(super) struct CallAdmission {
    access: Arc<Access>,
    calls: Places,
    /// One pool is measured at a time.
    pub measuring: Semaphore,
}

/// A call that was let in. It holds its place among the calls while it lives.
#[derive(Clone)]
pub(super) struct Call {
    known: Authenticated,
    /// When its stream ends.
    pub deadline: Instant,
    _place: Arc<Place>,
    _work: Option<Arc<Place>>,
}

impl Call {
    pub fn known(&self) -> &Authenticated {
        &self.known
    }

    pub fn caller(&self) -> &Caller {
        &self.known.caller
    }
}

impl CallAdmission {
    pub fn new(access: Arc<Access>) -> Self {
        let calls = Places::new("calls in progress", CALLS_MAX, share_of_one(CALLS_MAX));
        Self { access, calls, measuring: Semaphore::new(1) }
    }

    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// The place of a call, and a second one if it takes long or much memory.
    fn places(&self, caller: &Caller, method: &str) -> Result<(Place, Option<Place>), NoPlace> {
        let place = self.calls.take(caller)?;
        let work = WORK.contains(&method).then(|| self.access.limits.work.take(caller));
        Ok((place, work.transpose()?))
    }

    /// Takes the call of a request.
    pub fn call<T>(request: &tonic::Request<T>) -> Result<Call, Status> {
        let call = request.extensions().get::<Call>().cloned();
        call.ok_or_else(|| Status::internal("the call was not let in; this is a defect"))
    }

    /// # Errors
    /// `PERMISSION_DENIED`, with the role that is needed.
    pub async fn allow(
        &self,
        call: &Call,
        action: Action,
        resource: &Resource,
    ) -> Result<(), Status> {
        let allowed = self.access.authorizer.allow(&call.known.caller, action, resource).await;
        allowed.map_err(|denied| status(&denied))
    }

    /// Whether a name may be shown to the caller.
    pub async fn shows(&self, call: &Call, resource: &Resource) -> bool {
        self.allow(call, Action::List, resource).await.is_ok()
    }

    /// As [`Access::known_facts`].
    pub async fn known_facts(&self, call: &Call, pool: &str, facts: DatasetFacts) -> DatasetFacts {
        self.access.known_facts(&call.known.caller, pool, facts).await
    }

    /// The entry of this call in the audit log.
    pub fn audit(
        &self,
        call: &Call,
        action: Action,
        what: &'static str,
        object: String,
    ) -> audit::Audited {
        audit::begin(&call.known.caller, call.known.peer.at, action, what, object)
    }

    /// Runs a change to its end even when its caller goes away, with an entry in the audit log.
    pub async fn change<T: Send + 'static>(
        &self,
        call: &Call,
        action: Action,
        (what, object): (&'static str, String),
        work: impl Future<Output = Result<T, ControlError>> + Send + 'static,
    ) -> Result<T, Status> {
        let (audited, call) = (self.audit(call, action, what, object), call.clone());
        let task = tokio::spawn(async move {
            let done = work.await;
            audited.end(&done);
            drop(call);
            done
        });
        match task.await {
            Ok(done) => done.map_err(|error| status(&error)),
            Err(error) => {
                tracing::error!(what, %error, "a call ended without an answer; please report it");
                Err(Status::internal(format!("{what} ended without an answer")))
            }
        }
    }
}

/// Identifies the caller, gives the call a place, and ends it when it takes too long.
pub(super) async fn admit(
    State(admission): State<Arc<CallAdmission>>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().copied().unwrap_or_default();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let headers = request.headers();
    if let Err(problem) = admission.access.check_host(peer, &uri, headers) {
        return refused(&problem);
    }
    let known = match admission.access.identify(peer, &method, &uri, headers).await {
        Ok(known) => known,
        Err(problem) => return refused(&problem),
    };
    let asked = timeout_of(headers);
    let method = uri.path().rsplit('/').next().unwrap_or_default();
    let places = Connection::identified_by(request.extensions(), &known.caller)
        .and_then(|()| admission.places(&known.caller, method));
    let (place, work) = match places {
        Ok((place, work)) => (Arc::new(place), work.map(Arc::new)),
        Err(full) => return status(&full).into_http(),
    };
    let now = Instant::now();
    // A place among the few is not for a stream that nobody reads.
    let longest = if work.is_some() { MEASURE_LIMIT } else { STREAM_LIMIT };
    let deadline = now + asked.unwrap_or(longest).min(longest);
    let limit = if method == "GetSpace" { MEASURE_LIMIT } else { ANSWER_LIMIT };
    let call = Call { known, deadline, _place: place, _work: work };
    request.extensions_mut().insert(call);
    match tokio::time::timeout_at(deadline.min(now + limit), next.run(request)).await {
        Ok(response) => response,
        Err(_) => late().into_http(),
    }
}

/// The answer to a call whose deadline has passed.
pub(super) fn late() -> Status {
    Status::deadline_exceeded(
        "not done in time: retry with a longer deadline, or ask for less at once",
    )
}

fn refused(problem: &Problem) -> Response {
    let why = problem.detail().to_owned();
    let refused = match problem.status() {
        StatusCode::UNAUTHORIZED => Status::unauthenticated(why),
        StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => Status::permission_denied(why),
        StatusCode::TOO_MANY_REQUESTS => Status::resource_exhausted(why),
        StatusCode::BAD_REQUEST => Status::invalid_argument(why),
        _ => Status::unavailable(why),
    };
    refused.into_http()
}

/// The time that the caller gives the call: up to eight digits and a unit.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT_HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 60 * 60),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_those_of_the_protocol() {
        let of = |text: &str| {
            timeout_of(
                &[(TIMEOUT_HEADER.parse().unwrap(), text.parse().unwrap())].into_iter().collect(),
            )
        };
        assert_eq!(of("5S"), Some(Duration::from_secs(5)));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "5", "S", "5x", "123456789S", "-1S"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
