//! Watching the nodes of the cluster, where there is one.

use super::lifecycle::Lifecycle;
use crate::control::{Controller, cluster};
use std::sync::Arc;

/// Watches the nodes of the cluster. A failure to watch keeps nothing else from working.
pub(super) fn watch(controller: &Arc<Controller>, lifecycle: &Lifecycle) {
    let server = match cluster::in_cluster() {
        Ok(Some(server)) => server,
        Ok(None) => {
            tracing::info!(
                "not running in a Kubernetes cluster; volumes of lost nodes wait for lease expiry, \
                 or for `dataset release --force`"
            );
            return;
        }
        Err(error) => return cannot_watch(&*error),
    };
    let (controller, stop) = (controller.clone(), lifecycle.work.clone());
    lifecycle.work_tasks.spawn(async move {
        if let Err(error) = cluster::watch(server, controller, stop).await {
            cannot_watch(&error);
        }
    });
}

fn cannot_watch(error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(
        error,
        "cannot watch nodes; volumes of lost nodes wait for lease expiry; check the pod's \
         ServiceAccount"
    );
}
