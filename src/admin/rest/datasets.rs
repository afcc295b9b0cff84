//! Datasets: list, create, clone, change, delete.

use super::ask::{Body, PathParams, Query};
use super::page;
use super::shape::{DatasetShape, Page};
use super::{Problem, Rest};
use crate::admin::access::Authenticated;
use crate::admin::auth::{Action, Resource};
use crate::catalog::{Dataset, Form, Properties};
use crate::control::browse::{self, Browser, Root};
use crate::control::{NewVolume, PropertyChanges, Source};
use crate::fs::api::FileSystem;
use crate::types::{Class, IoLimits, SnapshotHandle, VolumeHandle};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use utoipa::ToSchema;

/// A dataset to create. Fields that are left out have the defaults of the command line.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewDataset {
    name: String,
    /// `DATASET` or `DATASET@SNAPSHOT` to clone.
    source: Option<String>,
    /// The quota.
    size_bytes: Option<u64>,
    quota_inodes: Option<u64>,
    /// `standard`, `always` or `disabled`; by access modes, if left out.
    sync: Option<String>,
    record_bytes: Option<u32>,
    /// `none`, `lz4` or `zstd`.
    compression: Option<String>,
    /// `hidden` or `visible`.
    snapdir: Option<String>,
    /// Bytes read in a second; without limit, if left out. So are the two below.
    max_read_bandwidth: Option<u64>,
    /// Bytes written in a second.
    max_write_bandwidth: Option<u64>,
    /// READ and WRITE calls in a second.
    max_iops: Option<u64>,
    /// Only of a snapshot: the dataset is the snapshot itself.
    #[serde(default)]
    read_only: bool,
}

/// Properties to change. They hold at once, also where a node has the dataset open.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatasetChange {
    /// A larger quota.
    size_bytes: Option<u64>,
    /// 0: none.
    quota_inodes: Option<u64>,
    /// Record size of files that are created later.
    record_bytes: Option<u32>,
    /// `standard`, `always` or `disabled`; `default`: by access modes.
    sync: Option<String>,
    /// `none`, `lz4` or `zstd`: of data that is written later.
    compression: Option<String>,
    /// `hidden` or `visible`.
    snapdir: Option<String>,
    /// Bytes read in a second, 1 MiB to 1 TiB; 0: unlimited.
    max_read_bandwidth: Option<u64>,
    /// Bytes written in a second, 1 MiB to 1 TiB; 0: unlimited.
    max_write_bandwidth: Option<u64>,
    /// READ and WRITE calls in a second, at least 10; 0: unlimited.
    max_iops: Option<u64>,
    /// True: make it the pool's default dataset. False: it is the default no longer.
    default: Option<bool>,
}

/// The datasets of a pool, by name
#[utoipa::path(
    get, path = "/pools/{pool}/datasets", tag = "datasets",
    params(
        ("pool" = String, Path, example = "main"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = Page<DatasetShape>))
)]
pub async fn list(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(pool): PathParams<String>,
    query: Query,
) -> Result<Json<Page<DatasetShape>>, Problem> {
    query.only(&["limit", "cursor"])?;
    let limit = query.limit(page::DEFAULT, page::MAX)?;
    rest.admin.allow(&known, Action::List, &Resource::pool(&pool)).await?;
    let browser = rest.admin.browser(rest.admin.pool(&pool)?);
    let mut seen = Vec::new();
    for facts in browser.datasets().await? {
        if rest.admin.sees(&known, &pool, facts.dataset.name.as_str()).await {
            seen.push(facts);
        }
    }
    let key = |facts: &browse::DatasetFacts| facts.dataset.name.to_string();
    let Page { items, next } = page::page(seen, key, query.text("cursor")?, limit)?;
    let mut shown = Vec::with_capacity(items.len());
    for facts in items {
        let used = used_bytes(&rest, &facts.dataset).await;
        let facts = rest.admin.access.known_facts(&known.caller, &pool, facts).await;
        shown.push(DatasetShape::from(facts).using(used));
    }
    Ok(Json(Page { items: shown, next }))
}

/// Bytes in use, which only the process that has it open can tell without a request.
async fn used_bytes(rest: &Rest, dataset: &Dataset) -> Option<u64> {
    let volume = rest.admin.volumes.get(dataset.id())?;
    let figures = volume.fs.statfs().await.ok()?;
    Some(figures.total_bytes.saturating_sub(figures.free_bytes))
}

