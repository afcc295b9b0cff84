//! Changes in a process and a pool, for callers who watch.
//!
//! Changes of tasks are sent at once. Datasets and snapshots may be changed by any process, and the
//! store notifies nobody: their records are read every [`POLL_INTERVAL`], for each watcher.
//!
//! A watcher is told the end of its session at once when somebody logs out, and at the next poll
//! when the session or its token expires, or the token is taken out of the file.

use super::access::{Access, Authenticated};
use super::auth::{Action, Denied, Place, Resource, Session};
use crate::control::browse::{Browser, DatasetFacts, SnapshotFacts};
use crate::control::{self, ControlError, Pool, Tasks};
use crate::types::{Class, Classify};
use futures::{Stream, StreamExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

/// Interval at which the records of datasets and snapshots are read.
const POLL_INTERVAL: Duration = Duration::from_secs(15);
/// Changes of tasks are sent no more often.
const PAUSE: Duration = Duration::from_millis(200);

/// A change as an interface sends it. One that is equal to the last one of its object is not sent.
pub trait WatchEvent: Clone + PartialEq + Send + Sync + 'static {
    fn task(task: control::Task) -> Self;
    fn dataset(pool: &Pool, facts: DatasetFacts) -> Self;
    fn snapshot(pool: &Pool, facts: SnapshotFacts) -> Self;
    /// `name`: `DATASET` or `DATASET@SNAPSHOT`.
    fn removed(name: String) -> Self;
}

/// The reason why the changes end before their watcher leaves.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The caller has lost the right to watch.
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl Classify for WatchError {
    fn class(&self) -> Class {
        match self {
            Self::Denied(denied) => denied.class(),
            Self::Control(error) => error.class(),
        }
    }
}

/// The pool that is watched, and by whom.
pub struct Watch {
    pub access: Arc<Access>,
    pub tasks: Tasks,
    pub browser: Browser,
    pub known: Authenticated,
}

/// The watcher has gone.
struct Gone;

type Changes<T> = mpsc::Sender<Result<T, WatchError>>;

/// The last events that a watcher was sent, by object.
struct LastEvents<T> {
    tasks: HashMap<u64, T>,
    datasets: HashMap<String, T>,
    snapshots: HashMap<String, T>,
}

/// Every object as it is, then each change, until this is dropped or an error ends it. `place`:
/// among those who watch.
pub fn watch<T: WatchEvent>(
    wanted: Watch,
    place: Place,
) -> impl Stream<Item = Result<T, WatchError>> + Send + 'static {
    let (to, changes) = mpsc::channel(1);
    let held = (place, AbortOnDropHandle::new(tokio::spawn(wanted.run(to))));
    ReceiverStream::new(changes).map(move |change| {
        let _held = &held;
        change
    })
}

/// The object that a task works on. A task of a whole pool is for those who see all of it.
pub fn resource(task: &control::Task) -> Resource {
    match &task.dataset {
        Some(dataset) => Resource::dataset(&task.pool, dataset),
        None => Resource::dataset(&task.pool, "*"),
    }
}

async fn send<T>(to: &Changes<T>, change: T) -> Result<(), Gone> {
    to.send(Ok(change)).await.map_err(|_| Gone)
}

/// Waits until somebody logs out of a session; without one, for ever.
async fn ended(session: Option<&Session>) {
    match session {
        Some(session) => session.ended().await,
        None => std::future::pending().await,
    }
}

impl Watch {
    async fn run<T: WatchEvent>(self, to: Changes<T>) {
        let ended = tokio::select! {
            biased;
            () = ended(self.known.session.as_ref()) => Err(self.access_ended().into()),
            ended = self.tell(&to) => ended,
        };
        if let Err(error) = ended {
            let _gone = to.send(Err(error)).await;
        }
    }

