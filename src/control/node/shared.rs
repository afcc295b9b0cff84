//! The answerer of a staged volume's calls: this node, which owns it, or for a shared volume
//! whoever owns it at the moment.

use crate::catalog::Owner;
use crate::control::channel::OwnerRoute;
use crate::volume::Attached;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) enum Backing {
    Owned(Attached),
    Shared(Arc<SharedVolume>),
}

/// The owner of a shared volume, as this node sees it.
pub(super) enum Position {
    Owner(Attached),
    Relay { owner: Owner, route: OwnerRoute },
}

/// The task that follows the owner of a shared volume. It ends when this is dropped.
#[derive(Default)]
pub(super) struct SharedVolume {
    /// Set when the task ended with an error, before it looks at the volume's state.
    pub failed: AtomicBool,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

impl SharedVolume {
    /// Ends the task; the volume is no longer opened here.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for SharedVolume {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
