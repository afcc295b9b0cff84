//! The state of the cluster's nodes. Pure: events in, lost and unready nodes out.

use crate::types::PoolId;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::runtime::watcher::Event;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Nodes remembered. Kubernetes itself is made for 5,000.
const NODES_MAX: usize = 20_000;
/// A Node that is deleted may be created again at once: only after this it is
/// lost.
const GONE_FOR: Duration = Duration::from_secs(5);
/// A Node that is gone is forgotten after this at the latest.
const GONE_KEPT: Duration = Duration::from_secs(600);
/// Counts with any effect: the taint means that the machine is off, or will not come back as it
/// was.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A node whose ownership of volumes is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostNode {
    pub name: String,
    /// The boot of the machine: a later one is another owner.
    pub boot: String,
    pub gone: bool,
}

/// A node that Kubernetes does not hear from, or whose kubelet cannot run pods. Its machine may be
/// dead or well: only its lease decides about its volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadyNode {
    pub name: String,
    /// The boot of the machine: a later one is another owner.
    pub boot: String,
    /// When it ceased to be ready, by Kubernetes: tells this time from another.
    pub since: String,
    /// The pools whose volumes were told of.
    told: HashSet<PoolId>,
}

impl UnreadyNode {
    pub fn is_told(&self, pool: PoolId) -> bool {
        self.told.contains(&pool)
    }
}

#[derive(Debug)]
struct NodeState {
    boot: String,
    out_of_service: bool,
    unready: Option<Unready>,
}

#[derive(Debug)]
struct Unready {
    since: String,
    told: HashSet<PoolId>,
}

/// When the node ceased to be ready; `None`: it is ready, or its state is not known yet.
fn unready_since(status: Option<&NodeStatus>) -> Option<String> {
    let ready = status?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")?;
    let since = || ready.last_transition_time.as_ref().map(|at| at.0.to_string());
    (ready.status != "True").then(|| since().unwrap_or_default())
}

#[derive(Debug)]
struct Gone {
    boot: String,
    since: Instant,
}

#[derive(Debug, Default)]
pub struct Nodes {
    there: HashMap<String, NodeState>,
    gone: HashMap<String, Gone>,
    /// Names of the list that is being read.
    listed: HashSet<String>,
}

