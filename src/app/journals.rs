//! Removes obsolete journals: those of datasets that moved away while this node was down, or that
//! are deleted.

use crate::control::Pools;
use crate::types::Classify;
use crate::volume::Volumes;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time of the first pass after the start, when most volumes of this node are open again …
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// … and the next ones, for datasets that failed or moved away since. A pass makes requests only
/// for journals without an open volume.
const POLL_INTERVAL: Duration = Duration::from_secs(3600);

/// Runs until stopped.
pub async fn run(pools: Pools, volumes: Volumes, stop: CancellationToken) {
    let mut wait = FIRST_LOOK;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = POLL_INTERVAL;
        for pool in pools.iter() {
            if let Err(error) = volumes.remove_obsolete_journals(&pool.catalog).await {
                tracing::info!(
                    pool = pool.name,
                    %error,
                    class = ?error.class(),
                    "cannot remove obsolete journals; retrying later"
                );
            }
        }
    }
}
