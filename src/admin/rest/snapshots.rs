//! Snapshots of a dataset: list, take, delete.

use super::ask::{Body, PathParams, Query};
use super::page;
use super::shape::{Page, SnapshotShape};
use super::{Problem, Rest, change};
use crate::admin::access::Authenticated;
use crate::admin::auth::Action;
use crate::control::browse::{HoldChange, NewSnapshot, SnapshotFacts};
use crate::types::Class;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

/// A snapshot to take.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewSnapshotShape {
    name: String,
    /// False: a clone that is listed among the snapshots, and can be written.
    #[serde(default = "read_only")]
    #[schema(default = true)]
    read_only: bool,
}

fn read_only() -> bool {
    true
}

/// The snapshots of a dataset, by the time they were taken; it may be deleted
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/snapshots", tag = "snapshots",
    params(
        ("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = Page<SnapshotShape>))
)]
pub async fn list(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<Page<SnapshotShape>>, Problem> {
    query.only(&["limit", "cursor"])?;
    let limit = query.limit(page::DEFAULT, page::MAX)?;
    let browser = rest.admin.browse(&known, Action::List, &pool, &name).await?;
    let dataset = browser.dataset_or_deleted(&name).await?;
    let found = browser.snapshots(Some(&dataset)).await?;
    // Negative times have no place in a key of digits; there are none.
    let key =
        |facts: &SnapshotFacts| format!("{:020}{}", facts.created.as_nanos().max(0), facts.name);
    let Page { items, next } = page::page(found, key, query.text("cursor")?, limit)?;
    Ok(Json(Page { items: items.into_iter().map(SnapshotShape::from).collect(), next }))
}

/// One snapshot
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/snapshots/{snapshot}", tag = "snapshots",
    params(
        ("pool" = String, Path, example = "main"),
        ("dataset" = String, Path, example = "web"),
        ("snapshot" = String, Path, example = "s1"),
    ),
    responses((status = 200, body = SnapshotShape))
)]
pub async fn get(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name, snapshot)): PathParams<(String, String, String)>,
    query: Query,
) -> Result<Json<SnapshotShape>, Problem> {
    query.only(&[])?;
    let browser = rest.admin.browse(&known, Action::List, &pool, &name).await?;
    Ok(Json(browser.find_snapshot(&name, &snapshot).await?.into()))
}

/// Take a snapshot of a dataset's present state
#[utoipa::path(
    post, path = "/pools/{pool}/datasets/{dataset}/snapshots", tag = "snapshots",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    request_body = NewSnapshotShape,
    responses((status = 201, body = SnapshotShape))
)]
pub async fn create(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    Body(new): Body<NewSnapshotShape>,
) -> Result<(StatusCode, Json<SnapshotShape>), Problem> {
    let browser = rest.admin.browse(&known, Action::Snapshot, &pool, &name).await?;
    let object = format!("{pool}/{name}@{}", new.name);
    let (controller, what) = (rest.admin.controller.clone(), ("take snapshot", object));
    let kind = if new.read_only { NewSnapshot::ReadOnly } else { NewSnapshot::Writable };
    let made = change(&known, Action::Snapshot, what, async move {
        browser.make_snapshot(&controller, &name, &new.name, kind).await
    });
    Ok((StatusCode::CREATED, Json(made.await?.into())))
}

/// Delete a snapshot
#[utoipa::path(
    delete, path = "/pools/{pool}/datasets/{dataset}/snapshots/{snapshot}", tag = "snapshots",
    params(
        ("pool" = String, Path, example = "main"),
        ("dataset" = String, Path, example = "web"),
        ("snapshot" = String, Path, example = "s1"),
    ),
    responses((status = 204, description = "It is deleted; its space is freed by a collection"))
)]
pub async fn delete(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name, snapshot)): PathParams<(String, String, String)>,
    query: Query,
) -> Result<StatusCode, Problem> {
    query.only(&[])?;
    let browser = rest.admin.browse(&known, Action::Administer, &pool, &name).await?;
    let full = format!("{name}@{snapshot}");
    let (controller, what) =
        (rest.admin.controller.clone(), ("delete snapshot", format!("{pool}/{full}")));
    let existed = change(&known, Action::Administer, what, async move {
        browser.delete_snapshot(&controller, &name, &snapshot).await
    });
    match existed.await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => {
            let why = format!("snapshot {full} does not exist: nothing to delete");
            Err(Problem::of(Class::NotFound, why))
        }
    }
}

/// Hold a snapshot: nobody deletes it, and no policy, until every hold is released
#[utoipa::path(
    put, path = "/pools/{pool}/datasets/{dataset}/snapshots/{snapshot}/holds/{tag}",
    tag = "snapshots",
    params(
        ("pool" = String, Path, example = "main"),
        ("dataset" = String, Path, example = "web"),
        ("snapshot" = String, Path, example = "s1"),
        ("tag" = String, Path, example = "audit"),
    ),
    responses((status = 200, body = SnapshotShape))
)]
pub async fn hold(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(of): PathParams<(String, String, String, String)>,
    query: Query,
) -> Result<Json<SnapshotShape>, Problem> {
    query.only(&[])?;
    change_hold(&rest, &known, of, HoldChange::Add).await
}

/// Release a hold; one that is not there counts as released
#[utoipa::path(
    delete, path = "/pools/{pool}/datasets/{dataset}/snapshots/{snapshot}/holds/{tag}",
    tag = "snapshots",
    params(
        ("pool" = String, Path, example = "main"),
        ("dataset" = String, Path, example = "web"),
        ("snapshot" = String, Path, example = "s1"),
        ("tag" = String, Path, example = "audit"),
    ),
    responses((status = 200, body = SnapshotShape))
)]
pub async fn release(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(of): PathParams<(String, String, String, String)>,
    query: Query,
) -> Result<Json<SnapshotShape>, Problem> {
    query.only(&[])?;
    change_hold(&rest, &known, of, HoldChange::Release).await
}

async fn change_hold(
    rest: &Rest,
    known: &Authenticated,
    (pool, name, snapshot, tag): (String, String, String, String),
    hold: HoldChange,
) -> Result<Json<SnapshotShape>, Problem> {
    let browser = rest.admin.browse(known, Action::Administer, &pool, &name).await?;
    let what = match hold {
        HoldChange::Add => "hold snapshot",
        HoldChange::Release => "release snapshot",
    };
    let about = format!("{pool}/{name}@{snapshot} {tag:?}");
    let controller = rest.admin.controller.clone();
    let facts = change(known, Action::Administer, (what, about), async move {
        browser.change_hold(&controller, (&name, &snapshot), &tag, hold).await
    });
    Ok(Json(facts.await?.into()))
}
