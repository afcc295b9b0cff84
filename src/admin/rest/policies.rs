//! Snapshot policies: which snapshots are taken by themselves, and which are kept.

use super::ask::{Body, PathParams, Query};
use super::page;
use super::shape::Page;
use super::{Problem, Rest, change};
use crate::admin::access::Authenticated;
use crate::admin::auth::{Action, Resource};
use crate::catalog::{Keep, KeepRules, SnapshotPolicy};
use crate::control::policy::{DEFAULT_PREFIX, ShownPolicy, Simulated, parse_keep};
use crate::types::{Incarnation, Timestamp};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use utoipa::ToSchema;

/// The days that are simulated, unless another number is asked for.
const DAYS_DEFAULT: u32 = 30;

/// A policy to set.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewPolicy {
    /// The five fields of cron, or an interval like `15min`.
    #[schema(example = "1h")]
    schedule: String,
    /// By its IANA name.
    #[serde(default = "utc")]
    #[schema(default = "UTC")]
    time_zone: String,
    /// The prefix of the names of its snapshots.
    #[serde(default = "prefix")]
    #[schema(default = "auto-")]
    prefix: String,
    /// Take none while nothing has changed.
    #[serde(default)]
    skip_empty: bool,
    keep: NewKeepRules,
}

/// Retention: a number of snapshots, or a time like `30d`. The newest is always kept.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewKeepRules {
    /// The newest ones.
    last: Option<String>,
    /// The newest of each hour that has any, …
    #[schema(example = "24")]
    hourly: Option<String>,
    daily: Option<String>,
    weekly: Option<String>,
    monthly: Option<String>,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn prefix() -> String {
    DEFAULT_PREFIX.to_owned()
}

impl NewPolicy {
    fn read(self) -> Result<SnapshotPolicy, Problem> {
        let rule = |name: &str, text: Option<String>| -> Result<Option<Keep>, Problem> {
            let wrong = |why: String| Problem::invalid(format!("keep.{name}: {why}"));
            text.map(|text| parse_keep(&text).map_err(wrong)).transpose()
        };
        let keep = KeepRules {
            last: rule("last", self.keep.last)?,
            hourly: rule("hourly", self.keep.hourly)?,
            daily: rule("daily", self.keep.daily)?,
            weekly: rule("weekly", self.keep.weekly)?,
            monthly: rule("monthly", self.keep.monthly)?,
        };
        let Self { schedule, time_zone, prefix, skip_empty, .. } = self;
        Ok(SnapshotPolicy { schedule, time_zone, prefix, skip_empty, keep })
    }
}

/// A dataset's policy.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyShape {
    schedule: String,
    time_zone: String,
    prefix: String,
    skip_empty: bool,
    /// By rule: `last`, `hourly`, `daily`, `weekly`, `monthly`.
    keep: BTreeMap<String, String>,
    /// Why it takes no snapshots, if that is so.
    broken: Option<String>,
    changed: String,
    /// Nothing is deleted before this time.
    deletes_from: String,
    /// When the next snapshot is taken.
    next: Option<String>,
}

impl From<ShownPolicy> for PolicyShape {
    fn from(policy: ShownPolicy) -> Self {
        let keep = policy.keep.into_iter().map(|(rule, value)| (rule.to_owned(), value));
        Self {
            schedule: policy.schedule,
            time_zone: policy.time_zone,
            prefix: policy.prefix,
            skip_empty: policy.skip_empty,
            keep: keep.collect(),
            broken: policy.broken,
            changed: policy.changed.rfc3339(),
            deletes_from: policy.deletes_from.rfc3339(),
            next: policy.next.map(Timestamp::rfc3339),
        }
    }
}

/// The time to simulate.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Simulation {
    #[schema(default = 30, minimum = 1, maximum = 3660)]
    days: Option<u32>,
}

/// Snapshots that a policy would make and delete.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedShape {
    /// Snapshots that would be taken.
    slots: u64,
    /// The most snapshots at any time.
    most: u64,
    until: String,
    /// Oldest first.
    snapshots: Vec<SimulatedSnapshotShape>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedSnapshotShape {
    name: String,
    created: String,
    /// The snapshot exists already.
    exists: bool,
    /// When it would be deleted; null: it would be kept.
    deleted: Option<String>,
    /// Why it is kept, or not.
    reason: String,
}

impl From<Simulated> for SimulatedShape {
    fn from(done: Simulated) -> Self {
        let snapshots = done.snapshots.into_iter().map(|snapshot| SimulatedSnapshotShape {
            name: snapshot.name,
            created: snapshot.created.rfc3339(),
            exists: snapshot.exists,
            deleted: snapshot.deleted.map(Timestamp::rfc3339),
            reason: snapshot.verdict.to_string(),
        });
        Self {
            slots: done.slots as u64,
            most: done.most as u64,
            until: done.until.rfc3339(),
            snapshots: snapshots.collect(),
        }
    }
}

