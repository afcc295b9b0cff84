//! Restores in place, and what they would do.

use super::ask::{Body, PathParams, absolute};
use super::{Problem, Rest};
use crate::admin::access::Authenticated;
use crate::admin::auth::audit::Audited;
use crate::admin::auth::{Action, Place};
use crate::admin::state::audited;
use crate::control::browse::{Browser, Entry, OpenRoot, Root};
use crate::control::{ControlError, Replaced, RestoreInPlace, TaskOutcome, Tasks};
use crate::fs::api::FileKind;
use crate::types::{Class, Classify, Incarnation};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most paths of one request.
const PATHS_MAX: usize = 1000;
/// Most objects that a dry run looks at.
const COUNTED_MAX: u64 = 10_000;

/// Paths of a snapshot to restore.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRestore {
    /// A read-only snapshot.
    snapshot: String,
    #[schema(min_items = 1, max_items = 1000)]
    paths: Vec<RestorePath>,
    /// Replace files that are there, and restore into folders that are there.
    #[serde(default)]
    overwrite: bool,
    /// Keep each file that is replaced beside the restored one, as `NAME.~1`, `NAME.~2` and so on.
    #[serde(default)]
    keep: bool,
    /// Count what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
}

/// A path in the snapshot, and where it goes.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestorePath {
    source: String,
    /// The bytes of a path that is not UTF-8, in base 64; instead of `source`.
    source_bytes: Option<String>,
    /// Its own path, if left out.
    destination: Option<String>,
    destination_bytes: Option<String>,
}

/// Changes that a restore would make.
#[derive(Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreCounts {
    /// Files and links that are not there now.
    created: u64,
    /// Files and links that are replaced: their present content is lost, unless a snapshot has it.
    replaced: u64,
    /// Objects that are there as they were.
    unchanged: u64,
    folders: u64,
    /// Bytes of the files that are created or replaced.
    bytes: u64,
    /// There are more objects than were counted.
    truncated: bool,
}

/// A task that was started.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Its id in `/tasks`.
    pub task: String,
}

struct Wanted {
    source: Vec<u8>,
    destination: Vec<u8>,
}

impl RestorePath {
    fn read(self) -> Result<Wanted, Problem> {
        let bytes = |text: String, bytes: Option<String>| match bytes {
            None => Ok(text.into_bytes()),
            Some(bytes) => BASE64
                .decode(bytes.as_bytes())
                .map_err(|error| Problem::invalid(format!("base64 of a path: {error}"))),
        };
        let source = absolute(&bytes(self.source, self.source_bytes)?)?.to_vec();
        let destination = match (self.destination, self.destination_bytes) {
            (None, None) => source.clone(),
            (text, raw) => absolute(&bytes(text.unwrap_or_default(), raw)?)?.to_vec(),
        };
        Ok(Wanted { source, destination })
    }
}

/// Restore files and folders of a snapshot into the dataset
#[utoipa::path(
    post, path = "/pools/{pool}/datasets/{dataset}/restores", tag = "files",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    request_body = NewRestore,
    responses(
        (status = 202, description = "It has begun", body = Started),
        (status = 200, description = "What it would do (dryRun)", body = RestoreCounts)
    )
)]
pub async fn create(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    Body(new): Body<NewRestore>,
) -> Result<Response, Problem> {
    let browser = rest.admin.browse(&known, Action::Restore, &pool, &name).await?;
    if new.paths.is_empty() || new.paths.len() > PATHS_MAX {
        return Err(Problem::invalid(format!("name 1 to {PATHS_MAX} paths")));
    }
    let wanted =
        new.paths.into_iter().map(RestorePath::read).collect::<Result<Vec<Wanted>, Problem>>()?;
    let dataset = browser.dataset(&name).await?;
    let root = browser.root(&name, Some(&new.snapshot)).await?;
    let Root::Snapshot(snapshot) = &root else {
        let why = format!(
            "{name}@{} is a writable snapshot: only read-only ones are restored from; download the \
             files instead",
            new.snapshot
        );
        return Err(Problem::of(Class::Precondition, why));
    };
    let open = browser.open(&root).await?;
    let mut sources = Vec::with_capacity(wanted.len());
    for one in &wanted {
        sources.push(open.stat(&one.source).await?);
    }
    if new.dry_run {
        let counts = count(&browser, &Root::Head(dataset), &open, sources, &wanted).await?;
        return Ok(Json(counts).into_response());
    }
    let first = crate::control::browse::shown_path(&wanted[0].source);
    let more =
        if wanted.len() > 1 { format!(" and {} more", wanted.len() - 1) } else { String::new() };
    let subject = format!("{name}@{}:{first}{more}", new.snapshot);
    let place = rest.admin.access.limits.tasks.take(&known.caller)?;
    let log = audited(&known, Action::Restore, "restore", format!("{pool}/{subject}"));
    let restores = wanted
        .iter()
        .map(|one| RestoreInPlace {
            call: Incarnation::random(),
            snapshot: snapshot.id(),
            from: one.source.as_slice().into(),
            to: one.destination.as_slice().into(),
            overwrite: new.overwrite || new.keep,
        })
        .collect();
    let restores = (restores, if new.keep { Replaced::KeptBeside } else { Replaced::Removed });
    let (tasks, controller) = (&rest.admin.tasks, &rest.admin.controller);
    let (reader, id) = (browser.clone(), dataset.id());
    let changed = move || reader.forget_head(id);
    let started =
        tasks.start_restore(controller, browser.pool(), &dataset, restores, subject, changed);
    match started {
        Ok(id) => {
            tokio::spawn(log_the_end(tasks.clone(), id, (log, place)));
            Ok((StatusCode::ACCEPTED, Json(Started { task: id.to_string() })).into_response())
        }
        Err(error) => {
            log.failed(&error);
            Err(rest.not_begun(error))
        }
    }
}

