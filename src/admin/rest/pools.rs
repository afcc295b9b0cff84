//! Pools, and the space that is used in them.

use super::ask::{PathParams, Query};
use super::shape::Page;
use super::{Problem, Rest};
use crate::admin::access::Authenticated;
use crate::admin::auth::{Action, Resource};
use crate::control::{Accuracy, ControlError, Pool, Space, space};
use crate::types::{PoolId, Timestamp};
use crate::volume::Volumes;
use axum::Json;
use axum::extract::State;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::ToSchema;

/// Figures are measured again after this long: it takes a request for each page of the bucket's
/// list, and reads a row of every root for each of its packs.
const SPACE_AGE_MAX: Duration = Duration::from_secs(600);
/// Time that a request waits for a measurement, which goes on without it.
const SPACE_WAIT: Duration = Duration::from_secs(25);

/// A pool.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolShape {
    name: String,
    url: String,
    /// Null while the pool is not open.
    id: Option<String>,
    encrypted: bool,
    /// The dataset of commands and mounts that name none.
    default_dataset: Option<String>,
    /// Why the pool is not open yet.
    waiting: Option<String>,
}

/// The space of a pool.
#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpaceShape {
    /// Bytes in the bucket: data and databases.
    stored_bytes: u64,
    /// Bytes that the live datasets refer to, as their users see them.
    logical_bytes: u64,
    /// Bytes of the bucket that only one dataset or snapshot uses.
    unique_bytes: u64,
    /// Data that the live datasets refer to, divided by what of it is different; null in an
    /// estimate.
    dedup_ratio: Option<f64>,
    /// The different data divided by its stored size; null in an estimate.
    compression_ratio: Option<f64>,
    /// Datasets, and snapshots by `DATASET@SNAPSHOT`.
    datasets: Vec<DatasetSpace>,
    /// `estimate` or `exact`.
    accuracy: &'static str,
    measured_at: String,
}

#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetSpace {
    name: String,
    referenced_bytes: u64,
    /// Bytes of the bucket that nothing else uses: what its deletion frees. An estimate is too low
    /// where packs are shared.
    unique_bytes: u64,
    /// Bytes of the bucket that it uses, with what others use as well. An estimate is too high
    /// where packs hold other data.
    stored_bytes: u64,
}

type Measured = Result<Arc<SpaceShape>, ControlError>;
/// A measurement in progress, or its result: any number may wait for it.
type Measuring = Shared<BoxFuture<'static, Measured>>;

/// The last measurement of each pool, in each accuracy.
#[derive(Default)]
pub struct Spaces(Mutex<HashMap<(PoolId, Accuracy), (Instant, Measuring)>>);

/// The pools of this server
#[utoipa::path(
    get, path = "/pools", tag = "pools", responses((status = 200, body = Page<PoolShape>))
)]
pub async fn list(
    State(rest): State<Rest>,
    known: Authenticated,
    query: Query,
) -> Result<Json<Page<PoolShape>>, Problem> {
    query.only(&["limit", "cursor"])?;
    let limit = query.limit(super::page::DEFAULT, super::page::MAX)?;
    let mut items = Vec::new();
    for (name, why) in rest.admin.controller.pools().not_open() {
        if rest.admin.allow(&known, Action::List, &Resource::pool(&name)).await.is_ok() {
            let url = rest.url_of(&name);
            let waiting = Some(why);
            items.push(PoolShape {
                name,
                url,
                id: None,
                encrypted: false,
                default_dataset: None,
                waiting,
            });
        }
    }
    for pool in rest.admin.controller.pools().iter() {
        if rest.admin.allow(&known, Action::List, &Resource::pool(&pool.name)).await.is_ok() {
            items.push(shape(&rest, &known, pool).await?);
        }
    }
    items.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(super::page::page(items, |pool| pool.name.clone(), query.text("cursor")?, limit)?))
}

async fn shape(rest: &Rest, known: &Authenticated, pool: &Pool) -> Result<PoolShape, Problem> {
    let default = match rest.admin.browser(pool).default_dataset().await {
        Ok(found) => found.map(|dataset| dataset.name.to_string()),
        // One that was deleted is none.
        Err(error) if crate::types::Classify::class(&error) == crate::types::Class::NotFound => {
            None
        }
        Err(error) => return Err(error.into()),
    };
    let default_dataset = match default {
        Some(name) if rest.admin.sees(known, &pool.name, &name).await => Some(name),
        _ => None,
    };
    Ok(PoolShape {
        name: pool.name.clone(),
        url: rest.url_of(&pool.name),
        id: Some(pool.id().to_string()),
        encrypted: pool.catalog.pool().encryption.is_some(),
        default_dataset,
        waiting: None,
    })
}

