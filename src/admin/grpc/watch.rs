//! Changes in a process and a pool, for callers who watch.
//!
//! Tasks are sent at once. Datasets and snapshots may be changed by any process, and the store
//! tells nobody: their records are read every [`POLL_INTERVAL`], for each watcher.

use super::super::auth::Resource;
use super::call::Call;
use super::proto::watch_response::Change;
use super::proto::*;
use super::{Services, convert};
use crate::control::browse::Browser;
use crate::control::{self, ControlError};
use crate::rpc::status;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

/// Interval at which the records of datasets and snapshots are read.
const POLL_INTERVAL: Duration = Duration::from_secs(15);
/// Tasks are sent no more often.
const PAUSE: Duration = Duration::from_millis(200);

type Changes = mpsc::Sender<Result<WatchResponse, Status>>;

/// The caller has gone.
struct Gone;

/// The state that a watcher was sent last.
#[derive(Default)]
struct Sent {
    tasks: HashMap<u64, Task>,
    datasets: HashMap<String, Dataset>,
    snapshots: HashMap<String, Snapshot>,
}

/// Tells changes until the caller goes away or an error ends it.
pub(super) async fn watch(services: Services, call: Call, browser: Browser, to: Changes) {
    let mut sent = Sent::default();
    let mut tasks = services.admin.tasks.watch();
    let mut look = Instant::now();
    loop {
        tasks.mark_unchanged();
        if sent.tasks(&services, &call, &to).await.is_err() {
            return;
        }
        if Instant::now() >= look {
            match sent.records(&services, &call, &browser, &to).await {
                Ok(Ok(())) => look = Instant::now() + POLL_INTERVAL,
                Ok(Err(Gone)) => return,
                Err(error) => {
                    let _gone = to.send(Err(status(&error))).await;
                    return;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            changed = tasks.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(look) => {}
            () = to.closed() => return,
        }
    }
}

/// The object that a task works on. A task of a whole pool is for those who see all of it.
pub(super) fn resource(task: &control::Task) -> Resource {
    match &task.dataset {
        Some(dataset) => Resource::dataset(&task.pool, dataset),
        None => Resource::dataset(&task.pool, "*"),
    }
}

async fn send(to: &Changes, change: Change) -> Result<(), Gone> {
    to.send(Ok(WatchResponse { change: Some(change) })).await.map_err(|_| Gone)
}

impl Sent {
    async fn tasks(&mut self, services: &Services, call: &Call, to: &Changes) -> Result<(), Gone> {
        let now = services.admin.tasks.list();
        self.tasks.retain(|id, _| now.iter().any(|task| task.id == *id));
        // The oldest first.
        for task in now.into_iter().rev() {
            let resource = resource(&task);
            let task = convert::task(task);
            if self.tasks.get(&task.id) != Some(&task)
                && services.admission.shows(call, &resource).await
            {
                self.tasks.insert(task.id, task.clone());
                send(to, Change::Task(task)).await?;
            }
        }
        Ok(())
    }

    async fn records(
        &mut self,
        services: &Services,
        call: &Call,
        browser: &Browser,
        to: &Changes,
    ) -> Result<Result<(), Gone>, ControlError> {
        let pool = browser.pool();
        let (mut datasets, mut snapshots) = (HashMap::new(), HashMap::new());
        for facts in browser.datasets().await? {
            let name = facts.dataset.name.to_string();
            if services.admission.shows(call, &Resource::dataset(&pool.name, &name)).await {
                datasets.insert(name, convert::dataset(pool, facts));
            }
        }
        for facts in browser.snapshots(None).await? {
            if services.admission.shows(call, &Resource::dataset(&pool.name, &facts.dataset)).await
            {
                let name = format!("{}@{}", facts.dataset, facts.name);
                snapshots.insert(name, convert::snapshot(pool, facts));
            }
        }
        Ok(self.changes(datasets, snapshots, to).await)
    }

    async fn changes(
        &mut self,
        datasets: HashMap<String, Dataset>,
        snapshots: HashMap<String, Snapshot>,
        to: &Changes,
    ) -> Result<(), Gone> {
        for (name, dataset) in &datasets {
            if self.datasets.get(name) != Some(dataset) {
                send(to, Change::Dataset(dataset.clone())).await?;
            }
        }
        for (name, snapshot) in &snapshots {
            if self.snapshots.get(name) != Some(snapshot) {
                send(to, Change::Snapshot(snapshot.clone())).await?;
            }
        }
        let gone = self.datasets.keys().filter(|name| !datasets.contains_key(*name));
        // A writable snapshot is both a dataset and a snapshot, and is sent once.
        let gone_too = self
            .snapshots
            .keys()
            .filter(|name| !snapshots.contains_key(*name) && !self.datasets.contains_key(*name));
        for name in gone.chain(gone_too) {
            send(to, Change::Removed(name.clone())).await?;
        }
        (self.datasets, self.snapshots) = (datasets, snapshots);
        Ok(())
    }
}
