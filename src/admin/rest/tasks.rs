//! The long work of this process: what runs, and what has ended lately.

use super::ask::{Named, Query};
use super::page;
use super::shape::Page;
use super::{Problem, Rest};
use crate::admin::access::Known;
use crate::admin::auth::{Action, Resource};
use crate::control::{Task, TaskKind, TaskOutcome};
use crate::types::{Class, Timestamp};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// A task.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskShape {
    id: String,
    /// `restore`, `scrub` or `collection`.
    kind: &'static str,
    pool: String,
    /// What is worked on: `DATASET`, `DATASET@SNAPSHOT:/PATH`.
    subject: String,
    started: String,
    /// Null while it runs.
    ended: Option<String>,
    /// `running`, `done`, `failed` or `stopped`.
    state: &'static str,
    progress: TaskProgress,
    /// What was done, for people.
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

async fn sees(rest: &Rest, known: &Known, task: &Task) -> bool {
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
    known: Known,
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
    known: Known,
    Named(id): Named<String>,
    query: Query,
) -> Result<Json<TaskShape>, Problem> {
    query.only(&[])?;
    let absent = || {
        let id: String = id.chars().take(32).collect();
        Problem::of(
            Class::NotFound,
            format!("task {id} does not exist: GET /api/v1/tasks lists all"),
        )
    };
    let task = rest.admin.tasks.get(id.parse().map_err(|_| absent())?)?;
    match sees(&rest, &known, &task).await {
        true => Ok(Json(task.into())),
        false => Err(absent()),
    }
}
