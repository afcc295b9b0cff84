//! Problems that need somebody's attention, and the next step for each.
//!
//! Volumes of this process and pools are known without a request. What other nodes report, and
//! whether they live, is read from the store, once in [`AGE_MAX`] whoever asks. A node is silent
//! when its newest heartbeat has been the same for as long as its lease: that takes two looks.

use super::policy::PolicyStatus;
use super::{Controller, Pool};
use crate::catalog::{CatalogError, Dataset, State};
use crate::types::{DatasetName, SessionId};
use crate::volume::{Volumes, is_maintenance};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers of the store are reused for this long.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Sessions whose heartbeats are looked at, each by one request.
const SESSIONS_MAX: usize = 100;

/// The worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
}

/// The object that has a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Pool(String),
    Dataset { pool: String, dataset: DatasetName },
}

impl Subject {
    fn dataset(pool: &Pool, dataset: &DatasetName) -> Self {
        Self::Dataset { pool: pool.name.clone(), dataset: dataset.clone() }
    }
}

/// One problem.
#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    pub subject: Subject,
    pub message: String,
    pub next_step: String,
}

impl Finding {
    fn new(severity: Severity, subject: Subject, message: String, next: &str) -> Self {
        Self { severity, subject, message, next_step: next.to_owned() }
    }
}

/// The parts of a process in which problems are looked for.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    pub controller: &'a Controller,
    pub volumes: &'a Volumes,
    pub policies: &'a PolicyStatus,
}

/// Finds problems, and remembers what it read from the store.
#[derive(Default)]
pub struct Problems {
    read: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Finding>>)>>,
    /// The newest heartbeat of each session, and since when it has been the newest.
    heartbeats: Mutex<HashMap<SessionId, (Option<u64>, Instant)>>,
}

impl Problems {
    /// Returns the problems at the moment, worst first.
    pub async fn find(&self, parts: Sources<'_>) -> Vec<Finding> {
        let mut found = pools(parts);
        found.extend(volumes(parts));
        found.extend(overdue(parts));
        found.extend(self.read(parts).await.iter().cloned());
        found.sort_by_key(|finding| finding.severity);
        found
    }

    async fn read(&self, parts: Sources<'_>) -> Arc<Vec<Finding>> {
        let mut read = self.read.lock().await;
        if let Some((at, found)) = read.as_ref()
            && at.elapsed() < AGE_MAX
        {
            return found.clone();
        }
        let mut found = Vec::new();
        for pool in parts.controller.pools().iter() {
            match self.of_pool(parts, pool).await {
                Ok(more) => found.extend(more),
                Err(error) => {
                    let message = format!("The catalog of the pool cannot be read: {error}");
                    let next = "It is tried again by itself. Check the store and the credentials.";
                    found.push(Finding::new(
                        Severity::Error,
                        Subject::Pool(pool.name.clone()),
                        message,
                        next,
                    ));
                }
            }
        }
        let found = Arc::new(found);
        *read = Some((Instant::now(), found.clone()));
        found
    }

    async fn of_pool(&self, parts: Sources<'_>, pool: &Pool) -> Result<Vec<Finding>, CatalogError> {
        let datasets: Vec<Dataset> =
            pool.catalog.datasets().await?.into_iter().map(|at| at.record).collect();
        let mut found = Vec::new();
        for (_, report) in pool.catalog.damage_reports().await? {
            let of = datasets.iter().find(|dataset| dataset.id() == report.dataset);
            let Some(dataset) = of.filter(|dataset| dataset.state == State::Ready) else {
                continue;
            };
            let subject = Subject::dataset(pool, &dataset.name);
            let message =
                format!("Node {} reports that it is damaged: {}", report.node, report.why);
            found.push(Finding::new(Severity::Error, subject, message, DAMAGED_NEXT));
        }
        found.extend(self.silent(parts, pool, &datasets).await?);
        Ok(found)
    }

    /// The datasets of nodes that show no sign of life.
    async fn silent(
        &self,
        parts: Sources<'_>,
        pool: &Pool,
        datasets: &[Dataset],
    ) -> Result<Vec<Finding>, CatalogError> {
        let own = parts.volumes.settings().session;
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
                let subject = Subject::dataset(pool, &dataset.name);
                let secs = silent_for.as_secs();
                let message = format!(
                    "Node {} has it open, and shows no sign of life for {secs} s",
                    owner.node
                );
                let next = "Another node takes it over when it needs it. If the node is gone for \
                    good, `zerofs-csi dataset release --force` gives up what only its disk has.";
                found.push(Finding::new(Severity::Warning, subject, message, next));
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

fn pools(parts: Sources<'_>) -> Vec<Finding> {
    let pools = parts.controller.pools();
    let waiting = pools.not_open().into_iter().map(|(name, why)| {
        let next = "It is tried again by itself. Check the store, its address and the credentials.";
        let message = format!("The pool is not open yet: {why}");
        Finding::new(Severity::Error, Subject::Pool(name), message, next)
    });
    let refusing = pools.iter().filter_map(|pool| {
        let message = format!("The store refuses writes: {}", pool.catalog.bucket().refusal()?);
        let next = "Volumes keep their data in memory until the store accepts it. Check the \
            credentials and their rights, and the store's limits on objects.";
        Some(Finding::new(Severity::Error, Subject::Pool(pool.name.clone()), message, next))
    });
    waiting.chain(refusing).collect()
}

const DAMAGED_NEXT: &str = "Copy its files, or those of its newest snapshot, into a new dataset; \
    `zerofs-csi check` names what is damaged.";

fn volumes(parts: Sources<'_>) -> Vec<Finding> {
    let pools = parts.controller.pools();
    let volumes = parts.volumes.list();
    let damaged = volumes.iter().filter_map(|volume| {
        let damage = volume.fs.damage()?;
        let pool = pools.iter().find(|pool| pool.id() == volume.pool)?;
        let subject = Subject::dataset(pool, &volume.dataset.name);
        let message = format!("Its database is damaged, and will stop accepting changes: {damage}");
        Some(Finding::new(Severity::Error, subject, message, DAMAGED_NEXT))
    });
    damaged.collect()
}

/// Policies that this process runs, and that have not done what is due.
fn overdue(parts: Sources<'_>) -> Vec<Finding> {
    let late = parts.controller.pools().iter().filter_map(|pool| {
        let count = parts.policies.of(pool.id())?.overdue;
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
        Some(Finding::new(Severity::Warning, Subject::Pool(pool.name.clone()), message, next))
    });
    late.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_silent_while_its_newest_heartbeat_is_the_same() {
        let (problems, session) = (Problems::default(), SessionId::random());
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let unchanged_for =
            |newest, secs| problems.unchanged_for(session, newest, at(secs)).as_secs();
        assert_eq!(
            [unchanged_for(Some(1), 0), unchanged_for(Some(1), 20), unchanged_for(Some(2), 30)],
            [0, 20, 0]
        );
        assert_eq!(
            [unchanged_for(Some(2), 50), unchanged_for(None, 60), unchanged_for(None, 70)],
            [20, 0, 10]
        );
        for _ in 0..3 * SESSIONS_MAX {
            problems.unchanged_for(SessionId::random(), None, start);
        }
        assert!(problems.heartbeats.lock().len() <= 2 * SESSIONS_MAX + 1);
    }
}