/// The space that a pool takes, measured at most every ten minutes
#[utoipa::path(
    get, path = "/pools/{pool}/space", tag = "pools",
    params(
        ("pool" = String, Path, example = "main"),
        ("refresh" = Option<bool>, Query, description = "Measure again now"),
        ("exact" = Option<bool>, Query, description = "Read every extent: slow, and about 100 \
            bytes of memory for each chunk; for administrators")
    ),
    responses((status = 200, body = SpaceShape))
)]
pub async fn get_space(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(name): PathParams<String>,
    query: Query,
) -> Result<Json<SpaceShape>, Problem> {
    query.only(&["refresh", "exact"])?;
    let refresh = query.flag("refresh")?;
    let accuracy = if query.flag("exact")? { Accuracy::Exact } else { Accuracy::Estimate };
    let (action, of) = match accuracy {
        Accuracy::Estimate => (Action::List, Resource::pool(&name)),
        // The exact figures take minutes, and memory for each chunk of the pool.
        Accuracy::Exact => (Action::Administer, Resource::dataset(&name, "*")),
    };
    rest.admin.allow(&known, action, &of).await?;
    let pool = rest.admin.pool(&name)?;
    let measuring = rest.spaces.measure(pool, &rest.admin.volumes, accuracy, refresh);
    let Ok(measured) = tokio::time::timeout(SPACE_WAIT, measuring).await else {
        let why = format!("the space of pool {name} is still being measured: ask again");
        return Err(Problem::too_slow(why));
    };
    let mut shown = SpaceShape::clone(&*measured?);
    let mut seen = Vec::new();
    for of in shown.datasets {
        let dataset = of.name.split_once('@').map_or(of.name.as_str(), |(dataset, _)| dataset);
        if rest.admin.sees(&known, &name, dataset).await {
            seen.push(of);
        }
    }
    shown.datasets = seen;
    Ok(Json(shown))
}

impl Spaces {
    /// The figures of a pool. Measurements go on while nobody waits, and are not begun twice.
    fn measure(
        &self,
        pool: &Pool,
        volumes: &Volumes,
        accuracy: Accuracy,
        refresh: bool,
    ) -> Measuring {
        let mut all = self.0.lock();
        if let Some((since, measuring)) = all.get(&(pool.id(), accuracy)) {
            let usable = match measuring.peek() {
                None => true,
                Some(Ok(_)) => !refresh && since.elapsed() < SPACE_AGE_MAX,
                Some(Err(_)) => false,
            };
            if usable {
                return measuring.clone();
            }
        }
        let (pool, volumes, id) = (pool.clone(), volumes.clone(), pool.id());
        let task = tokio::spawn(async move {
            Box::pin(space(&pool, &volumes, None, accuracy))
                .await
                .map(|found| Arc::new(shown(found)))
        });
        let ended = |error| ControlError::Internal(format!("the measurement ended early: {error}"));
        let measuring = task.map(move |done| done.map_err(ended)?).boxed().shared();
        all.insert((id, accuracy), (Instant::now(), measuring.clone()));
        measuring
    }
}

fn shown(found: Space) -> SpaceShape {
    let heads = found.of.iter().filter(|of| !of.name.contains('@'));
    let logical_bytes = heads.map(|of| of.logical_bytes.unwrap_or(of.referenced_bytes)).sum();
    let unique_bytes = found.of.iter().map(|of| of.unique_bytes).sum();
    let exact = found.of.iter().all(|of| !of.estimated);
    let dataset = |of: crate::control::SpaceOf| DatasetSpace {
        name: of.name,
        referenced_bytes: of.referenced_bytes,
        unique_bytes: of.unique_bytes,
        stored_bytes: of.stored_bytes,
    };
    SpaceShape {
        stored_bytes: found.pack_bytes + found.database_bytes,
        logical_bytes,
        unique_bytes,
        dedup_ratio: found.dedup_ratio,
        compression_ratio: found.compression_ratio,
        datasets: found.of.into_iter().map(dataset).collect(),
        accuracy: if exact { "exact" } else { "estimate" },
        measured_at: Timestamp::now().rfc3339(),
    }
}