    /// Tells changes until the watcher leaves.
    async fn tell<T: WatchEvent>(&self, to: &Changes<T>) -> Result<(), WatchError> {
        let mut last = LastEvents {
            tasks: HashMap::new(),
            datasets: HashMap::new(),
            snapshots: HashMap::new(),
        };
        let mut tasks = self.tasks.watch();
        let mut look = Instant::now();
        loop {
            tasks.mark_unchanged();
            if self.send_tasks(&mut last, to).await.is_err() {
                return Ok(());
            }
            if Instant::now() >= look {
                if self.send_records(&mut last, to).await?.is_err() {
                    return Ok(());
                }
                look = Instant::now() + POLL_INTERVAL;
            }
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                changed = tasks.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep_until(look) => {}
                () = to.closed() => return Ok(()),
            }
        }
    }

    fn access_ended(&self) -> Denied {
        Denied::Ended { caller: self.known.caller.name.clone() }
    }

    async fn allow(&self, resource: &Resource) -> Result<(), Denied> {
        self.access.authorizer.allow(&self.known.caller, Action::List, resource).await
    }

    /// Whether the caller may watch still: a session or token may have expired, and a token may
    /// have been taken out of its file.
    async fn may_go_on(&self) -> Result<(), Denied> {
        if self.known.session.as_ref().is_some_and(|of| !self.access.sessions.is_open(of)) {
            return Err(self.access_ended());
        }
        self.allow(&Resource::pool(&self.browser.pool().name)).await
    }

    async fn send_tasks<T: WatchEvent>(
        &self,
        last: &mut LastEvents<T>,
        to: &Changes<T>,
    ) -> Result<(), Gone> {
        let now = self.tasks.list();
        last.tasks.retain(|id, _| now.iter().any(|task| task.id == *id));
        // The oldest first.
        for task in now.into_iter().rev() {
            let (id, resource) = (task.id, resource(&task));
            let task = T::task(task);
            if last.tasks.get(&id) != Some(&task) && self.allow(&resource).await.is_ok() {
                last.tasks.insert(id, task.clone());
                send(to, task).await?;
            }
        }
        Ok(())
    }

    async fn send_records<T: WatchEvent>(
        &self,
        last: &mut LastEvents<T>,
        to: &Changes<T>,
    ) -> Result<Result<(), Gone>, WatchError> {
        self.may_go_on().await?;
        let pool = self.browser.pool();
        let (mut datasets, mut snapshots) = (HashMap::new(), HashMap::new());
        for facts in self.browser.datasets().await? {
            let name = facts.dataset.name.to_string();
            if self.allow(&Resource::dataset(&pool.name, &name)).await.is_ok() {
                let facts = self.access.known_facts(&self.known.caller, &pool.name, facts).await;
                datasets.insert(name, T::dataset(pool, facts));
            }
        }
        for facts in self.browser.snapshots(None).await? {
            if self.allow(&Resource::dataset(&pool.name, &facts.dataset)).await.is_ok() {
                let name = format!("{}@{}", facts.dataset, facts.name);
                snapshots.insert(name, T::snapshot(pool, facts));
            }
        }
        Ok(last.changes(datasets, snapshots, to).await)
    }
}

impl<T: WatchEvent> LastEvents<T> {
    async fn changes(
        &mut self,
        datasets: HashMap<String, T>,
        snapshots: HashMap<String, T>,
        to: &Changes<T>,
    ) -> Result<(), Gone> {
        for (now, last) in [(&datasets, &self.datasets), (&snapshots, &self.snapshots)] {
            for (name, change) in now {
                if last.get(name) != Some(change) {
                    send(to, change.clone()).await?;
                }
            }
        }
        let gone = self.datasets.keys().filter(|name| !datasets.contains_key(*name));
        // A writable snapshot is both a dataset and a snapshot, and is sent once.
        let gone_too = self
            .snapshots
            .keys()
            .filter(|name| !snapshots.contains_key(*name) && !self.datasets.contains_key(*name));
        for name in gone.chain(gone_too) {
            send(to, T::removed(name.clone())).await?;
        }
        (self.datasets, self.snapshots) = (datasets, snapshots);
        Ok(())
    }
}
