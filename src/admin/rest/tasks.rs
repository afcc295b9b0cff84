//! The long work of this process: what runs, and what has ended lately.

use super::ask::{Body, PathParams, Query};
use super::page;
use super::restores::{Started, log_the_end};
use super::shape::Page;
use super::{Problem, Rest};
use crate::admin::access::Authenticated;
use crate::admin::auth::{Action, Resource};
use crate::admin::state::audited;
use crate::control::{Task, TaskKind, TaskOutcome};
use crate::types::{Class, Timestamp};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A task.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskShape {
    id: String,
    /// `restore`, `scrub` or `collection`.
    kind: &'static str,
    pool: String,
    /// The object of the work: `DATASET`, `DATASET@SNAPSHOT:/PATH`.
    subject: String,
    started: String,
    /// Null while it runs.
    ended: Option<String>,
    /// `running`, `done`, `failed` or `stopped`.
    state: &'static str,
    progress: TaskProgress,
    /// A summary of the work, for people.
    message: Option<String>,
    /// Why it failed.
    error: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskProgress {
    objects: u64,
    bytes: u64,
}

impl From<Task> for TaskShape {
    fn from(task: Task) -> Self {
        let (state, message, error) = match task.outcome {
            TaskOutcome::Running => ("running", None, None),
            TaskOutcome::Done(summary) => ("done", Some(summary), None),
            TaskOutcome::Failed { why, .. } => ("failed", None, Some(why)),
            TaskOutcome::Stopped => ("stopped", None, Some("it was asked to stop".to_owned())),
        };
        Self {
            id: task.id.to_string(),
            kind: match task.kind {
                TaskKind::Restore => "restore",
                TaskKind::Scrub => "scrub",
                TaskKind::Collection => "collection",
            },
            pool: task.pool,
            subject: task.subject,
            started: task.started.rfc3339(),
            ended: task.ended.map(Timestamp::rfc3339),
            state,
            progress: TaskProgress { objects: task.objects, bytes: task.bytes },
            message,
            error,
        }
    }
}

async fn sees(rest: &Rest, known: &Authenticated, task: &Task) -> bool {
    // Who sees all of the pool sees its tasks, others those of their datasets.
    match &task.dataset {
        Some(dataset) => rest.admin.sees(known, &task.pool, dataset).await,
        None => rest.admin.sees(known, &task.pool, "*").await,
    }
}

/// The tasks that run, and the last that have ended, newest first
#[utoipa::path(
    get, path = "/tasks", tag = "tasks",
    params(
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = Page<TaskShape>))
)]
pub async fn list(
    State(rest): State<Rest>,
    known: Authenticated,
    query: Query,
) -> Result<Json<Page<TaskShape>>, Problem> {
    query.only(&["limit", "cursor"])?;
    let limit = query.limit(page::DEFAULT, page::MAX)?;
    rest.admin.allow(&known, Action::List, &Resource::Server).await?;
    let mut seen = Vec::new();
    for task in rest.admin.tasks.list() {
        if sees(&rest, &known, &task).await {
            seen.push(task);
        }
    }
    let newest_first = |task: &Task| format!("{:020}", u64::MAX - task.id);
    let Page { items, next } = page::page(seen, newest_first, query.text("cursor")?, limit)?;
    Ok(Json(Page { items: items.into_iter().map(TaskShape::from).collect(), next }))
}

/// One task
#[utoipa::path(
    get, path = "/tasks/{id}", tag = "tasks", params(("id" = String, Path)),
    responses((status = 200, body = TaskShape))
)]
pub async fn get(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(id): PathParams<String>,
    query: Query,
) -> Result<Json<TaskShape>, Problem> {
    query.only(&[])?;
    let task = found(&rest, &known, &id).await?;
    Ok(Json(task.into()))
}

/// Ask a task to stop; it ends soon after
#[utoipa::path(
    post, path = "/tasks/{id}/stop", tag = "tasks", params(("id" = String, Path)),
    responses((status = 200, body = TaskShape))
)]
pub async fn stop(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(id): PathParams<String>,
    query: Query,
) -> Result<Json<TaskShape>, Problem> {
    query.only(&[])?;
    let task = found(&rest, &known, &id).await?;
    let of = Resource::dataset(&task.pool, task.dataset.as_deref().unwrap_or("*"));
    rest.admin.allow(&known, Action::Administer, &of).await?;
    Ok(Json(rest.admin.tasks.stop(task.id)?.into()))
}

/// A task that the caller may see.
async fn found(rest: &Rest, known: &Authenticated, id: &str) -> Result<Task, Problem> {
    let absent = || {
        let id: String = id.chars().take(32).collect();
        Problem::of(
            Class::NotFound,
            format!("task {id} does not exist: GET /api/v1/tasks lists all"),
        )
    };
    let task = rest.admin.tasks.get(id.parse().map_err(|_| absent())?)?;
    match sees(rest, known, &task).await {
        true => Ok(task),
        false => Err(absent()),
    }
}

/// The packs to scrub.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewScrub {
    /// One dataset with its snapshots; the whole pool, if left out.
    dataset: Option<String>,
    /// The most that is read; as fast as possible, if left out.
    #[schema(minimum = 1)]
    bytes_per_second: Option<u64>,
}

/// Read and verify everything that a pool or a dataset stores
#[utoipa::path(
    post, path = "/pools/{pool}/scrubs", tag = "tasks",
    params(("pool" = String, Path, example = "main")), request_body = NewScrub,
    responses((status = 202, description = "It has begun", body = Started))
)]
pub async fn scrub(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(pool): PathParams<String>,
    Body(NewScrub { dataset, bytes_per_second }): Body<NewScrub>,
) -> Result<(StatusCode, Json<Started>), Problem> {
    if bytes_per_second == Some(0) {
        return Err(Problem::invalid("bytesPerSecond: at least 1, or left out"));
    }
    let of = Resource::dataset(&pool, dataset.as_deref().unwrap_or("*"));
    rest.admin.allow(&known, Action::Administer, &of).await?;
    let opened = rest.admin.pool(&pool)?;
    let only = match &dataset {
        Some(name) => Some(rest.admin.browser(opened).dataset(name).await?),
        None => None,
    };
    let place = rest.admin.access.limits.tasks.take(&known.caller)?;
    let about = format!("{pool}/{}", dataset.as_deref().unwrap_or_default());
    let log = audited(&known, Action::Administer, "scrub", about);
    let (tasks, volumes) = (&rest.admin.tasks, &rest.admin.volumes);
    match tasks.start_scrub(opened, volumes, only.as_ref(), bytes_per_second) {
        Ok(id) => {
            tokio::spawn(log_the_end(tasks.clone(), id, (log, place)));
            Ok((StatusCode::ACCEPTED, Json(Started { task: id.to_string() })))
        }
        Err(error) => {
            log.failed(&error);
            Err(rest.not_begun(error))
        }
    }
}
