//! The collector's turns in a controller or server.
//!
//! One of the processes that collect in a pool does so in each interval: a process that finds that
//! another has collected since its own last turn skips its turn. After a deletion handled by this
//! process it collects itself, unless another process is collecting.

use crate::control::{
    Collected, Collector, ControlError, Controller, ExclusiveCollection, Others, Pool, RunningTask,
    TaskKind, Tasks,
};
use crate::types::plural;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Deletions come in bursts: one collection serves all within this time.
const GATHER: Duration = Duration::from_secs(5);
/// Time that a collection after a deletion waits for another process's.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval at which a process whose turn it is checks whether the previous collector is alive.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The reason why a collection is due.
#[derive(Clone, Copy, Debug)]
enum Due {
    ByTime,
    Deleted,
}

/// Collects every pool at each interval, and some seconds after a deletion, until stopped. `rate`:
/// bytes per second of packs that are rewritten. A collection is one of the `tasks`, unless there
/// is nothing to do.
pub async fn run(
    controller: Arc<Controller>,
    tasks: Tasks,
    interval: Duration,
    rate: u64,
    stop: CancellationToken,
) {
    let tombstoned = controller.tombstoned();
    loop {
        let due = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => Due::ByTime,
            () = tombstoned.notified() => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(GATHER) => Due::Deleted,
                }
            }
        };
        for pool in controller.pools().iter() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = turn(&controller, &tasks, pool, rate, due) => {}
            }
        }
    }
}

async fn turn(controller: &Controller, tasks: &Tasks, pool: &Pool, rate: u64, due: Due) {
    let mut collector = controller.collector(pool).at_rate(Some(rate));
    // With too many other tasks it goes on without one.
    let task = tasks.begin(TaskKind::Collection, pool, None, format!("pool {}", pool.name)).ok();
    if let Some(report) = task.as_ref().map(RunningTask::reporter) {
        collector = collector.reporting(move |done| {
            report((done.packs + done.rewritten) as u64, done.pack_bytes + done.rewritten_bytes);
        });
    }
    let done = match due {
        Due::ByTime => unless_another(&mut collector).await,
        Due::Deleted => collector.collect_or_wait(PATIENCE).await.map(Some),
    };
    if let Some(task) = task {
        end(task, &done);
    }
    match done {
        Ok(Some(done)) if has_done(&done) => {
            tracing::info!(
                pool = pool.name,
                packs = done.packs,
                bytes = done.pack_bytes,
                datasets = done.datasets.len(),
                snapshots = done.snapshots.len(),
                detached = done.detached.len(),
                databases = done.databases,
                "collection complete"
            );
        }
        Ok(Some(_)) => tracing::debug!(pool = pool.name, "nothing to collect"),
        Ok(None) => tracing::debug!(pool = pool.name, "another process is collecting"),
        Err(error) => {
            tracing::warn!(
                pool = pool.name,
                %error,
                "collection failed; the next one starts over"
            );
        }
    }
}

fn has_done(done: &Collected) -> bool {
    let objects = done.packs + done.rewritten + done.databases;
    objects + done.datasets.len() + done.snapshots.len() + done.detached.len() > 0
}

fn end(task: RunningTask, done: &Result<Option<Collected>, ControlError>) {
    match done {
        Ok(Some(done)) if has_done(done) => task.end(Ok(format!(
            "{} deleted and {} rewritten, {} bytes freed",
            plural(done.packs as u64, "pack"),
            done.rewritten,
            done.pack_bytes + done.rewritten_bytes
        ))),
        Ok(_) => task.forget(),
        Err(error) => task.end(Err(error.clone())),
    }
}

/// Collects, unless (`None`) another process has collected since the last turn, or is collecting
/// now.
async fn unless_another(collector: &mut Collector) -> Result<Option<Collected>, ControlError> {
    loop {
        let turn = match collector.others().await? {
            Others::Collected => return Ok(None),
            Others::Collecting(node) => ExclusiveCollection::HeldBy(node),
            Others::Nothing => collector.collect_exclusively().await?,
        };
        match turn {
            ExclusiveCollection::Done(done) => return Ok(Some(done)),
            // Its claim changes while it is alive, and expires when it is not.
            ExclusiveCollection::HeldBy(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}
