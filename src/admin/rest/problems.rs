//! What needs somebody's attention, and what to do about it.
//!
//! Volumes of this process and pools are known without a request. What other nodes report, and
//! whether they live, is read from the store, once in [`AGE_MAX`] whoever asks. A node is silent
//! when its newest heartbeat has been the same for as long as its lease: that takes two looks.

use super::ask::Query;
use super::shape::Page;
use super::{Problem, Rest};
use crate::admin::access::Known;
use crate::admin::auth::{Action, Resource};
use crate::catalog::{CatalogError, Dataset, State as RecordState};
use crate::control::Pool;
use crate::types::SessionId;
use crate::volume::is_maintenance;
use axum::Json;
use axum::extract::State;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::ToSchema;

/// What was read from the store is shown for this long.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Sessions whose heartbeats are looked at, each by one request.
const SESSIONS_MAX: usize = 100;

/// Something that is wrong.
#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// `error` or `warning`.
    severity: &'static str,
    /// What it is about: `pool NAME`, `dataset POOL/NAME`.
    subject: String,
    message: String,
    next_step: String,
}

/// A trouble, and what a caller has to see to be told.
#[derive(Clone)]
struct Found {
    about: Resource,
    trouble: Trouble,
}

impl Found {
    fn new(severity: &'static str, about: Resource, message: String, next: &str) -> Self {
        let (subject, next_step) = (about.to_string(), next.to_owned());
        Self { trouble: Trouble { severity, subject, message, next_step }, about }
    }
}

/// What was found out from the store.
#[derive(Default)]
pub struct Troubles {
    read: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Found>>)>>,
    /// The newest heartbeat of each session, and since when it has been the newest.
    heartbeats: Mutex<HashMap<SessionId, (Option<u64>, Instant)>>,
}

/// What is wrong at the moment, worst first
#[utoipa::path(
    get, path = "/problems", tag = "tasks", responses((status = 200, body = Page<Trouble>))
)]
pub async fn list(
    State(rest): State<Rest>,
    known: Known,
    query: Query,
) -> Result<Json<Page<Trouble>>, Problem> {
    query.only(&[])?;
    rest.admin.allow(&known, Action::List, &Resource::Server).await?;
    let mut found = pools(&rest);
    found.extend(volumes(&rest));
    found.extend(overdue(&rest));
    found.extend(rest.troubles.read(&rest).await.iter().cloned());
    found.sort_by_key(|found| found.trouble.severity);
    let mut items = Vec::new();
    for Found { about, trouble } in found {
        if rest.admin.allow(&known, Action::List, &about).await.is_ok() {
            items.push(trouble);
        }
    }
    Ok(Json(Page::whole(items)))
}

fn pools(rest: &Rest) -> Vec<Found> {
    let pools = rest.admin.controller.pools();
    let waiting = pools.not_open().into_iter().map(|(name, why)| {
        let next = "It is tried again by itself. Check the store, its address and the credentials.";
        let message = format!("The pool is not open yet: {why}");
        Found::new("error", Resource::Pool(name), message, next)
    });
    let refusing = pools.iter().filter_map(|pool| {
        let message = format!("The store refuses writes: {}", pool.catalog.bucket().refusal()?);
        let next = "Volumes keep their data in memory until the store accepts it. Check the \
            credentials and their rights, and the store's limits on objects.";
        Some(Found::new("error", Resource::pool(&pool.name), message, next))
    });
    waiting.chain(refusing).collect()
}

const DAMAGED_NEXT: &str = "Copy its files, or those of its newest snapshot, into a new dataset; \
    `zerofs-csi check` names what is damaged.";

fn volumes(rest: &Rest) -> Vec<Found> {
    let pools = rest.admin.controller.pools();
    let volumes = rest.admin.volumes.list();
    let damaged = volumes.iter().filter_map(|volume| {
        let damage = volume.fs.damage()?;
        let pool = pools.iter().find(|pool| pool.id() == volume.pool)?;
        let about = Resource::dataset(&pool.name, volume.dataset.name.as_str());
        let message = format!("Its database is damaged, and will stop accepting changes: {damage}");
        Some(Found::new("error", about, message, DAMAGED_NEXT))
    });
    damaged.collect()
}

/// Policies that this process runs, and that have not done what is due.
fn overdue(rest: &Rest) -> Vec<Found> {
    let late = rest.admin.controller.pools().iter().filter_map(|pool| {
        let count = rest.admin.policies.of(pool.id())?.overdue;
        let message = match count {
            0 => return None,
            1 => "A dataset waits for a snapshot that its policy should have taken.".to_owned(),
            count => {
                format!(
                    "{count} datasets wait for snapshots that their policies should have taken."
                )
            }
        };
        let next = "It is tried again by itself. The log says why it fails; `zerofs-csi policy \
            show` shows when the next one is due.";
        Some(Found::new("warning", Resource::pool(&pool.name), message, next))
    });
    late.collect()
}

