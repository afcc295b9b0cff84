//! The collector's turns in a controller or server.

use crate::control::{Controller, Pool};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Deletions come in crowds: one collection for all that come within this time.
const GATHER: Duration = Duration::from_secs(5);

/// Collects every pool at each interval, and some seconds after a deletion, until stopped. `rate`: bytes a second of packs that are rewritten.
pub async fn run(controller: Arc<Controller>, interval: Duration, rate: u64, stop: CancellationToken) {
    let tombstoned = controller.tombstoned();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
            () = tombstoned.notified() => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(GATHER) => {}
                }
            }
        }
        for pool in controller.pools().iter() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = collect(&controller, pool, rate) => {}
            }
        }
    }
}

async fn collect(controller: &Controller, pool: &Pool, rate: u64) {
    match controller.collector(pool).at_rate(Some(rate)).collect().await {
        Ok(done) if done.packs + done.datasets.len() + done.snapshots.len() + done.detached.len() + done.databases > 0 => {
            tracing::info!(
                pool = pool.name,
                packs = done.packs,
                bytes = done.pack_bytes,
                datasets = done.datasets.len(),
                snapshots = done.snapshots.len(),
                detached = done.detached.len(),
                databases = done.databases,
                "collected"
            );
        }
        Ok(_) => tracing::debug!(pool = pool.name, "nothing to collect"),
        Err(error) => tracing::warn!(pool = pool.name, %error, "the collection was given up; the next one starts anew"),
    }
}
