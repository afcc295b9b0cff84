//! The long work of this process that people start or watch: restores, scrubs, collections.
//!
//! ```text
//! begin ─▶ running, with progress ─▶ done | failed | stopped     (the last TASKS_KEPT are kept)
//! ```
//! A task lives in memory: the work itself survives a crash as its use case says, its task does
//! not. [`Tasks::watch`] changes with every step, so that a watcher need not poll.

use super::scrub::{Damaged, Scrub, Scrubbed};
use super::{ControlError, Controller, Pool, Replaced, RestoreInPlace};
use crate::catalog::Dataset;
use crate::fs::Restored;
use crate::types::{Class, Classify, DatasetId, Timestamp, VolumeHandle, plural};
use crate::volume::Volumes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks that are kept, those that run not counted.
pub const TASKS_KEPT: usize = 100;
/// Tasks that run at once.
pub const TASKS_RUNNING_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    Restore,
    Scrub,
    Collection,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskOutcome {
    Running,
    /// With a summary for people.
    Done(String),
    Failed {
        class: Class,
        why: String,
    },
    /// Stopped on request before it was complete.
    Stopped,
}

/// The state of a task at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Counted from 1 since the process started.
    pub id: u64,
    pub kind: TaskKind,
    /// The pool's name in the configuration.
    pub pool: String,
    /// The dataset that is worked on; `None`: all of the pool.
    pub dataset: Option<String>,
    /// The object of the work, for people: `DATASET`, `DATASET@SNAPSHOT:/PATH`.
    pub subject: String,
    pub started: Timestamp,
    pub ended: Option<Timestamp>,
    /// Objects done so far: files and folders of a restore, packs of a scrub or collection.
    pub objects: u64,
    /// Bytes done so far.
    pub bytes: u64,
    pub outcome: TaskOutcome,
    /// The findings of a scrub that has ended by itself.
    pub scrubbed: Option<Arc<ScrubReport>>,
}

/// The findings of a scrub.
#[derive(Debug, PartialEq, Eq)]
pub struct ScrubReport {
    /// Datasets and snapshots whose data was read.
    pub roots: Vec<String>,
    pub chunks: u64,
    /// A limited number of damaged uses, and how many there are beyond those.
    pub damaged: Vec<Damaged>,
    pub more: u64,
}

impl Task {
    pub fn is_running(&self) -> bool {
        self.outcome == TaskOutcome::Running
    }
}

/// The tasks of the process. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    list: Mutex<TaskList>,
    changes: watch::Sender<u64>,
    work: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct TaskList {
    /// Oldest first.
    tasks: VecDeque<(Task, CancellationToken)>,
    last: u64,
}

impl TaskList {
    fn is_full(&self) -> bool {
        self.tasks.iter().filter(|(task, _)| task.is_running()).count() >= TASKS_RUNNING_MAX
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new(CancellationToken::new())
    }
}

impl Tasks {
    /// `stop`: asks every task to stop.
    pub fn new(stop: CancellationToken) -> Self {
        let changes = watch::Sender::new(0);
        Self {
            inner: Arc::new(Inner {
                list: Default::default(),
                changes,
                work: Default::default(),
                stop,
            }),
        }
    }

    /// Returns whether no further task can begin now.
    pub fn is_full(&self) -> bool {
        self.inner.list.lock().is_full()
    }

    /// Registers a task that begins now.
    ///
    /// # Errors
    /// `Unavailable` while [`TASKS_RUNNING_MAX`] run.
    pub fn begin(
        &self,
        kind: TaskKind,
        pool: &Pool,
        dataset: Option<String>,
        subject: String,
    ) -> Result<RunningTask, ControlError> {
        let mut list = self.inner.list.lock();
        if list.is_full() {
            let why = format!("{TASKS_RUNNING_MAX} tasks are running: retry when one has ended");
            return Err(ControlError::Unavailable(why));
        }
        list.last += 1;
        let (id, stop) = (list.last, self.inner.stop.child_token());
        let task = Task {
            id,
            kind,
            pool: pool.name.clone(),
            dataset,
            subject,
            started: Timestamp::now(),
            ended: None,
            objects: 0,
            bytes: 0,
            outcome: TaskOutcome::Running,
            scrubbed: None,
        };
        list.tasks.push_back((task, stop.clone()));
        forget_old(&mut list.tasks);
        drop(list);
        self.changed();
        Ok(RunningTask { tasks: self.clone(), id, stop })
    }

    /// The tasks that run and those that ended lately, newest first.
    pub fn list(&self) -> Vec<Task> {
        self.inner.list.lock().tasks.iter().rev().map(|(task, _)| task.clone()).collect()
    }

    /// # Errors
    /// `NotFound`.
    pub fn get(&self, id: u64) -> Result<Task, ControlError> {
        let list = self.inner.list.lock();
        let found = list.tasks.iter().find(|(task, _)| task.id == id);
        found.map(|(task, _)| task.clone()).ok_or_else(|| unknown(id))
    }

