//! The interface in JSON, under `/api/v1`, and the page that stands on it.
//!
//! A module for each kind of object; [`ask`] reads requests, [`shape`] has the JSON. Handlers
//! check the caller's right first, and do nothing that a use case of `control` does not.
//!
//! A request with an effect runs to its end when its caller leaves: a retry finds it done. One that
//! only reads ends with its caller, and what it held open is closed.

pub mod archive;
mod ask;
mod comparisons;
mod datasets;
mod files;
mod openapi;
mod page;
mod policies;
mod pools;
mod problems;
mod range;
mod restores;
mod send;
mod session;
mod shape;
mod snapshots;
mod states;
mod tasks;
mod watch;

use super::access::{Authenticated, Peer};
use super::auth::Action;
use super::problem::{PLACE_AGAIN, Problem};
use super::state::{Admin, audited};
use super::strangers::Connection;
use super::web;
use crate::catalog::Dataset;
use crate::control::ControlError;
use crate::control::browse::Browser;
use crate::control::problems::Problems;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a request's body: a restore of many paths is the largest.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes of the body of a login, which nobody has to be known for.
const LOGIN_BYTES_MAX: usize = 4 << 10;
/// Time until an answer begins. A body that is sent takes as long as it needs.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The page's policy: nothing but its own files, and no other page around it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' \
    blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Pages served beside the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebPage {
    Served,
    Absent,
}

/// State of the handlers. Cheap to clone.
#[derive(Clone)]
pub struct Rest {
    admin: Arc<Admin>,
    spaces: Arc<pools::Spaces>,
    comparisons: Arc<comparisons::Comparisons>,
    problems: Arc<Problems>,
    /// The URLs of the pools, by name.
    urls: Arc<BTreeMap<String, String>>,
}

impl Rest {
    pub fn new(admin: Arc<Admin>, urls: BTreeMap<String, String>) -> Self {
        Self {
            admin,
            spaces: Default::default(),
            comparisons: Default::default(),
            problems: Default::default(),
            urls: Arc::new(urls),
        }
    }

    fn url_of(&self, pool: &str) -> String {
        self.urls.get(pool).cloned().unwrap_or_default()
    }

    /// A live dataset that the caller may do this with.
    async fn dataset(
        &self,
        known: &Authenticated,
        action: Action,
        (pool, name): (&str, &str),
    ) -> Result<(Browser, Dataset), Problem> {
        let browser = self.admin.browse(known, action, pool, name).await?;
        let dataset = browser.dataset(name).await?;
        Ok((browser, dataset))
    }

    /// The answer to a caller for whom no task was begun.
    fn not_begun(&self, error: ControlError) -> Problem {
        match self.admin.tasks.is_full() {
            true => Problem::too_many(error.to_string(), PLACE_AGAIN),
            false => error.into(),
        }
    }

