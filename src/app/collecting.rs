//! The collector's turns in a controller or server.
//!
//! One of the processes that collect in a pool does so in each interval: a process that finds that
//! another has collected since its own last turn skips its turn. After a deletion handled by this
//! process it collects itself, unless another process is collecting.

use crate::control::{
    Collected, Collector, ControlError, Controller, ExclusiveCollection, Others, Pool,
};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Deletions come in bursts: one collection serves all within this time.
const GATHER: Duration = Duration::from_secs(5);
/// Time that a collection after a deletion waits for another process's.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval at which a process whose turn it is checks whether the previous collector is alive.
const LOOK: Duration = Duration::from_secs(5);

/// The reason why a collection is due.
#[derive(Clone, Copy, Debug)]
enum Due {
    ByTime,
    Deleted,
}

/// Collects every pool at each interval, and some seconds after a deletion, until stopped. `rate`:
/// bytes per second of packs that are rewritten.
pub async fn run(
    controller: Arc<Controller>,
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
                () = turn(&controller, pool, rate, due) => {}
            }
        }
    }
}

async fn turn(controller: &Controller, pool: &Pool, rate: u64, due: Due) {
    let mut collector = controller.collector(pool).at_rate(Some(rate));
    let done = match due {
        Due::ByTime => unless_another(&mut collector).await,
        Due::Deleted => collector.collect_or_wait(PATIENCE).await.map(Some),
    };
    match done {
        Ok(Some(done))
            if done.packs
                + done.datasets.len()
                + done.snapshots.len()
                + done.detached.len()
                + done.databases
                > 0 =>
        {
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
            ExclusiveCollection::HeldBy(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
