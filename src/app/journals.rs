//! Finds obsolete journals: of datasets that moved away while this node was down, or were deleted.

use crate::control::Pools;
use crate::types::Classify;
use crate::volume::Volumes;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After the start, when most of what this node goes on with is being opened …
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// … and again, for what has failed and moved away since. A look asks the store only about journals
/// that nothing open here has.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Looks until stopped.
pub async fn run(pools: Pools, volumes: Volumes, stop: CancellationToken) {
    let mut wait = FIRST_LOOK;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = LOOK_AGAIN;
        for pool in pools.iter() {
            if let Err(error) = volumes.remove_outlived_journals(&pool.catalog).await {
                tracing::info!(
                    pool = pool.name,
                    %error,
                    class = ?error.class(),
                    "journals of no use stay until the next look"
                );
            }
        }
    }
}