impl Troubles {
    async fn read(&self, rest: &Rest) -> Arc<Vec<Found>> {
        let mut read = self.read.lock().await;
        if let Some((at, found)) = read.as_ref()
            && at.elapsed() < AGE_MAX
        {
            return found.clone();
        }
        let mut found = Vec::new();
        for pool in rest.admin.controller.pools().iter() {
            match self.of_pool(rest, pool).await {
                Ok(more) => found.extend(more),
                Err(error) => {
                    let message = format!("The catalog of the pool cannot be read: {error}");
                    let next = "It is tried again by itself. Check the store and the credentials.";
                    found.push(Found::new("error", Resource::pool(&pool.name), message, next));
                }
            }
        }
        let found = Arc::new(found);
        *read = Some((Instant::now(), found.clone()));
        found
    }

    async fn of_pool(&self, rest: &Rest, pool: &Pool) -> Result<Vec<Found>, CatalogError> {
        let datasets: Vec<Dataset> =
            pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
        let mut found = Vec::new();
        for (_, report) in pool.catalog.damage_reports().await? {
            let of = datasets.iter().find(|dataset| dataset.id() == report.dataset);
            let Some(dataset) = of.filter(|dataset| dataset.state == RecordState::Ready) else {
                continue;
            };
            let about = Resource::dataset(&pool.name, dataset.name.as_str());
            let message =
                format!("Node {} reports that it is damaged: {}", report.node, report.why);
            found.push(Found::new("error", about, message, DAMAGED_NEXT));
        }
        found.extend(self.silent(rest, pool, &datasets).await?);
        Ok(found)
    }

    /// The datasets of nodes that show no sign of life.
    async fn silent(
        &self,
        rest: &Rest,
        pool: &Pool,
        datasets: &[Dataset],
    ) -> Result<Vec<Found>, CatalogError> {
        let own = rest.admin.volumes.settings().session;
        let mut owned: HashMap<SessionId, Vec<&Dataset>> = HashMap::new();
        for dataset in datasets {
            let owner = dataset.owner.as_ref().filter(|owner| !is_maintenance(owner));
            if let Some(owner) = owner.filter(|owner| owner.session != own) {
                owned.entry(owner.session).or_default().push(dataset);
            }
        }
        let mut found = Vec::new();
        for (session, datasets) in owned.into_iter().take(SESSIONS_MAX) {
            let newest = pool.catalog.node_status(session).await?.newest();
            let silent_for = self.unchanged_for(session, newest, Instant::now());
            for dataset in datasets {
                let Some(owner) = &dataset.owner else { continue };
                if silent_for < Duration::from_millis(owner.lease_millis) || silent_for.is_zero() {
                    continue;
                }
                let about = Resource::dataset(&pool.name, dataset.name.as_str());
                let secs = silent_for.as_secs();
                let message = format!(
                    "Node {} has it open, and shows no sign of life for {secs} s",
                    owner.node
                );
                let next = "Another node takes it over when it needs it. If the node is gone for \
                    good, `zerofs-csi dataset release --force` gives up what only its disk has.";
                found.push(Found::new("warning", about, message, next));
            }
        }
        Ok(found)
    }

    /// How long the newest heartbeat of a session has been the same, as far as was seen.
    fn unchanged_for(&self, session: SessionId, newest: Option<u64>, now: Instant) -> Duration {
        let mut heartbeats = self.heartbeats.lock();
        if heartbeats.len() > 2 * SESSIONS_MAX {
            heartbeats.clear();
        }
        let (number, since) = heartbeats.entry(session).or_insert((newest, now));
        if *number != newest {
            (*number, *since) = (newest, now);
        }
        now.duration_since(*since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_silent_while_its_newest_heartbeat_is_the_same() {
        let (troubles, session) = (Troubles::default(), SessionId::random());
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let unchanged_for =
            |newest, secs| troubles.unchanged_for(session, newest, at(secs)).as_secs();
        assert_eq!(
            [unchanged_for(Some(1), 0), unchanged_for(Some(1), 20), unchanged_for(Some(2), 30)],
            [0, 20, 0]
        );
        assert_eq!(
            [unchanged_for(Some(2), 50), unchanged_for(None, 60), unchanged_for(None, 70)],
            [20, 0, 10]
        );
        for _ in 0..3 * SESSIONS_MAX {
            troubles.unchanged_for(SessionId::random(), None, start);
        }
        assert!(troubles.heartbeats.lock().len() <= 2 * SESSIONS_MAX + 1);
    }
}
