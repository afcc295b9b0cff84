//! The controller learns from Kubernetes about the machines that own volumes: it watches the Nodes,
//! and revokes the claims (R27) of a machine that is tainted out-of-service or whose Node is gone.
//! An owner that is alive there releases the volume within a heartbeat, so that a node that only
//! Kubernetes has lost delays no one. A Node that is merely not ready keeps its claims: an event on
//! it names its volumes, for whoever sees a pod wait for one of them elsewhere, and one for each
//! revocation. What nodes report of damaged volumes becomes events, too ([`damage`]).
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

mod damage;
mod events;
mod nodes;

use crate::catalog::{Dataset, Owner, RevocationReason};
use crate::control::{ControlError, Controller, Pool};
use crate::types::{Backoff, SessionId, VolumeHandle};
use events::{Events, Warning};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config};
use nodes::{LostNode, Nodes, OUT_OF_SERVICE, UnreadyNode};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
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
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// Returns the configuration to reach the API server from a pod; `None`: this process is not
/// in a pod, or in one without a ServiceAccount.
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
    let nodes = Api::all(client.clone());
    let mut watcher = Watcher {
        controller,
        nodes: Nodes::default(),
        look_at: None,
        reachability: Reachability::default(),
        events: Events::new(client.clone()),
        client,
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
    reachability: Reachability,
    events: Events,
    client: Client,
}

/// Tracks whether the API server answers.
#[derive(Default)]
struct Reachability {
    failed_since: Option<Instant>,
}