impl Nodes {
    pub fn apply(&mut self, event: Event<Node>, now: Instant) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(node) => {
                if let Some(name) = self.put(node)
                    && self.listed.len() < NODES_MAX
                {
                    self.listed.insert(name);
                }
            }
            Event::InitDone => {
                // A list is complete: a node missing from it was deleted while the watch was down.
                let listed = std::mem::take(&mut self.listed);
                let missing: Vec<String> =
                    self.there.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                missing.iter().for_each(|name| self.remove(name, now));
            }
            Event::Apply(node) => drop(self.put(node)),
            Event::Delete(node) => {
                // The event has the node's last state, including missed changes.
                if let Some(name) = self.put(node) {
                    self.remove(&name, now);
                }
            }
        }
    }

    /// Adds or updates a node. Returns its name, if it has one.
    fn put(&mut self, node: Node) -> Option<String> {
        let name = node.metadata.name?;
        let unready = unready_since(node.status.as_ref());
        let boot = node
            .status
            .and_then(|status| status.node_info)
            .map(|info| info.boot_id)
            .unwrap_or_default();
        // Its kubelet has not reported the machine's boot id yet; or there are too many Nodes.
        if boot.is_empty() || (!self.there.contains_key(&name) && self.there.len() >= NODES_MAX) {
            return Some(name);
        }
        self.gone.remove(&name);
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let out_of_service = taints.iter().any(|taint| taint.key == OUT_OF_SERVICE);
        if out_of_service && !self.there.get(&name).is_some_and(|before| before.out_of_service) {
            tracing::warn!(
                node = name,
                "node is tainted out-of-service; revoking its ownership of volumes"
            );
        }
        let told = |since: &String| {
            let before = self.there.get(&name).and_then(|node| node.unready.as_ref());
            before.filter(|before| before.since == *since).map(|before| before.told.clone())
        };
        let unready = unready
            .map(|since| Unready { told: told(&since).unwrap_or_default(), since })
            .filter(|_| !out_of_service);
        self.there.insert(name.clone(), NodeState { boot, out_of_service, unready });
        Some(name)
    }

    fn remove(&mut self, name: &str, now: Instant) {
        if let Some(NodeState { boot, .. }) = self.there.remove(name)
            && self.gone.len() < NODES_MAX
        {
            self.gone.insert(name.to_owned(), Gone { boot, since: now });
        }
    }

    pub fn any_lost(&self) -> bool {
        !self.gone.is_empty() || self.there.values().any(|node| node.out_of_service)
    }

    /// The nodes whose ownership is to be revoked, and whether others may soon be among them.
    pub fn lost(&mut self, now: Instant) -> (Vec<LostNode>, bool) {
        self.gone.retain(|_, gone| now.saturating_duration_since(gone.since) < GONE_KEPT);
        let is_due = |gone: &Gone| now.saturating_duration_since(gone.since) >= GONE_FOR;
        let tainted = self
            .there
            .iter()
            .filter(|(_, node)| node.out_of_service)
            .map(|(name, node)| (name, &node.boot, false));
        let gone = self
            .gone
            .iter()
            .filter(|(_, gone)| is_due(gone))
            .map(|(name, gone)| (name, &gone.boot, true));
        let all = tainted
            .chain(gone)
            .map(|(name, boot, gone)| LostNode { name: name.clone(), boot: boot.clone(), gone })
            .collect();
        (all, self.gone.values().any(|gone| !is_due(gone)))
    }

    /// The nodes that are not ready, unless they are lost.
    pub fn unready(&self) -> Vec<UnreadyNode> {
        let unready = self.there.iter().filter_map(|(name, node)| {
            let Unready { since, told } = node.unready.as_ref()?;
            Some(UnreadyNode {
                name: name.clone(),
                boot: node.boot.clone(),
                since: since.clone(),
                told: told.clone(),
            })
        });
        unready.collect()
    }

    /// The volumes that a node has in a pool were told of.
    pub fn told(&mut self, node: &UnreadyNode, pool: PoolId) {
        let state = self.there.get_mut(&node.name).and_then(|now| now.unready.as_mut());
        if let Some(now) = state.filter(|now| now.since == node.since) {
            now.told.insert(pool);
        }
    }

    /// Nodes that were lost at that time own nothing now; deleted ones are forgotten.
    pub fn done(&mut self, then: Instant) {
        self.gone.retain(|_, gone| then.saturating_duration_since(gone.since) < GONE_FOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, boot: &str, taint: Option<&str>) -> Node {
        let taints: Vec<_> = taint
            .iter()
            .map(|key| serde_json::json!({"key": key, "effect": "NoExecute"}))
            .collect();
        let mut node: Node = serde_json::from_value(
            serde_json::json!({"metadata": {"name": name}, "spec": {"taints": taints}}),
        )
        .unwrap();
        let info = k8s_openapi::api::core::v1::NodeSystemInfo {
            boot_id: boot.to_owned(),
            ..Default::default()
        };
        node.status.get_or_insert_default().node_info = Some(info);
        node
    }

    fn list(nodes: &mut Nodes, listed: Vec<Node>, now: Instant) {
        nodes.apply(Event::Init, now);
        listed.into_iter().for_each(|node| nodes.apply(Event::InitApply(node), now));
        nodes.apply(Event::InitDone, now);
    }

    fn of(nodes: &mut Nodes, now: Instant) -> Vec<(String, bool)> {
        let mut found: Vec<_> = nodes
            .lost(now)
            .0
            .into_iter()
            .map(|node| (node.name + "/" + &node.boot, node.gone))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn only_the_taint_and_going_condemn() {
        let (mut nodes, start) = (Nodes::default(), Instant::now());
        list(
            &mut nodes,
            vec![
                node("a", "1", None),
                node("b", "2", Some("node.kubernetes.io/unreachable")),
                node("c", "3", None),
            ],
            start,
        );
        assert!(!nodes.any_lost());
        nodes.apply(Event::Apply(node("a", "1", Some(OUT_OF_SERVICE))), start);
        nodes.apply(Event::Delete(node("b", "2", None)), start);
        assert_eq!(
            nodes.lost(start),
            (vec![LostNode { name: "a".into(), boot: "1".into(), gone: false }], true)
        );
        let later = start + GONE_FOR;
        assert_eq!(of(&mut nodes, later), [("a/1".into(), false), ("b/2".into(), true)]);
        nodes.done(later);
        assert_eq!(of(&mut nodes, later), [("a/1".into(), false)]);
        nodes.apply(Event::Apply(node("a", "1", None)), later);
        assert!(!nodes.any_lost());
    }

    fn with_ready(mut node: Node, status: &str, since: &str) -> Node {
        let conditions = serde_json::json!([
            {"type": "MemoryPressure", "status": "False", "lastTransitionTime": since},
            {"type": "Ready", "status": status, "lastTransitionTime": since},
        ]);
        node.status.get_or_insert_default().conditions =
            Some(serde_json::from_value(conditions).unwrap());
        node
    }

    #[test]
    fn a_node_that_is_not_ready_is_told_of_once_in_each_pool() {
        let (mut nodes, now) = (Nodes::default(), Instant::now());
        let pools = [PoolId::from_bytes([1; 16]), PoolId::from_bytes([2; 16])];
        let (at, later) = ("2026-11-29T21:00:00Z", "2026-11-29T22:00:00Z");
        let mut changes = |status: &str, since: &str, taint: Option<&str>| {
            nodes.apply(Event::Apply(with_ready(node("a", "1", taint), status, since)), now);
            let found = nodes.unready();
            found.iter().for_each(|node| nodes.told(node, pools[0]));
            found.first().map(|node| pools.map(|pool| node.is_told(pool)))
        };
        assert_eq!(changes("True", at, None), None);
        assert_eq!(changes("Unknown", at, None), Some([false, false]));
        assert_eq!(changes("Unknown", at, None), Some([true, false]), "nothing has changed");
        assert_eq!(changes("False", later, None), Some([false, false]), "another time");
        assert_eq!(changes("False", later, Some(OUT_OF_SERVICE)), None, "it is lost");
        assert_eq!(changes("True", later, None), None);
        nodes.apply(Event::Apply(node("b", "2", None)), now);
        assert_eq!(nodes.unready(), [], "its state is not known");
    }

    #[test]
    fn what_a_list_does_not_show_went_and_what_comes_back_stays() {
        let (mut nodes, start) = (Nodes::default(), Instant::now());
        list(&mut nodes, vec![node("a", "1", None), node("b", "2", None)], start);
        list(&mut nodes, vec![], start);
        // Created again, by the same boot of the machine; and by another.
        nodes.apply(Event::Apply(node("b", "2", None)), start);
        let later = start + GONE_FOR;
        assert_eq!(of(&mut nodes, later), [("a/1".into(), true)]);
        nodes.apply(Event::Apply(node("a", "7", None)), later);
        assert_eq!(of(&mut nodes, later), []);
        assert_eq!(of(&mut nodes, later + GONE_KEPT), []);
    }

    #[test]
    fn a_node_that_was_never_seen_is_not_gone() {
        let (mut nodes, start) = (Nodes::default(), Instant::now());
        list(&mut nodes, vec![], start);
        list(&mut nodes, vec![], start + GONE_KEPT);
        assert!(!nodes.any_lost());
    }
}
