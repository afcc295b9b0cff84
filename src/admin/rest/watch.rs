//! Changes as server-sent events, which scripts read line by line and browsers by `EventSource`.

use super::ask::{PathParams, Query};
use super::shape::{DatasetShape, SnapshotShape};
use super::tasks::TaskShape;
use super::{Problem, Rest};
use crate::admin::access::Authenticated;
use crate::admin::auth::{Action, Resource};
use crate::admin::watch::{Watch, WatchEvent, watch};
use crate::control::browse::{DatasetFacts, SnapshotFacts};
use crate::control::{Pool, Task};
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::{Stream, StreamExt};
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;

/// An empty comment is sent after this long without an event: connections that nobody reads end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The longest that a watcher is told changes; it begins again then.
const WATCH_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// An event: its name, and its JSON.
#[derive(Clone, PartialEq)]
struct Change {
    name: &'static str,
    json: String,
}

impl Change {
    fn new(name: &'static str, shape: &impl Serialize) -> Self {
        Self { name, json: serde_json::to_string(shape).unwrap_or_default() }
    }
}

impl WatchEvent for Change {
    fn task(task: Task) -> Self {
        Self::new("task", &TaskShape::from(task))
    }

    fn dataset(_: &Pool, facts: DatasetFacts) -> Self {
        Self::new("dataset", &DatasetShape::from(facts))
    }

    fn snapshot(_: &Pool, facts: SnapshotFacts) -> Self {
        Self::new("snapshot", &SnapshotShape::from(facts))
    }

    fn removed(name: String) -> Self {
        Self::new("removed", &serde_json::json!({ "name": name }))
    }
}

/// The tasks, datasets and snapshots, then each change, as server-sent events
#[utoipa::path(
    get, path = "/pools/{pool}/watch", tag = "tasks",
    params(("pool" = String, Path, example = "main")),
    responses((
        status = 200, content_type = "text/event-stream", body = String,
        description = "Events `task`, `dataset` and `snapshot`, each with the object in JSON as \
            GET has it (`usedBytes` is null), and `removed` with `{\"name\": \"DATASET\"}` or \
            `{\"name\": \"DATASET@SNAPSHOT\"}`: every object as it is, then each that changes. \
            Tasks are told at once, and of all pools; records are read every 15 seconds. `error` \
            with a problem ends the stream, as when the caller has logged out; it ends after a day \
            at the latest"
    ))
)]
pub async fn get(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(pool): PathParams<String>,
    query: Query,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    query.only(&[])?;
    rest.admin.allow(&known, Action::List, &Resource::pool(&pool)).await?;
    let browser = rest.admin.browser(rest.admin.pool(&pool)?);
    let place = rest.admin.access.limits.watchers.take(&known.caller)?;
    let wanted = Watch {
        access: rest.admin.access.clone(),
        tasks: rest.admin.tasks.clone(),
        browser,
        known,
    };
    let changes = watch::<Change>(wanted, place).map(|change| {
        Ok(match change {
            Ok(Change { name, json }) => Event::default().event(name).data(json),
            Err(error) => Event::default().event("error").data(Problem::of_error(&error).json()),
        })
    });
    let ends = changes.take_until(tokio::time::sleep(WATCH_LIMIT));
    Ok(Sse::new(ends).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}