/// The snapshot policy of a dataset
#[utoipa::path(
    get, path = "/pools/{pool}/datasets/{dataset}/policy", tag = "policies",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    responses((status = 200, body = PolicyShape))
)]
pub async fn get(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<PolicyShape>, Problem> {
    query.only(&[])?;
    let (browser, dataset) = rest.dataset(&known, Action::List, (&pool, &name)).await?;
    let controller = &rest.admin.controller;
    Ok(Json(controller.policy(browser.pool(), &dataset, Timestamp::now()).await?.into()))
}

/// Set the snapshot policy of a dataset; a changed one deletes nothing for 24 hours
#[utoipa::path(
    put, path = "/pools/{pool}/datasets/{dataset}/policy", tag = "policies",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    request_body = NewPolicy,
    responses((status = 200, body = PolicyShape))
)]
pub async fn set(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    Body(new): Body<NewPolicy>,
) -> Result<Json<PolicyShape>, Problem> {
    let (browser, dataset) = rest.dataset(&known, Action::Administer, (&pool, &name)).await?;
    let policy = new.read()?;
    let (controller, what) =
        (rest.admin.controller.clone(), ("set policy", format!("{pool}/{name}")));
    let set = change(&known, Action::Administer, what, async move {
        controller.set_policy(browser.pool(), &dataset, policy, Timestamp::now()).await
    });
    Ok(Json(set.await?.into()))
}

/// Delete the snapshot policy of a dataset; its snapshots stay
#[utoipa::path(
    delete, path = "/pools/{pool}/datasets/{dataset}/policy", tag = "policies",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    responses((status = 204, description = "It has none"))
)]
pub async fn delete(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<StatusCode, Problem> {
    query.only(&[])?;
    let (browser, dataset) = rest.dataset(&known, Action::Administer, (&pool, &name)).await?;
    let (controller, what) =
        (rest.admin.controller.clone(), ("delete policy", format!("{pool}/{name}")));
    let deleted = change(&known, Action::Administer, what, async move {
        controller.delete_policy(browser.pool(), &dataset, Timestamp::now()).await
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Simulate the policy of a dataset over the time ahead
#[utoipa::path(
    post, path = "/pools/{pool}/datasets/{dataset}/policy/simulate", tag = "policies",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    request_body = Simulation,
    responses((status = 200, body = SimulatedShape))
)]
pub async fn simulate(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    Body(Simulation { days }): Body<Simulation>,
) -> Result<Json<SimulatedShape>, Problem> {
    let (browser, dataset) = rest.dataset(&known, Action::List, (&pool, &name)).await?;
    let (controller, days) = (&rest.admin.controller, days.unwrap_or(DAYS_DEFAULT));
    let done = controller.simulate_policy(browser.pool(), &dataset, Timestamp::now(), days).await?;
    Ok(Json(done.into()))
}

/// A policy, and the dataset whose it is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatasetPolicy {
    dataset: String,
    policy: PolicyShape,
}

/// The snapshot policies of a pool, by dataset
#[utoipa::path(
    get, path = "/pools/{pool}/policies", tag = "policies",
    params(
        ("pool" = String, Path, example = "main"),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query)
    ),
    responses((status = 200, body = Page<DatasetPolicy>))
)]
pub async fn list(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams(pool): PathParams<String>,
    query: Query,
) -> Result<Json<Page<DatasetPolicy>>, Problem> {
    query.only(&["limit", "cursor"])?;
    let limit = query.limit(page::DEFAULT, page::MAX)?;
    rest.admin.allow(&known, Action::List, &Resource::pool(&pool)).await?;
    let opened = rest.admin.pool(&pool)?;
    // The policy of a dataset that is gone goes with its next slot.
    let names: HashMap<Incarnation, String> = rest
        .admin
        .browser(opened)
        .datasets()
        .await?
        .into_iter()
        .map(|facts| (facts.dataset.incarnation, facts.dataset.name.to_string()))
        .collect();
    let mut seen = Vec::new();
    for policy in rest.admin.controller.policies(opened, Timestamp::now()).await? {
        let Some(dataset) = names.get(&policy.dataset.incarnation).cloned() else { continue };
        if rest.admin.sees(&known, &pool, &dataset).await {
            seen.push(DatasetPolicy { dataset, policy: policy.into() });
        }
    }
    seen.sort_by(|a, b| a.dataset.cmp(&b.dataset));
    let key = |of: &DatasetPolicy| of.dataset.clone();
    Ok(Json(page::page(seen, key, query.text("cursor")?, limit)?))
}

/// The outcome of a policy's run.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRan {
    /// The snapshot that was taken; null: there is nothing new, and the policy skips empty ones.
    snapshot: Option<String>,
    deleted: Vec<String>,
}

/// Run the snapshot policy of a dataset now
#[utoipa::path(
    post, path = "/pools/{pool}/datasets/{dataset}/policy/run", tag = "policies",
    params(("pool" = String, Path, example = "main"), ("dataset" = String, Path, example = "web")),
    responses((status = 200, body = PolicyRan))
)]
pub async fn run(
    State(rest): State<Rest>,
    known: Authenticated,
    PathParams((pool, name)): PathParams<(String, String)>,
    query: Query,
) -> Result<Json<PolicyRan>, Problem> {
    query.only(&[])?;
    let (browser, dataset) = rest.dataset(&known, Action::Administer, (&pool, &name)).await?;
    let (controller, what) =
        (rest.admin.controller.clone(), ("run policy", format!("{pool}/{name}")));
    let ran = change(&known, Action::Administer, what, async move {
        controller.run_policy_now(browser.pool(), &dataset, Timestamp::now()).await
    });
    let ran = ran.await?;
    Ok(Json(PolicyRan { snapshot: ran.snapshot, deleted: ran.deleted }))
}
