//! Deletes the inline ephemeral volumes of nodes that are gone.

use crate::control::{Controller, EphemeralWatch};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between looks: a volume is deleted this much late at most, and each look reads every dataset's
/// record.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

/// Looks now and then, until stopped.
pub async fn run(controller: Arc<Controller>, stop: CancellationToken) {
    let mut watch = EphemeralWatch::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            looked = controller.delete_abandoned(&mut watch, Instant::now()) => {
                if let Err(error) = looked {
                    tracing::warn!(
                        %error,
                        "cannot delete every inline volume of a lost node; retrying in an hour"
                    );
                }
            }
        }
    }
}
