//! The administration interface over gRPC (`proto/zerofs/admin/v1`): the use cases of `control` for
//! programs.
//!
//! ```text
//! request ─ call: caller, limits, deadline ─▶ service: allowed? ─▶ use case ─▶ convert ─▶ answer
//! ```
//! Invariants: a caller is identified and counted before anything else, and allowed before a name
//! is looked up; a change that has begun runs to its end even when its caller goes away, and is in
//! the audit log; a stream holds its place among the calls, and drops everything it has open, when
//! its caller goes away or its deadline passes.
//!
//! Served by the listener of the interface, beside REST: [`router`] adds to its routes. Nothing is
//! kept: a crash ends calls in progress.

mod call;
mod convert;
mod datasets;
mod files;
mod page;
mod policies;
pub mod proto;
mod snapshots;
mod streams;
mod tasks;
mod watch;

use super::state::Admin;
use axum::Router;
use call::{CallAdmission, admit};
use proto::datasets_server::DatasetsServer;
use proto::files_server::FilesServer;
use proto::policies_server::PoliciesServer;
use proto::snapshots_server::SnapshotsServer;
use proto::tasks_server::TasksServer;
use std::convert::Infallible;
use std::sync::Arc;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// The largest request, in bytes.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// The routes of every service, of reflection and of health. They have no fallback, so that they
/// can be merged into others.
///
/// # Errors
/// When the description of the interface cannot be read, which is a defect.
pub fn router(admin: &Arc<Admin>) -> Result<Router, tonic_reflection::server::Error> {
    let admission = Arc::new(CallAdmission::new(admin.access.clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIBED)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let reflection_alpha = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIBED)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()?;
    // The server is healthy as long as it answers.
    let health = HealthServer::new(HealthService::from_health_reporter(HealthReporter::new()));
    let services = Services { admin: admin.clone(), admission: admission.clone() };
    let mut router = Router::new();
    router = add(
        router,
        DatasetsServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
    );
    router = add(
        router,
        SnapshotsServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
    );
    router = add(
        router,
        PoliciesServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
    );
    router = add(
        router,
        FilesServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
    );
    router = add(
        router,
        TasksServer::new(services.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
    );
    router = add(router, health);
    router = add(router, reflection);
    router = add(router, reflection_alpha);
    Ok(router.layer(axum::middleware::from_fn_with_state(admission, admit)))
}

fn add<S>(router: Router, service: S) -> Router
where
    S: Service<http::Request<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Response: axum::response::IntoResponse,
    S::Future: Send + 'static,
{
    let path = format!("/{}/{{*method}}", S::NAME);
    router.route_service(&path, AsAxum(service))
}

/// A service of tonic as one of axum.
#[derive(Clone)]
struct AsAxum<S>(S);

impl<S> Service<axum::extract::Request> for AsAxum<S>
where
    S: Service<http::Request<Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: axum::extract::Request) -> S::Future {
        self.0.call(request.map(Body::new))
    }
}

/// Every service.
#[derive(Clone)]
struct Services {
    admin: Arc<Admin>,
    admission: Arc<CallAdmission>,
}
