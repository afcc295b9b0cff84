//! The state of the cluster's nodes. Pure: events in, lost nodes out.

use k8s_openapi::api::core::v1::Node;
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
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A node whose ownership of volumes is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostNode {
    pub name: String,
    /// The boot of the machine: a later one is another owner.
    pub boot: String,
    pub gone: bool,
}

#[derive(Debug)]
struct NodeState {
    boot: String,
    out_of_service: bool,
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
        self.there.insert(name.clone(), NodeState { boot, out_of_service });
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