    /// Asks a task to stop. It ends when its work is in an orderly state; one that has ended stays
    /// as it is.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn stop(&self, id: u64) -> Result<Task, ControlError> {
        let list = self.inner.list.lock();
        let (task, stop) =
            list.tasks.iter().find(|(task, _)| task.id == id).ok_or_else(|| unknown(id))?;
        stop.cancel();
        Ok(task.clone())
    }

    /// Changes with every step of any task.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Waits until the work of every task that was started here has ended.
    pub async fn ended(&self) {
        self.inner.work.close();
        self.inner.work.wait().await;
    }

    /// Starts restores in place into one volume, one after the other, all with the same treatment
    /// of the files that they replace. `changed` is called when the
    /// dataset has changed, before anybody can see that the task has ended. Returns the task's id.
    pub fn start_restore(
        &self,
        controller: &Arc<Controller>,
        pool: &Pool,
        dataset: &Dataset,
        (wanted, replaced): (Vec<RestoreInPlace>, Replaced),
        subject: String,
        changed: impl FnOnce() + Send + 'static,
    ) -> Result<u64, ControlError> {
        for one in &wanted {
            one.route()?;
        }
        let name = Some(dataset.name.to_string());
        let volume = VolumeHandle { pool: pool.id(), dataset: dataset.id() };
        let task = self.begin(TaskKind::Restore, pool, name, subject)?;
        let (id, controller) = (task.id, controller.clone());
        self.inner.work.spawn(async move {
            let restored = restore(&controller, volume, (&wanted, replaced), &task).await;
            changed();
            task.end(restored.map(|done| {
                format!("restored {}, {} bytes", plural(done.objects, "object"), done.bytes)
            }));
        });
        Ok(id)
    }

    /// Starts a scrub of a dataset with its snapshots, or of the whole pool. `rate`: bytes per
    /// second. Returns the task's id.
    pub fn start_scrub(
        &self,
        pool: &Pool,
        volumes: &Volumes,
        only: Option<&Dataset>,
        rate: Option<u64>,
    ) -> Result<u64, ControlError> {
        let name = only.map(|dataset| dataset.name.to_string());
        let subject = name.clone().unwrap_or_else(|| format!("pool {}", pool.name));
        let task = self.begin(TaskKind::Scrub, pool, name, subject)?;
        let only = only.map(Dataset::id);
        let (id, pool, volumes) = (task.id, pool.clone(), volumes.clone());
        self.inner.work.spawn(async move {
            let scrubbed = scrub(&pool, &volumes, only, rate, &task).await;
            task.end(scrubbed);
        });
        Ok(id)
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Task)) {
        if let Some((task, _)) = self.inner.list.lock().tasks.iter_mut().find(|(t, _)| t.id == id) {
            change(task);
        }
        self.changed();
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|version| *version += 1);
    }
}

fn unknown(id: u64) -> ControlError {
    ControlError::NotFound { what: format!("task {id} (the last {TASKS_KEPT} are kept)") }
}

fn forget_old(tasks: &mut VecDeque<(Task, CancellationToken)>) {
    while tasks.iter().filter(|(task, _)| !task.is_running()).count() > TASKS_KEPT {
        let Some(oldest) = tasks.iter().position(|(task, _)| !task.is_running()) else { return };
        tasks.remove(oldest);
    }
}

/// A task that runs. Dropped without an end, it failed.
pub struct RunningTask {
    tasks: Tasks,
    id: u64,
    stop: CancellationToken,
}

impl RunningTask {
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Cancelled when the task shall stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    pub fn progress(&self, objects: u64, bytes: u64) {
        self.tasks.change(self.id, |task| (task.objects, task.bytes) = (objects, bytes));
    }

    /// Reports progress from elsewhere.
    pub fn reporter(&self) -> impl Fn(u64, u64) + Send + Sync + 'static + use<> {
        let (tasks, id) = (self.tasks.clone(), self.id);
        move |objects, bytes| {
            tasks.change(id, |task| (task.objects, task.bytes) = (objects, bytes));
        }
    }

    fn found(&self, report: ScrubReport) {
        self.tasks.change(self.id, |task| task.scrubbed = Some(Arc::new(report)));
    }

    /// Removes the task: there was nothing to do.
    pub fn forget(self) {
        self.tasks.inner.list.lock().tasks.retain(|(task, _)| task.id != self.id);
        self.tasks.changed();
    }

    /// Ends the task, with a summary for people.
    pub fn end(self, result: Result<String, ControlError>) {
        let outcome = match result {
            Ok(summary) => TaskOutcome::Done(summary),
            Err(_) if self.stop.is_cancelled() => TaskOutcome::Stopped,
            Err(error) => TaskOutcome::Failed { class: error.class(), why: error.to_string() },
        };
        self.finish(outcome);
    }

    fn finish(&self, outcome: TaskOutcome) {
        self.tasks.change(self.id, |task| {
            if task.is_running() {
                (task.outcome, task.ended) = (outcome, Some(Timestamp::now()));
            }
        });
    }
}

