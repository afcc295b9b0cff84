//! Errors as `application/problem+json` (RFC 9457), with the texts that the command line has: the
//! one place where classes become statuses of HTTP.

use super::auth::{Denied, LoginError, NoPlace};
use crate::control::ControlError;
use crate::types::{Class, Classify, with_causes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::error::Error;
use std::time::Duration;

/// When a caller may ask again for a place.
pub const PLACE_AGAIN: Duration = Duration::from_secs(5);

/// An answer that says what is wrong and what to do next.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    headers: Vec<(header::HeaderName, HeaderValue)>,
}

/// The body of a problem.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// A URN that names the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "urn:zerofs-csi:not-found")]
    kind: String,
    title: &'static str,
    status: u16,
    /// For people: the object, the reason and the next step.
    detail: String,
}

impl Problem {
    fn with(status: StatusCode, kind: &'static str, title: &'static str, detail: String) -> Self {
        Self { status, kind, title, detail, headers: Vec::new() }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// For people: the object, the reason and the next step.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// A problem for a class of error.
    pub fn of(class: Class, detail: impl Into<String>) -> Self {
        let (status, kind, title) = status(class);
        let problem = Self::with(status, kind, title, detail.into());
        match class {
            Class::Unavailable => problem.retry_after(Duration::from_secs(5)),
            Class::InProgress => problem.retry_after(Duration::from_secs(1)),
            _ => problem,
        }
    }

    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::of(Class::Invalid, detail)
    }

    /// A problem for the error of a use case.
    pub fn of_error<E: Classify + Error>(error: &E) -> Self {
        if matches!(error.class(), Class::Internal | Class::Corrupt) {
            tracing::error!(error = with_causes(error), "a request failed");
        }
        Self::of(error.class(), with_causes(error))
    }

    /// Nobody knows whom the request is from.
    pub fn unauthenticated(detail: impl Into<String>) -> Self {
        let title = "Not logged in";
        Self::with(StatusCode::UNAUTHORIZED, "unauthenticated", title, detail.into())
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// A request that another site may have made a browser send.
    pub fn foreign(detail: impl Into<String>) -> Self {
        Self::with(StatusCode::FORBIDDEN, "foreign-origin", "Not from this site", detail.into())
    }

    pub fn misdirected(detail: impl Into<String>) -> Self {
        let title = "Unknown host name";
        Self::with(StatusCode::MISDIRECTED_REQUEST, "unknown-host", title, detail.into())
    }

    pub fn too_many(detail: impl Into<String>, after: Duration) -> Self {
        let title = "Too many requests";
        Self::with(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", title, detail.into())
            .retry_after(after)
    }

    pub fn too_slow(detail: impl Into<String>) -> Self {
        let title = "Not done in time";
        Self::with(StatusCode::SERVICE_UNAVAILABLE, "too-slow", title, detail.into())
            .retry_after(Duration::from_secs(10))
    }

    pub fn too_large(detail: impl Into<String>) -> Self {
        let title = "Request too large";
        Self::with(StatusCode::PAYLOAD_TOO_LARGE, "too-large", title, detail.into())
    }

    pub fn no_route(path: &str) -> Self {
        let shown: String = path.chars().take(200).collect();
        let why = format!("{shown} is no path of this interface: see /api/v1/openapi.json");
        Self::of(Class::NotFound, why)
    }

    pub fn no_method() -> Self {
        let why = "the path does not have this method: see /api/v1/openapi.json";
        let title = "Method not allowed";
        Self::with(StatusCode::METHOD_NOT_ALLOWED, "no-method", title, why.to_owned())
    }

    /// A condition of the request does not hold (412).
    pub fn condition_failed() -> Self {
        let why = "the file is no longer the one that the condition names: read it again";
        let title = "Condition failed";
        Self::with(StatusCode::PRECONDITION_FAILED, "condition-failed", title, why.to_owned())
    }

    pub fn no_such_range(size: u64) -> Self {
        let why = format!(
            "the range is outside the file of {size} bytes, or several ranges were asked for: ask \
             for one range within it"
        );
        let problem = Self::with(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "range-not-satisfiable",
            "No such range",
            why,
        );
        match HeaderValue::try_from(format!("bytes */{size}")) {
            Ok(value) => problem.header(header::CONTENT_RANGE, value),
            Err(_) => problem,
        }
    }

    /// Its body.
    pub fn json(self) -> String {
        serde_json::to_string(&ProblemBody::from(self)).unwrap_or_default()
    }

    #[must_use]
    pub fn header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn retry_after(self, after: Duration) -> Self {
        let secs = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        self.header(header::RETRY_AFTER, HeaderValue::from(secs.max(1)))
    }
}

fn status(class: Class) -> (StatusCode, &'static str, &'static str) {
    match class {
        Class::Invalid => (StatusCode::BAD_REQUEST, "invalid", "Invalid request"),
        Class::NotFound => (StatusCode::NOT_FOUND, "not-found", "Not found"),
        Class::Exists => (StatusCode::CONFLICT, "exists", "Already exists"),
        Class::InProgress => (StatusCode::CONFLICT, "in-progress", "In progress"),
        Class::Precondition => (StatusCode::CONFLICT, "precondition", "Precondition failed"),
        Class::OutOfRange => (StatusCode::UNPROCESSABLE_ENTITY, "out-of-range", "Out of range"),
        Class::Exhausted => (StatusCode::INSUFFICIENT_STORAGE, "exhausted", "Limit reached"),
        Class::Denied => (StatusCode::FORBIDDEN, "denied", "Not allowed"),
        Class::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Unavailable"),
        Class::Fenced => (StatusCode::CONFLICT, "fenced", "Another owner has taken over"),
        Class::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, "corrupt", "Data is damaged"),
        Class::Unsupported => (StatusCode::NOT_IMPLEMENTED, "unsupported", "Not supported"),
        Class::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        Self::of_error(&error)
    }
}

impl From<crate::catalog::CatalogError> for Problem {
    fn from(error: crate::catalog::CatalogError) -> Self {
        Self::of_error(&error)
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::of_error(&denied)
    }
}

impl From<NoPlace> for Problem {
    fn from(full: NoPlace) -> Self {
        Self::too_many(full.to_string(), PLACE_AGAIN)
    }
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        Self::unauthenticated(error.to_string())
    }
}

impl From<Problem> for ProblemBody {
    fn from(problem: Problem) -> Self {
        let Problem { status, kind, title, detail, .. } = problem;
        let kind = format!("urn:zerofs-csi:{kind}");
        Self { kind, title, status: status.as_u16(), detail }
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let headers = std::mem::take(&mut self.headers);
        let mut response = (self.status, axum::Json(ProblemBody::from(self))).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response.headers_mut().extend(headers);
        response
    }
}
