//! What a controller learns from Kubernetes about the machines that own volumes: it watches the Nodes, and writes grants (R27) for what is owned by
//! a machine that is tainted out-of-service or whose Node is gone. An owner that is alive there gives the volume up within a heartbeat; nobody
//! waits for a node that only Kubernetes has lost.
//!
//! ```text
//!  list ──▶ watch ──▶ changed ──▶ [nodes] condemns ──▶ grants for what it owns, until nothing is left
//!   ▲         │ ended, too old, silent
//!   └─────────┘ after a pause that grows
//! ```
//! A name proves nothing: a pool may be shared with another cluster that names its machines alike, or with servers outside. What counts is the
//! machine's boot id, which its Node shows and its session's heartbeat holds: only where both say the same, the owner is that Node. For the same
//! reason a Node is gone only if this process saw it before: an owner whose Node was never seen here keeps its volumes, and its lease decides.
//!
//! Any number of replicas may do this at once: a grant is put if absent, names one session, and is read by that session alone. A crash leaves nothing
//! but grants. The third ground of R27, that no pod with the claim is left on the machine, is not judged here.

mod api;
mod nodes;

pub use api::{Api, ApiError};

use crate::catalog::GrantReason;
use crate::control::{ControlError, Controller, Pool};
use crate::types::{SessionId, VolumeHandle};
use api::Watch;
use nodes::{Condemned, Nodes};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between tries to reach the API server.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Between looks at what condemned machines own: at first, while there was something to do or it failed, …
const LOOK_SOON: Duration = Duration::from_secs(2);
/// … and while a machine stays out of service and owns nothing.
const LOOK_LATER: Duration = Duration::from_secs(60);

/// Watches until it is stopped.
pub async fn watch(api: Api, controller: Arc<Controller>, stop: CancellationToken) {
    let mut watcher = Watcher { api, controller, nodes: Nodes::default(), version: None, look_at: None };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watcher.run() => {}
    }
}

struct Watcher {
    api: Api,
    controller: Arc<Controller>,
    nodes: Nodes,
    /// What was seen last; none: everything has to be listed.
    version: Option<String>,
    /// When to look at what condemned machines own.
    look_at: Option<Instant>,
}

impl Watcher {
    async fn run(&mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            let Err(error) = self.follow(&mut pause).await;
            match error {
                // Part of the protocol.
                ApiError::TooOld => self.version = None,
                ApiError::Ended => {}
                ApiError::Denied(_) => {
                    tracing::warn!(%error, "nodes cannot be watched: let the controller's ServiceAccount list and watch them");
                }
                _ => tracing::warn!(%error, "nodes cannot be watched for now: volumes of lost nodes wait for their leases"),
            }
            // What is condemned stays so meanwhile.
            let until = Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0));
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                tokio::time::sleep(left.min(self.until_look())).await;
                self.look_if_due().await;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Lists where that is needed, then watches until that ends. `pause` begins anew with what is heard.
    async fn follow(&mut self, pause: &mut Duration) -> Result<Infallible, ApiError> {
        let version = match self.version.take() {
            Some(version) => version,
            None => {
                let (listed, version) = self.api.list().await?;
                self.nodes.replace(listed, Instant::now());
                self.look_at = Some(Instant::now());
                version
            }
        };
        self.version = Some(version.clone());
        let mut watch = self.api.watch(&version).await?;
        loop {
            self.look_if_due().await;
            // Not cancelled in the middle of a change: `next` keeps what it has read.
            if let Ok(change) = tokio::time::timeout(self.until_look(), watch.next()).await {
                self.nodes.apply(change?, Instant::now());
                self.version = Some(watch.version.clone());
                *pause = PAUSE_MIN;
                self.look_soon();
            }
        }
    }

    fn look_soon(&mut self) {
        if self.nodes.any_condemned() && self.look_at.is_none_or(|at| at > Instant::now() + LOOK_SOON) {
            self.look_at = Some(Instant::now());
        }
    }

    fn until_look(&self) -> Duration {
        self.look_at.map_or(Watch::SILENCE_MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    async fn look_if_due(&mut self) {
        let now = Instant::now();
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        let (condemned, undecided) = self.nodes.condemned(now);
        let left = if condemned.is_empty() { false } else { self.grant(&condemned).await };
        self.look_at = match (left || undecided, self.nodes.any_condemned()) {
            (true, _) => Some(Instant::now() + LOOK_SOON),
            (false, true) => Some(Instant::now() + LOOK_LATER),
            (false, false) => None,
        };
        if !left {
            self.nodes.done(now);
        }
    }

    /// Whether there may be more to do.
    async fn grant(&self, condemned: &[Condemned]) -> bool {
        let mut left = false;
        for pool in self.controller.pools().iter() {
            match self.grant_in(pool, condemned).await {
                Ok(granted) => left |= granted,
                Err(error) => {
                    tracing::warn!(pool = pool.name, %error, "what lost nodes own cannot be told yet; trying again");
                    left = true;
                }
            }
        }
        left
    }

    async fn grant_in(&self, pool: &Pool, condemned: &[Condemned]) -> Result<bool, ControlError> {
        let mut boots: HashMap<SessionId, Option<String>> = HashMap::new();
        let mut granted = false;
        for dataset in pool.catalog.datasets().await?.into_iter().map(|at| at.record) {
            let Some(owner) = dataset.owner.as_ref().filter(|owner| condemned.iter().any(|node| node.name == owner.node)) else {
                continue;
            };
            if let Entry::Vacant(unknown) = boots.entry(owner.session) {
                unknown.insert(pool.catalog.newest_heartbeat(owner.session).await?.and_then(|beat| beat.boot));
            }
            let boot = boots.get(&owner.session).and_then(Option::as_deref);
            let Some(node) = condemned.iter().find(|node| node.name == owner.node && Some(node.boot.as_str()) == boot) else {
                tracing::debug!(volume = %dataset.name, node = owner.node, "owned by another machine of that name, or by an earlier run of it");
                continue;
            };
            let why = if node.gone { GrantReason::NodeGone } else { GrantReason::OutOfService };
            let handle = VolumeHandle { pool: pool.id(), dataset: dataset.id() };
            if self.controller.grant_session(handle, owner.session, why).await? {
                tracing::warn!(volume = %dataset.name, node = node.name, ?why, "the node is told to give the volume up");
                granted = true;
            }
        }
        Ok(granted)
    }
}