impl Drop for RunningTask {
    fn drop(&mut self) {
        let why = "its work ended without a result; this is a defect, please report it".to_owned();
        self.finish(match self.stop.is_cancelled() {
            true => TaskOutcome::Stopped,
            false => TaskOutcome::Failed { class: Class::Internal, why },
        });
    }
}

async fn restore(
    controller: &Controller,
    volume: VolumeHandle,
    (wanted, replaced): (&[RestoreInPlace], Replaced),
    task: &RunningTask,
) -> Result<Restored, ControlError> {
    let mut done = Restored::default();
    for one in wanted {
        if task.stopping().is_cancelled() {
            return Err(ControlError::Unavailable("the process is stopping".to_owned()));
        }
        let before = done;
        let say = |now: Restored| {
            task.progress(before.objects + now.objects, before.bytes + now.bytes);
            match task.stopping().is_cancelled() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let restoring = controller.restore_in_place_with(volume, one, replaced, &say);
        let restored = Box::pin(restoring).await?;
        done.objects += restored.objects;
        done.bytes += restored.bytes;
        task.progress(done.objects, done.bytes);
    }
    Ok(done)
}

async fn scrub(
    pool: &Pool,
    volumes: &Volumes,
    only: Option<DatasetId>,
    rate: Option<u64>,
    task: &RunningTask,
) -> Result<String, ControlError> {
    let mut scrub = Scrub::new(pool, volumes, rate, None)?;
    let each = |_: &str, found: &Scrubbed| task.progress(found.packs.len() as u64, found.bytes);
    let whole = Box::pin(scrub.run(only, task.stopping(), each)).await?;
    let Scrubbed { roots, bytes, damaged, more, chunks, .. } = scrub.found();
    task.progress(scrub.found().packs.len() as u64, *bytes);
    if whole {
        let (roots, damaged) = (roots.clone(), damaged.clone());
        task.found(ScrubReport { roots, chunks: *chunks, damaged, more: *more });
    }
    match (damaged.first(), whole) {
        (Some(first), _) => {
            let places = damaged.len() as u64 + more;
            Err(ControlError::Refused {
                class: Class::Corrupt,
                why: format!(
                    "data is damaged in {places} places, the first {} at {}: {}; restore those \
                     files from a snapshot, and list all with `zerofs-csi scrub`",
                    first.file, first.offset, first.why
                ),
            })
        }
        (None, false) => Err(ControlError::Unavailable("it was asked to stop".to_owned())),
        (None, true) => {
            let verified = plural(*chunks, "chunk");
            Ok(format!("{verified} verified, {bytes} bytes read: no damage"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Bucket;
    use crate::catalog::Catalog;
    use crate::control::Pools;

    async fn pool() -> Pool {
        let catalog = Catalog::create(Bucket::memory(), None).await.unwrap();
        Pools::one("p", catalog).iter().next().unwrap().clone()
    }

    #[tokio::test]
    async fn tasks_are_watched_to_their_end_and_the_last_are_kept() {
        let (tasks, pool) = (Tasks::default(), pool().await);
        let mut changes = tasks.watch();
        let task = tasks.begin(TaskKind::Scrub, &pool, None, "web".to_owned()).unwrap();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        task.progress(3, 9);
        assert!(changes.has_changed().unwrap());
        let id = task.id();
        let now = tasks.get(id).unwrap();
        assert_eq!((now.objects, now.bytes, now.is_running()), (3, 9, true));
        task.end(Ok("fine".to_owned()));
        assert_eq!(tasks.get(id).unwrap().outcome, TaskOutcome::Done("fine".to_owned()));

        let idle = tasks.begin(TaskKind::Collection, &pool, None, String::new()).unwrap();
        idle.forget();
        assert_eq!(tasks.list().len(), 1);
        for _ in 0..TASKS_KEPT + 5 {
            let task = tasks.begin(TaskKind::Restore, &pool, None, String::new()).unwrap();
            tasks.stop(task.id()).unwrap();
            assert!(task.stopping().is_cancelled());
            task.end(Err(ControlError::Internal("cut".to_owned())));
        }
        assert!(tasks.list().len() <= TASKS_KEPT + 1);
        assert_eq!(tasks.list()[0].outcome, TaskOutcome::Stopped);
        assert_eq!(tasks.get(id).unwrap_err().class(), Class::NotFound);

        let running: Vec<RunningTask> = (0..TASKS_RUNNING_MAX)
            .map(|_| tasks.begin(TaskKind::Restore, &pool, None, String::new()).unwrap())
            .collect();
        let refused = tasks.begin(TaskKind::Restore, &pool, None, String::new()).err().unwrap();
        assert_eq!(refused.class(), Class::Unavailable);
        drop(running);
        assert!(matches!(
            tasks.list()[0].outcome,
            TaskOutcome::Failed { class: Class::Internal, .. }
        ));
    }
}
