//! Runs the snapshot policies of a controller's or server's pools.
//!
//! The clock is looked at some times a minute, which costs nothing: only what is due costs requests
//! (`control::policy`), and a clock that was set is noticed.

use crate::control::policy::{PolicyRunner, PolicyStatus, RunOutcome};
use crate::control::{Controller, Pool};
use crate::types::{PoolId, WallClock};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between looks at the clock: a slot is done this much late at most.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Runs the policies of every pool that is open, until stopped.
pub async fn run(
    controller: Arc<Controller>,
    status: PolicyStatus,
    clock: WallClock,
    stop: CancellationToken,
) {
    let mut runners: HashMap<PoolId, PolicyRunner> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let pools: Vec<Pool> = controller.pools().iter().cloned().collect();
        for pool in pools {
            let runner = runners.entry(pool.id()).or_insert_with(|| {
                PolicyRunner::new(controller.clone(), pool.clone(), status.clone())
            });
            tokio::select! {
                () = stop.cancelled() => return,
                () = turn(runner, &pool, &clock) => {}
            }
        }
    }
}

async fn turn(runner: &mut PolicyRunner, pool: &Pool, clock: &WallClock) {
    match Box::pin(runner.run_due(clock.now())).await {
        Ok(RunOutcome::Done { snapshots, unchanged, deleted, failed }) => {
            tracing::info!(
                pool = pool.name,
                snapshots,
                unchanged,
                deleted,
                failed,
                "snapshot policies have run"
            );
        }
        Ok(RunOutcome::HeldBy(node)) => {
            tracing::debug!(pool = pool.name, node, "another process runs the snapshot policies");
        }
        Ok(RunOutcome::Idle) => {}
        Err(error) => {
            tracing::warn!(
                pool = pool.name,
                %error,
                "cannot run the snapshot policies of the pool; retrying"
            );
        }
    }
}