async fn shown(
    rest: &Rest,
    known: &Authenticated,
    browser: &Browser,
    name: &str,
) -> Result<Json<DatasetShape>, Problem> {
    let dataset = browser.dataset(name).await?;
    let used = used_bytes(rest, &dataset).await;
    let facts = browser.dataset_facts(&dataset).await?;
    let facts = rest.admin.access.known_facts(&known.caller, &browser.pool().name, facts).await;
    Ok(Json(DatasetShape::from(facts).using(used)))
}

/// One dataset
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}", tag = "datasets",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    responses((status = 200, body = DatasetShape))
)]
pub async fn get(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<DatasetShape>, Problem> {
    query.only(&[])?;
    let browser = rest.admin.browse(&known, Action::List, &pool, &name).await?;
    shown(&rest, &known, &browser, &name).await
}

/// Create a dataset, or clone one
#[utoipa::path(
    post, path = "/pools/{pool}/datasets", tag = "datasets",
    params(("pool" = String, Path, example = "main")), request_body = NewDataset,
    responses((status = 201, body = DatasetShape))
)]
pub async fn create(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(pool): PathParams<String>,
    Body(new): Body<NewDataset>,
) -> Result<(StatusCode, Json<DatasetShape>), Problem> {
    let browser = rest.admin.browse(&known, Action::Administer, &pool, &new.name).await?;
    let name = browse::dataset_name(&new.name)?;
    let properties = properties(&new)?;
    let source = match &new.source {
        None => None,
        Some(text) => Some(source(&rest, &known, &browser, &pool, text).await?),
    };
    let wanted = NewVolume {
        name: name.clone(),
        size: new.size_bytes,
        size_limit: None,
        source,
        properties,
        access_modes: vec![],
        form: if new.read_only { Form::Snapshot } else { Form::Writable },
        parameters: BTreeMap::new(),
    };
    let (controller, of, id) = (rest.admin.controller.clone(), browser.clone(), pool.clone());
    let what = ("create dataset", format!("{pool}/{name}"));
    let made = super::change(&known, Action::Administer, what, async move {
        of.is_new(&wanted.name).await?;
        controller.create_volume(Some(&id), wanted).await
    });
    made.await?;
    Ok((StatusCode::CREATED, shown(&rest, &known, &browser, name.as_str()).await?))
}

fn properties(new: &NewDataset) -> Result<Properties, Problem> {
    let mut properties = Properties { quota_inodes: new.quota_inodes, ..Properties::default() };
    properties.record_bytes = new.record_bytes.unwrap_or(properties.record_bytes);
    if let Some(sync) = &new.sync {
        properties.sync = Some(value("sync", sync)?);
    }
    if let Some(codec) = &new.compression {
        properties.codec = value("compression", codec)?;
    }
    if let Some(snapdir) = &new.snapdir {
        properties.snapdir = value("snapdir", snapdir)?;
    }
    properties.limits = IoLimits {
        max_read_bandwidth: new.max_read_bandwidth,
        max_write_bandwidth: new.max_write_bandwidth,
        max_iops: new.max_iops,
    };
    Ok(properties)
}

/// The value of a property.
fn value<T: FromStr<Err: Display>>(name: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|error| Problem::invalid(format!("{name}: {text:?}: {error}")))
}

/// 0: unlimited.
fn limit(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number > 0)
}

fn changes(wanted: &DatasetChange) -> Result<PropertyChanges, Problem> {
    let sync = |text: &str| match text {
        "default" => Ok(None),
        text => value("sync", text).map(Some),
    };
    Ok(PropertyChanges {
        size: wanted.size_bytes,
        inodes: wanted.quota_inodes.map(limit),
        record_bytes: wanted.record_bytes,
        sync: wanted.sync.as_deref().map(sync).transpose()?,
        codec: wanted.compression.as_deref().map(|text| value("compression", text)).transpose()?,
        snapdir: wanted.snapdir.as_deref().map(|text| value("snapdir", text)).transpose()?,
        max_read_bandwidth: wanted.max_read_bandwidth.map(limit),
        max_write_bandwidth: wanted.max_write_bandwidth.map(limit),
        max_iops: wanted.max_iops.map(limit),
    })
}

