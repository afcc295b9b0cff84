//! Questions over several states of a dataset: the versions of a path, searches, differences.

use super::ask::{PathParams, Query};
use super::comparisons::{Compared, Cursor, States};
use super::shape::{Differences, HitShape, Hits, Page, VersionShape, lossy, raw};
use super::{Problem, Rest};
use crate::admin::access::Authenticated;
use crate::admin::auth::Action;
use crate::catalog::{Dataset, Snapshot, State as RecordState};
use crate::control::ControlError;
use crate::control::browse::{Browser, Hit, Pattern, Root, kind_name};
use axum::Json;
use axum::extract::State;

/// Hits of a search, unless another number is asked for.
const HITS_DEFAULT: usize = 100;
const HITS_MAX: usize = 1000;
/// Differences of a page, unless another number is asked for.
const DIFFERENCES_DEFAULT: usize = 1000;
const DIFFERENCES_MAX: usize = 10_000;

/// The reason why a search or comparison ends.
enum SearchEnd {
    /// The caller has enough.
    Enough,
    Failed(ControlError),
}

impl From<ControlError> for SearchEnd {
    fn from(error: ControlError) -> Self {
        Self::Failed(error)
    }
}

/// Every version of a path across all snapshots, newest last
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/history", tag = "files",
    params(
        ("pool" = String, Path, example = "main"),
        ("dataset" = String, Path, example = "web"),
        ("path" = String, Query, example = "/a.txt"),
    ),
    responses((status = 200, body = Page<VersionShape>))
)]
pub async fn history(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<Page<VersionShape>>, Problem> {
    query.only(&["path"])?;
    let path = query.path("path")?.ok_or_else(|| Problem::invalid("parameter path is missing"))?;
    let browser = rest.admin.browse(&known, Action::List, &pool, &name).await?;
    let dataset = browser.dataset(&name).await?;
    let versions = browser.history(&dataset, path).await?;
    let shown = versions.into_iter().map(|version| {
        let found = version.found.as_ref();
        VersionShape {
            first: version.first.as_ref().map(ToString::to_string),
            last: version.last.as_ref().map(ToString::to_string),
            snapshots: version.states,
            kind: found.map(|found| kind_name(found.kind)),
            size: found.map(|found| found.size),
            modified: found.map(|found| found.mtime.rfc3339()),
        }
    });
    Ok(Json(Page::whole(shown.collect())))
}

/// Search by name, in one state or in all
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/find", tag = "files",
    params(
        ("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web"),
        ("pattern" = String, Query, example = "*.txt",
            description = "A part of a name, or a glob with `*`, `?`, `[…]`"),
        ("snapshot" = Option<String>, Query),
        ("allSnapshots" = Option<bool>, Query,
            description = "Also in every snapshot, newest first"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000)
    ),
    responses((status = 200, body = Hits))
)]
pub async fn find(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<Hits>, Problem> {
    query.only(&["pattern", "snapshot", "allSnapshots", "limit"])?;
    let limit = query.limit(HITS_DEFAULT, HITS_MAX)?;
    let pattern =
        query.bytes("pattern")?.ok_or_else(|| Problem::invalid("parameter pattern is missing"))?;
    let pattern = Pattern::new(pattern)?;
    let browser = rest.admin.browse(&known, Action::List, &pool, &name).await?;
    let snapshot = query.text("snapshot")?;
    let (names, roots): (Vec<Option<String>>, Vec<Root>) = match query.flag("allSnapshots")? {
        true if snapshot.is_some() => {
            return Err(Problem::invalid("give either snapshot or allSnapshots"));
        }
        true => every_state(&browser, browser.dataset(&name).await?).await?.into_iter().unzip(),
        false => (vec![snapshot.map(str::to_owned)], vec![browser.root(&name, snapshot).await?]),
    };
    let mut items = Vec::new();
    let each = |hit: Hit| {
        if items.len() == limit {
            return Err(SearchEnd::Enough);
        }
        items.push(shown(names.get(hit.root).cloned().flatten(), &hit));
        Ok(())
    };
    let (truncated, visited) = match Box::pin(browser.find(&roots, &pattern, each)).await {
        Ok(searched) => (searched.limited, searched.visited),
        Err(SearchEnd::Enough) => (true, 0),
        Err(SearchEnd::Failed(error)) => return Err(error.into()),
    };
    Ok(Json(Hits { items, next: None, truncated, visited }))
}

fn shown(snapshot: Option<String>, hit: &Hit) -> HitShape {
    let entry = &hit.entry;
    HitShape {
        snapshot,
        path: lossy(&entry.path),
        path_bytes: raw(&entry.path),
        kind: kind_name(entry.kind),
        size: entry.size,
        modified: entry.mtime.rfc3339(),
    }
}

/// The dataset itself, then its snapshots from the newest on.
async fn every_state(
    browser: &Browser,
    dataset: Dataset,
) -> Result<Vec<(Option<String>, Root)>, Problem> {
    let records = browser.pool().catalog.snapshots(Some(dataset.incarnation)).await?;
    let mut snapshots: Vec<Snapshot> = records.into_iter().map(|at| at.record).collect();
    snapshots.retain(|snapshot| snapshot.state == RecordState::Ready && !snapshot.implied);
    let newest_first = |s: &Snapshot| std::cmp::Reverse((s.created, s.serial));
    snapshots.sort_by_key(newest_first);
    let named = |snapshot: Snapshot| (Some(snapshot.name.to_string()), Root::Snapshot(snapshot));
    let mut all = vec![(None, Root::Head(dataset))];
    all.extend(snapshots.into_iter().map(named));
    Ok(all)
}

/// The differences between two states
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/diff", tag = "files",
    params(
        ("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web"),
        ("from" = String, Query, example = "s1", description = "The earlier snapshot"),
        ("to" = Option<String>, Query,
            description = "The later one; without it: the dataset itself"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 10000),
        ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = Differences))
)]
pub async fn diff(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<Differences>, Problem> {
    query.only(&["from", "to", "limit", "cursor"])?;
    let limit = query.limit(DIFFERENCES_DEFAULT, DIFFERENCES_MAX)?;
    let from = query.text("from")?.ok_or_else(|| Problem::invalid("parameter from is missing"))?;
    let cursor = query.text("cursor")?.map(Cursor::parse).transpose()?.unwrap_or_default();
    let browser = rest.admin.browse(&known, Action::List, &pool, &name).await?;
    let before = browser.root(&name, Some(from)).await?;
    let after = browser.root(&name, query.text("to")?).await?;
    let states = States::new(browser.pool().id(), &before, &after);
    if let Some(page) = rest.comparisons.page(&states, cursor, limit) {
        return Ok(Json(page));
    }
    let mut compared = Compared::new(cursor, limit);
    let each = |found: &crate::fs::PathDifference| match compared.add(found) {
        true => Ok(()),
        false => Err(SearchEnd::Enough),
    };
    match Box::pin(browser.diff(&before, &after, each)).await {
        Ok(()) | Err(SearchEnd::Enough) => Ok(Json(rest.comparisons.keep(states, compared))),
        Err(SearchEnd::Failed(error)) => Err(error.into()),
    }
}
