//! The controller learns from Kubernetes about the machines that own volumes: it watches the Nodes,
//! and revokes the claims (R27) of a machine that is tainted out-of-service or whose Node is gone. An
//! event on the Node names the volume, for whoever sees a pod wait for it elsewhere.
//! An owner that is alive there releases the volume within a heartbeat, so that a node that only
//! Kubernetes has lost delays no one.
//!
//! ```text
//!  list ──▶ watch ──▶ changed ──▶ [nodes] finds lost nodes ──▶ revokes their claims
//!   ▲         │ ended, too old, silent
//!   └─────────┘ after a pause that grows
//! ```
//! A name proves nothing: a pool may be shared with another cluster that names its machines alike,
//! or with servers outside. The proof is the machine's boot id, which both its Node and its
//! session's heartbeat contain: the owner is that Node only where both agree. For the same reason a
//! Node is gone only if this process saw it before: an owner whose Node was never seen here keeps
//! its volumes, and its lease decides.
//!
//! Any number of replicas may do this at once: a revocation is put if absent, and is about one
//! claim. A crash leaves nothing but revocations. The third ground of R27, that no pod with the
//! claim is left on the machine, is not checked here.

mod nodes;

use crate::catalog::RevocationReason;
use crate::control::{ControlError, Controller, Pool};
use crate::types::{SessionId, VolumeHandle};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config};
use nodes::{LostNode, Nodes};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The location of a pod's ServiceAccount.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The server ends a watch after this, so that one that is silently dead is noticed soon after.
const WATCH_SECS: u32 = 90;
/// Nodes in a page of a list.
const PAGE: u32 = 200;
/// Status for a watch version that the server no longer has: part of the protocol.
const GONE: u16 = 410;
/// Pause between attempts to reach the API server.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Interval of checks of the volumes that lost nodes own: while there was something to do or it
/// failed, …
const LOOK_SOON: Duration = Duration::from_secs(2);
/// … while a node stays out of service and owns nothing, …
const LOOK_LATER: Duration = Duration::from_secs(60);
/// … and while no node is lost.
const LOOK_NEVER: Duration = Duration::from_secs(24 * 3600);
/// Time limit for posting an event: revocations of other volumes wait for it.
const EVENT_LIMIT: Duration = Duration::from_secs(5);

/// Returns the configuration to reach the API server from a pod; `None`: this process is not in a
/// pod, or in one without a ServiceAccount.
///
/// # Errors
/// This is a pod, but its ServiceAccount cannot be used.
pub fn in_cluster() -> Result<Option<Config>, Box<dyn std::error::Error + Send + Sync>> {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none()
        || !Path::new(ACCOUNT).join("token").exists()
    {
        return Ok(None);
    }
    Ok(Some(Config::incluster()?))
}

/// Watches until it is stopped.
///
/// # Errors
/// When no client can be made of the configuration.
pub async fn watch(
    mut server: Config,
    controller: Arc<Controller>,
    stop: CancellationToken,
) -> Result<(), kube::Error> {
    server.connect_timeout = Some(CONNECT_LIMIT);
    let client = Client::try_from(server)?;
    let reporter = Reporter { controller: "zerofs-csi".to_owned(), instance: None };
    let nodes = Api::all(client.clone());
    let mut watcher = Watcher {
        controller,
        nodes: Nodes::default(),
        look_at: None,
        reach: Reach::default(),
        recorder: Recorder::new(client, reporter),
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watcher.run(nodes) => {}
    }
    Ok(())
}

struct Watcher {
    controller: Arc<Controller>,
    nodes: Nodes,
    /// The time of the next check of the volumes that lost nodes own.
    look_at: Option<Instant>,
    reach: Reach,
    recorder: Recorder,
}

/// Tracks whether the API server answers.
#[derive(Default)]
struct Reach {
    failed_since: Option<Instant>,
}

impl Reach {
    fn failed(&mut self, now: Instant) {
        self.failed_since.get_or_insert(now);
    }

    /// Returns how long the server was unreachable, if it was.
    fn answered(&mut self, now: Instant) -> Option<Duration> {
        self.failed_since.take().map(|since| now.saturating_duration_since(since))
    }
}