/// The source of a clone: its contents are the caller's afterwards, so the caller must be allowed
/// to read them.
async fn source(
    rest: &Rest,
    known: &Authenticated,
    browser: &Browser,
    pool: &str,
    text: &str,
) -> Result<Source, Problem> {
    let of = browse::split_snapshot(text).map_or(text, |(dataset, _)| dataset);
    rest.admin.allow(known, Action::Read, &Resource::dataset(pool, of)).await?;
    let id = browser.pool().id();
    Ok(match browser.root_named(text).await? {
        Root::Snapshot(snapshot) => {
            Source::Snapshot(SnapshotHandle { pool: id, snapshot: snapshot.id() })
        }
        Root::Head(dataset) => Source::Volume(VolumeHandle { pool: id, dataset: dataset.id() }),
    })
}

/// Change a dataset: expand it, or make it the default
#[utoipa::path(
    patch, path = "/pools/{pool}/datasets/{dataset}", tag = "datasets",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    request_body = DatasetChange,
    responses((status = 200, body = DatasetShape))
)]
pub async fn change(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    Body(change): Body<DatasetChange>,
) -> Result<Json<DatasetShape>, Problem> {
    let (browser, dataset) = rest.dataset(&known, Action::Administer, (&pool, &name)).await?;
    if change.default.is_some() {
        // The default is a property of the pool.
        rest.admin.allow(&known, Action::Administer, &Resource::pool(&pool)).await?;
    }
    let changes = changes(&change)?;
    let what = ("change dataset", format!("{pool}/{name}"));
    let (controller, of) = (rest.admin.controller.clone(), browser.clone());
    let changed = super::change(&known, Action::Administer, what, async move {
        if changes != PropertyChanges::default() {
            controller.set_properties(of.handle(&dataset), changes).await?;
        }
        let catalog = &of.pool().catalog;
        match change.default {
            Some(true) => catalog.set_default_dataset(Some(dataset.id())).await?,
            Some(false) if catalog.default_dataset().await? == Some(dataset.id()) => {
                catalog.set_default_dataset(None).await?;
            }
            Some(false) | None => {}
        }
        Ok(())
    });
    changed.await?;
    shown(&rest, &known, &browser, &name).await
}

/// A name for a dataset.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewName {
    name: String,
}

/// Give a dataset another name; its handle, snapshots and policy stay with it
#[utoipa::path(
    post, path = "/pools/{pool}/datasets/{dataset}/rename", tag = "datasets",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    request_body = NewName,
    responses((status = 200, body = DatasetShape))
)]
pub async fn rename(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    Body(NewName { name: new_name }): Body<NewName>,
) -> Result<Json<DatasetShape>, Problem> {
    let (browser, dataset) = rest.dataset(&known, Action::Administer, (&pool, &name)).await?;
    rest.admin.allow(&known, Action::Administer, &Resource::dataset(&pool, &new_name)).await?;
    let new_name = browse::dataset_name(&new_name)?;
    let what = ("rename dataset", format!("{pool}/{name} to {new_name}"));
    let (controller, handle) = (rest.admin.controller.clone(), browser.handle(&dataset));
    let to = new_name.clone();
    let work = async move { controller.rename_volume(handle, &to).await };
    super::change(&known, Action::Administer, what, work).await?;
    shown(&rest, &known, &browser, new_name.as_str()).await
}

/// Delete a dataset; its snapshots stay
#[utoipa::path(
    delete, path = "/pools/{pool}/datasets/{dataset}", tag = "datasets",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    responses((status = 204, description = "It is deleted; its space is freed by a collection"))
)]
pub async fn delete(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<StatusCode, Problem> {
    query.only(&[])?;
    let browser = rest.admin.browse(&known, Action::Administer, &pool, &name).await?;
    let Some(found) = browser.record(&name).await? else {
        let why = format!("dataset {name} does not exist: nothing to delete");
        return Err(Problem::of(Class::NotFound, why));
    };
    let what = ("delete dataset", format!("{pool}/{name}"));
    let (controller, handle) = (rest.admin.controller.clone(), browser.handle(&found));
    let work = async move { controller.delete_volume(handle).await };
    super::change(&known, Action::Administer, what, work).await?;
    Ok(StatusCode::NO_CONTENT)
}