    /// The whole of it: the interface, and the page if it is served. `more`: what other interfaces
    /// serve on the same port; they identify their callers themselves.
    pub fn router(self, page: WebPage, more: Router) -> Router {
        let known = from_fn_with_state(self.clone(), identify);
        let api = self
            .routes()
            .fallback(async |uri: Uri| Problem::no_route(uri.path()))
            .method_not_allowed_fallback(async || Problem::no_method())
            .layer(from_fn(in_time))
            .layer(known);
        let open = Router::new()
            .route("/login", post(session::login))
            .route("/openapi.json", get(description))
            .method_not_allowed_fallback(async || Problem::no_method())
            .layer(from_fn(in_time))
            .layer(DefaultBodyLimit::max(LOGIN_BYTES_MAX))
            .with_state(self.clone());
        let api = open.merge(api.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)));
        let rest = Router::new().nest("/api/v1", api).merge(more);
        let rest = rest.fallback(async move |method: Method, uri: Uri, headers: HeaderMap| {
            beside(page, &method, &uri, &headers)
        });
        rest.layer(from_fn_with_state(self, guard))
    }

    fn routes(&self) -> Router {
        const DATASET: &str = "/pools/{pool}/datasets/{dataset}";
        let of_dataset = |rest: &str| format!("{DATASET}/{rest}");
        let work = from_fn_with_state(self.clone(), at_work);
        Router::new()
            .route("/session", get(session::get))
            .route("/logout", post(session::logout))
            .route("/pools", get(pools::list))
            .route("/pools/{pool}/space", get(pools::get_space))
            .route("/pools/{pool}/datasets", get(datasets::list).post(datasets::create))
            .route(DATASET, get(datasets::get).patch(datasets::change).delete(datasets::delete))
            .route(&of_dataset("rename"), post(datasets::rename))
            .route(&of_dataset("snapshots"), get(snapshots::list).post(snapshots::create))
            .route(
                &of_dataset("snapshots/{snapshot}"),
                get(snapshots::get).delete(snapshots::delete),
            )
            .route(
                &of_dataset("snapshots/{snapshot}/holds/{tag}"),
                put(snapshots::hold).delete(snapshots::release),
            )
            .route(&of_dataset("entries"), get(files::entries))
            .route(&of_dataset("stat"), get(files::stat))
            .route(&of_dataset("content"), get(files::content))
            .route(&of_dataset("archive"), get(archive::get))
            .route(&of_dataset("history"), get(states::history).layer(work.clone()))
            .route(&of_dataset("find"), get(states::find).layer(work.clone()))
            .route(&of_dataset("diff"), get(states::diff).layer(work.clone()))
            .route(&of_dataset("restores"), post(restores::create))
            .route(
                &of_dataset("policy"),
                get(policies::get).put(policies::set).delete(policies::delete),
            )
            .route(&of_dataset("policy/simulate"), post(policies::simulate).layer(work))
            .route(&of_dataset("policy/run"), post(policies::run))
            .route("/pools/{pool}/watch", get(watch::get))
            .route("/pools/{pool}/policies", get(policies::list))
            .route("/pools/{pool}/scrubs", post(tasks::scrub))
            .route("/tasks", get(tasks::list))
            .route("/tasks/{id}", get(tasks::get))
            .route("/tasks/{id}/stop", post(tasks::stop))
            .route("/problems", get(problems::list))
            .with_state(self.clone())
    }
}

/// The description is the same for everybody, and says nothing about this server.
async fn description() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi::text()).into_response()
}

fn beside(page: WebPage, method: &Method, uri: &Uri, headers: &HeaderMap) -> Response {
    let path = uri.path();
    let absent = || Problem::no_route(path).into_response();
    if page == WebPage::Absent || path == "/api" || path.starts_with("/api/") {
        return absent();
    }
    match *method {
        Method::GET | Method::HEAD => web::serve(path, headers).unwrap_or_else(absent),
        _ => Problem::no_method().into_response(),
    }
}

/// Every request passes here first, and every answer last.
async fn guard(State(rest): State<Rest>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied().unwrap_or_default();
    let checked = rest.admin.access.check_host(peer, request.uri(), request.headers());
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    let mut set = |name: header::HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, PAGE_POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CACHE_CONTROL, "no-store");
    set(header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    set(header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    response
}

async fn identify(State(rest): State<Rest>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied().unwrap_or_default();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    match rest.admin.access.identify(peer, &method, &uri, request.headers()).await {
        Ok(known) => {
            if let Err(full) = Connection::identified_by(request.extensions(), &known.caller) {
                return Problem::from(full).into_response();
            }
            // Other interfaces know the caller alone.
            request.extensions_mut().insert(known.caller.clone());
            request.extensions_mut().insert(known);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// Calls that take long or much memory have places.
async fn at_work(
    State(rest): State<Rest>,
    known: Authenticated,
    request: Request,
    next: Next,
) -> Response {
    match rest.admin.access.limits.work.take(&known.caller) {
        Ok(_place) => next.run(request).await,
        Err(full) => Problem::from(full).into_response(),
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let secs = ANSWER_LIMIT.as_secs();
            let why = format!("no answer within {secs} s: ask for less, or try again");
            Problem::too_slow(why).into_response()
        }
    }
}

/// Runs a use case with an effect to its end, whether or not its caller waits for it, with an entry
/// in the audit log.
async fn change<T: Send + 'static>(
    known: &Authenticated,
    action: Action,
    (what, object): (&'static str, String),
    work: impl Future<Output = Result<T, ControlError>> + Send + 'static,
) -> Result<T, Problem> {
    let log = audited(known, action, what, object);
    let task = tokio::spawn(async move {
        let done = work.await;
        log.end(&done);
        done
    });
    match task.await {
        Ok(done) => Ok(done?),
        Err(error) => {
            Err(ControlError::Internal(format!("the request ended early: {error}")).into())
        }
    }
}