/// Writes the outcome of a task to the audit log. The task has its place until then.
pub async fn log_the_end(tasks: Tasks, id: u64, (log, _place): (Audited, Place)) {
    let mut changes = tasks.watch();
    loop {
        let Ok(task) = tasks.get(id) else { return };
        match task.outcome {
            TaskOutcome::Running => {}
            TaskOutcome::Done(_) => {
                log.add(task.bytes);
                return log.done();
            }
            TaskOutcome::Failed { class, why } => {
                return log.failed(&ControlError::Refused { class, why });
            }
            TaskOutcome::Stopped => return,
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn count(
    browser: &Browser,
    head: &Root,
    open: &OpenRoot,
    sources: Vec<Entry>,
    wanted: &[Wanted],
) -> Result<RestoreCounts, Problem> {
    let mut counts = RestoreCounts::default();
    let now = match browser.open_now(head).await {
        Ok(now) => Some(now),
        // Nothing was ever written to it.
        Err(error) if error.class() == Class::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let mut seen = 0;
    for (source, Wanted { source: from, destination }) in sources.into_iter().zip(wanted) {
        let mut walk = open.walk(source);
        while let Some(entry) = walk.next().await? {
            if seen == COUNTED_MAX {
                counts.truncated = true;
                return Ok(counts);
            }
            seen += 1;
            let below = entry.path.strip_prefix(from.as_slice()).unwrap_or_default();
            let there = match &now {
                Some(now) => there(now, &moved(destination, below)).await?,
                None => None,
            };
            counts.add(&entry, there.as_ref());
        }
    }
    Ok(counts)
}

/// The path of a restored object.
fn moved(destination: &[u8], below: &[u8]) -> Vec<u8> {
    let below = below.strip_prefix(b"/").unwrap_or(below);
    let folder = destination.strip_suffix(b"/").unwrap_or(destination);
    match below.is_empty() {
        true => destination.to_vec(),
        false => [folder, b"/", below].concat(),
    }
}

async fn there(now: &OpenRoot, path: &[u8]) -> Result<Option<Entry>, Problem> {
    match now.stat(path).await {
        Ok(entry) => Ok(Some(entry)),
        Err(error) if matches!(error.class(), Class::NotFound | Class::Invalid) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl RestoreCounts {
    fn add(&mut self, entry: &Entry, there: Option<&Entry>) {
        match there {
            _ if entry.kind == FileKind::Directory => self.folders += 1,
            Some(there) if there.etag == entry.etag => self.unchanged += 1,
            Some(_) => {
                self.replaced += 1;
                self.bytes += entry.size;
            }
            None => {
                self.created += 1;
                self.bytes += entry.size;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_go_below_their_destination() {
        for (destination, below, path) in [
            ("/a", "", "/a"),
            ("/a", "/b/c", "/a/b/c"),
            ("/", "", "/"),
            ("/", "/b", "/b"),
            ("/", "b", "/b"),
        ] {
            assert_eq!(moved(destination.as_bytes(), below.as_bytes()), path.as_bytes());
        }
    }
}