impl Watcher {
    async fn run(&mut self, nodes: Api<Node>) {
        let begin = || {
            watcher(nodes.clone(), watcher::Config::default().page_size(PAGE).timeout(WATCH_SECS))
                .boxed()
        };
        let (mut events, mut pause) = (begin(), PAUSE_MIN);
        loop {
            self.look_if_due().await;
            // Abandoning the wait loses nothing: the stream keeps the bytes that it has read.
            match tokio::time::timeout(self.until_look(), events.next()).await {
                Ok(Some(Ok(event))) => {
                    // A list that begins has not been answered.
                    if !matches!(event, watcher::Event::Init) {
                        pause = PAUSE_MIN;
                        if let Some(away) = self.reach.answered(Instant::now()) {
                            tracing::info!(after_secs = away.as_secs(), "watching nodes again");
                        }
                    }
                    self.nodes.apply(event, Instant::now());
                    self.look_soon();
                }
                Ok(Some(Err(error))) => {
                    let code = code(&error);
                    say(&error, code);
                    if code != Some(GONE) {
                        self.reach.failed(Instant::now());
                    }
                    if code == Some(GONE) {
                        // The stream lists again by itself only if an event says so, not if
                        // the watch is refused for it.
                        events = begin();
                    }
                    self.rest(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                // The stream never ends by itself.
                Ok(None) => return,
                Err(_) => {}
            }
        }
    }

    /// Pauses before the API server is asked again; lost nodes stay lost meanwhile.
    async fn rest(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            tokio::time::sleep(left.min(self.until_look())).await;
            self.look_if_due().await;
        }
    }

    fn look_soon(&mut self) {
        if self.nodes.any_lost() && self.look_at.is_none_or(|at| at > Instant::now() + LOOK_SOON) {
            self.look_at = Some(Instant::now());
        }
    }

    fn until_look(&self) -> Duration {
        self.look_at.map_or(LOOK_NEVER, |at| at.saturating_duration_since(Instant::now()))
    }

    async fn look_if_due(&mut self) {
        let now = Instant::now();
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        let (lost, undecided) = self.nodes.lost(now);
        let left = if lost.is_empty() { false } else { self.revoke(&lost).await };
        self.look_at = match (left || undecided, self.nodes.any_lost()) {
            (true, _) => Some(Instant::now() + LOOK_SOON),
            (false, true) => Some(Instant::now() + LOOK_LATER),
            (false, false) => None,
        };
        if !left {
            self.nodes.done(now);
        }
    }

    /// Revokes the claims of lost nodes. Returns whether there may be more to do.
    async fn revoke(&self, lost: &[LostNode]) -> bool {
        let mut left = false;
        for pool in self.controller.pools().iter() {
            match self.revoke_in(pool, lost).await {
                Ok(revoked) => left |= revoked,
                Err(error) => {
                    tracing::warn!(
                        pool = pool.name,
                        %error,
                        "cannot determine which volumes lost nodes own; retrying"
                    );
                    left = true;
                }
            }
        }
        left
    }

    async fn revoke_in(&self, pool: &Pool, lost: &[LostNode]) -> Result<bool, ControlError> {
        let mut boots: HashMap<SessionId, Option<String>> = HashMap::new();
        let mut revoked = false;
        for dataset in pool.catalog.datasets().await?.into_iter().map(|at| at.record) {
            let Some(owner) = dataset
                .owner
                .as_ref()
                .filter(|owner| lost.iter().any(|node| node.name == owner.node))
            else {
                continue;
            };
            if let Entry::Vacant(unknown) = boots.entry(owner.session) {
                unknown.insert(
                    pool.catalog.newest_heartbeat(owner.session).await?.and_then(|beat| beat.boot),
                );
            }
            let boot = boots.get(&owner.session).and_then(Option::as_deref);
            let Some(node) = lost
                .iter()
                .find(|node| node.name == owner.node && Some(node.boot.as_str()) == boot)
            else {
                tracing::debug!(
                    volume = %dataset.name,
                    node = owner.node,
                    "owned by another machine with this name, or before its last boot"
                );
                continue;
            };
            let why =
                if node.gone { RevocationReason::NodeGone } else { RevocationReason::OutOfService };
            let handle = VolumeHandle { pool: pool.id(), dataset: dataset.id() };
            if self.controller.revoke_claim(handle, owner.claim, why).await? {
                tracing::warn!(
                    volume = %dataset.name,
                    node = node.name,
                    ?why,
                    "revoked ownership of the volume; waiting for its node to release it, or for \
                     lease expiry"
                );
                self.post_event(node, dataset.name.as_str()).await;
                revoked = true;
            }
        }
        Ok(revoked)
    }

    /// Posts an event on the lost Node. One that cannot be posted is only missing: the log has it.
    async fn post_event(&self, node: &LostNode, volume: &str) {
        let why = if node.gone { "its Node is gone" } else { "it is out of service" };
        let event = Event {
            type_: EventType::Warning,
            reason: "VolumeRevoked".to_owned(),
            note: Some(format!(
                "ownership of ZeroFS volume {volume} by node {} is revoked, because {why}: another \
                 node gets the volume once this one releases it or its lease expires",
                node.name
            )),
            action: "Revoke".to_owned(),
            secondary: None,
        };
        let name = Some(node.name.clone());
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            // As kubelet's own events on it have it, so that `kubectl describe node` shows this one.
            uid: name.clone(),
            name,
            ..ObjectReference::default()
        };
        let posted = tokio::time::timeout(EVENT_LIMIT, self.recorder.publish(&event, &node)).await;
        match posted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, volume, "cannot post an event; see the log"),
            Err(_) => tracing::warn!(volume, "posting an event timed out; see the log"),
        }
    }
}

/// The status that the API server answered with.
fn code(error: &watcher::Error) -> Option<u16> {
    use kube::Error::Api;
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(Api(status))
        | watcher::Error::WatchStartFailed(Api(status))
        | watcher::Error::WatchFailed(Api(status)) => Some(status.code),
        _ => None,
    }
}

fn say(error: &watcher::Error, code: Option<u16>) {
    match code {
        Some(GONE) => tracing::debug!(%error, "listing the nodes again"),
        Some(401 | 403) => {
            tracing::warn!(
                %error,
                "cannot watch nodes; allow the controller's ServiceAccount to list and watch them"
            );
        }
        _ => {
            tracing::warn!(
                %error,
                "cannot watch nodes; retrying; volumes of lost nodes wait for lease expiry"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_nodes_are_watched_again_is_told_once() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        assert_eq!(reach.answered(now), None);
        reach.failed(now);
        reach.failed(now + Duration::from_secs(5));
        assert_eq!(reach.answered(now + Duration::from_secs(7)), Some(Duration::from_secs(7)));
        assert_eq!(reach.answered(now + Duration::from_secs(8)), None);
    }

    /// Asserts that exactly one provider of cryptography is linked, which otherwise only a run in a
    /// cluster would show.
    #[tokio::test]
    async fn a_client_that_speaks_tls_can_be_made() {
        let mut server = Config::new("https://10.0.0.1".parse().unwrap());
        server.root_cert = Some(vec![]);
        Client::try_from(server).unwrap();
    }
}