impl Reachability {
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
        let (mut events, mut backoff) = (begin(), Backoff::new(PAUSE_MIN, PAUSE_MAX));
        let damage_reported = self.controller.damage_reported();
        loop {
            self.look_if_due().await;
            // Abandoning the wait loses nothing: the stream keeps the bytes that it has read.
            let next = tokio::select! {
                next = tokio::time::timeout(self.until_look(), events.next()) => next,
                () = damage_reported.notified() => {
                    self.post_damage().await;
                    continue;
                }
            };
            match next {
                Ok(Some(Ok(event))) => {
                    // A list that begins has not been answered.
                    if !matches!(event, watcher::Event::Init) {
                        backoff.reset();
                        if let Some(away) = self.reachability.answered(Instant::now()) {
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
                        self.reachability.failed(Instant::now());
                    }
                    if code == Some(GONE) {
                        // The stream lists again by itself only if an event says so, not if
                        // the watch is refused for it.
                        events = begin();
                    }
                    self.rest(backoff.pause()).await;
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
        let now = Instant::now();
        let due = match self.nodes.any_lost() {
            true => now,
            // Nodes often cease to be ready together: one look tells of all.
            false if self.is_untold() => now + LOOK_SOON,
            false => return,
        };
        if self.look_at.is_none_or(|at| at > now + LOOK_SOON) {
            self.look_at = Some(due);
        }
    }

    /// Returns whether a node that is not ready may own volumes that nobody was told of.
    fn is_untold(&self) -> bool {
        let unready = self.nodes.unready();
        let mut pools = self.controller.pools().iter();
        pools.any(|pool| unready.iter().any(|node| !node.is_told(pool.id())))
    }

    fn until_look(&self) -> Duration {
        self.look_at.map_or(NEVER, |at| at.saturating_duration_since(Instant::now()))
    }

    async fn look_if_due(&mut self) {
        let now = Instant::now();
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        let (lost, undecided) = self.nodes.lost(now);
        let left = self.look(&lost).await;
        let waits = self.nodes.any_lost()
            || !self.nodes.unready().is_empty() && !self.controller.pools().not_open().is_empty();
        self.look_at = match (left || undecided, waits) {
            (true, _) => Some(Instant::now() + LOOK_SOON),
            (false, true) => Some(Instant::now() + LOOK_LATER),
            (false, false) => None,
        };
        if !left {
            self.nodes.done(now);
        }
    }

    /// Revokes the claims of lost nodes, and tells of the volumes of those that are not ready.
    /// Returns whether there may be more to do.
    async fn look(&mut self, lost: &[LostNode]) -> bool {
        let (controller, unready) = (self.controller.clone(), self.nodes.unready());
        let mut left = false;
        for pool in controller.pools().iter() {
            let untold: Vec<&UnreadyNode> =
                unready.iter().filter(|node| !node.is_told(pool.id())).collect();
            if lost.is_empty() && untold.is_empty() {
                continue;
            }
            match self.look_in(pool, lost, &untold).await {
                Ok(revoked) => {
                    left |= revoked;
                    untold.iter().for_each(|node| self.nodes.told(node, pool.id()));
                }
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

    async fn look_in(
        &self,
        pool: &Pool,
        lost: &[LostNode],
        unready: &[&UnreadyNode],
    ) -> Result<bool, ControlError> {
        let mut boots: HashMap<SessionId, Option<String>> = HashMap::new();
        let mut waiting: BTreeMap<SessionId, Waiting<'_>> = BTreeMap::new();
        let mut revoked = false;
        for dataset in pool.catalog.datasets().await?.into_iter().map(|at| at.record) {
            let is_named = |owner: &&Owner| {
                lost.iter().any(|node| node.name == owner.node)
                    || unready.iter().any(|node| node.name == owner.node)
            };
            let Some(owner) = dataset.owner.as_ref().filter(is_named) else { continue };
            if let Entry::Vacant(unknown) = boots.entry(owner.session) {
                unknown.insert(
                    pool.catalog.newest_heartbeat(owner.session).await?.and_then(|beat| beat.boot),
                );
            }
            let boot = boots.get(&owner.session).and_then(Option::as_deref);
            let is_owner = |name: &str, its: &str| name == owner.node && Some(its) == boot;
            if let Some(node) = lost.iter().find(|node| is_owner(&node.name, &node.boot)) {
                revoked |= self.revoke(pool, &dataset, owner, node).await?;
            } else if let Some(node) = unready.iter().find(|node| is_owner(&node.name, &node.boot))
            {
                let waiting = waiting.entry(owner.session).or_insert_with(|| Waiting::new(node));
                waiting.lease_millis = waiting.lease_millis.max(owner.lease_millis);
                waiting.volumes.push(dataset.name.to_string());
            } else {
                tracing::debug!(
                    volume = %dataset.name,
                    node = owner.node,
                    "owned by another machine with this name, or before its last boot"
                );
            }
        }
        for (session, waiting) in waiting {
            self.tell_of(pool, session, waiting).await;
        }
        Ok(revoked)
    }

    /// Revokes the claim of a lost node. Returns whether this call did it.
    async fn revoke(
        &self,
        pool: &Pool,
        dataset: &Dataset,
        owner: &Owner,
        node: &LostNode,
    ) -> Result<bool, ControlError> {
        let (reason, why) = match node.gone {
            true => (RevocationReason::NodeGone, "its Node is gone"),
            false => (RevocationReason::OutOfService, "it is out of service"),
        };
        let handle = VolumeHandle { pool: pool.id(), dataset: dataset.id() };
        if !self.controller.revoke_claim(handle, owner.claim, reason).await? {
            return Ok(false);
        }
        tracing::warn!(
            volume = %dataset.name,
            node = node.name,
            why = ?reason,
            "revoked ownership of the volume; waiting for its node to release it, or for lease \
             expiry"
        );
        let note = format!(
            "ownership of ZeroFS volume {} by node {} is revoked, because {why}: another node gets \
             the volume once this one releases it or its lease expires",
            dataset.name, node.name
        );
        let warning = Warning {
            about: format!("revoked {}", owner.claim),
            regarding: events::node(&node.name),
            reason: "VolumeRevoked",
            action: "Revoke",
            note,
            at: SystemTime::now(),
        };
        self.events.post(warning).await;
        Ok(true)
    }

    /// Tells of the volumes of a node that is not ready, for whoever sees a pod wait for one of
    /// them elsewhere.
    async fn tell_of(&self, pool: &Pool, session: SessionId, waiting: Waiting<'_>) {
        let Waiting { node, lease_millis, volumes } = waiting;
        let lease = lease_millis.div_ceil(1000);
        tracing::warn!(
            node = node.name,
            ?volumes,
            "a node that is not ready owns volumes; another gets one once it has waited for lease \
             expiry"
        );
        let note = format!(
            "node {} is not ready and owns ZeroFS volumes {}. If it is dead, a node where a pod \
             needs one takes it over once it has waited {lease} s without a heartbeat; the pod \
             stays in ContainerCreating meanwhile. If it is alive, it keeps them until its pods \
             are gone or it is tainted {OUT_OF_SERVICE}",
            node.name,
            events::names(&volumes)
        );
        let warning = Warning {
            about: format!("unready {} {session} {}", pool.id(), node.since),
            regarding: events::node(&node.name),
            reason: "VolumeOwnerNotReady",
            action: "WaitForLease",
            note,
            at: SystemTime::now(),
        };
        self.events.post(warning).await;
    }
}

/// The volumes of one session of a node that is not ready.
struct Waiting<'a> {
    node: &'a UnreadyNode,
    lease_millis: u64,
    volumes: Vec<String>,
}

impl<'a> Waiting<'a> {
    fn new(node: &'a UnreadyNode) -> Self {
        Self { node, lease_millis: 0, volumes: Vec::new() }
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
        let (mut reachability, now) = (Reachability::default(), Instant::now());
        assert_eq!(reachability.answered(now), None);
        reachability.failed(now);
        reachability.failed(now + Duration::from_secs(5));
        assert_eq!(
            reachability.answered(now + Duration::from_secs(7)),
            Some(Duration::from_secs(7))
        );
        assert_eq!(reachability.answered(now + Duration::from_secs(8)), None);
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
