//! One shard of the inode table: its nodes, their rows, and the clock that evicts nodes.

use super::{Lookup, NODE_BYTES};
use crate::fs::inode::entries::Entries;
use crate::fs::inode::node::Node;
use crate::fs::inode::row_cache::{CachedRow, ROW_BYTES, RowCache};
use crate::fs::inode::spread::Spread;
use crate::types::InodeNo;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Most nodes that one insertion examines to find some to evict.
const CLOCK_STEPS: usize = 8;

/// An inode's node in the table.
pub(super) enum NodeState {
    Loaded {
        node: Arc<Node>,
        used: bool,
    },
    /// Being loaded by the load of this number. The token is cancelled when that has ended, with or
    /// without success.
    Loading {
        load: u64,
        ended: CancellationToken,
    },
}

impl NodeState {
    pub(super) fn loaded(&self) -> Option<&Arc<Node>> {
        match self {
            Self::Loaded { node, .. } => Some(node),
            Self::Loading { .. } => None,
        }
    }
}

pub(super) struct Shard {
    pub(super) nodes: HashMap<u64, NodeState, BuildHasherDefault<Spread>>,
    pub(super) clock: VecDeque<u64>,
    pub(super) rows: RowCache,
}

impl Shard {
    /// Approximate memory of the shard.
    pub(super) fn bytes(&self) -> u64 {
        self.nodes.len() as u64 * NODE_BYTES + self.rows.len() as u64 * ROW_BYTES
    }

    /// The node, or the wait for it; `None`: it is not in memory.
    pub(super) fn find(&mut self, ino: InodeNo) -> Option<Lookup> {
        match self.nodes.get_mut(&ino.0)? {
            NodeState::Loaded { node, used } => {
                *used = true;
                Some(Lookup::Loaded(node.clone()))
            }
            NodeState::Loading { ended, .. } => Some(Lookup::Loading(ended.clone())),
        }
    }

    pub(super) fn is_loading(&self, ino: InodeNo, number: u64) -> bool {
        matches!(self.nodes.get(&ino.0), Some(NodeState::Loading { load, .. }) if *load == number)
    }

    /// Returns the node, and the entries of directories that were evicted for it.
    pub(super) fn insert(&mut self, node: Arc<Node>, excess: usize) -> (Arc<Node>, Vec<Entries>) {
        let ino = node.file.ino.0;
        let dropped = self.make_room(excess);
        self.rows.take(ino);
        self.nodes.insert(ino, NodeState::Loaded { node: node.clone(), used: false });
        self.clock.push_back(ino);
        self.prune_clock();
        (node, dropped)
    }

    /// The clock keeps the numbers of removed inodes until its hand passes; where many are made and
    /// removed, that is too late.
    fn prune_clock(&mut self) {
        if self.clock.len() > 2 * self.nodes.len() + CLOCK_STEPS {
            let nodes = &self.nodes;
            self.clock.retain(|ino| nodes.contains_key(ino));
        }
    }

    /// Evicts up to `excess` unused nodes, fewer if too many are in use. Their rows are cached.
    fn make_room(&mut self, mut excess: usize) -> Vec<Entries> {
        let mut directories = Vec::new();
        for _ in 0..CLOCK_STEPS.min(self.clock.len()) {
            if excess == 0 {
                break;
            }
            let Some(ino) = self.clock.pop_front() else { break };
            // The clock may still name removed inodes.
            let Some(NodeState::Loaded { node, used }) = self.nodes.get_mut(&ino) else { continue };
            // Clones are made under this shard's lock only, so that a count of one is final.
            if std::mem::take(used) || Arc::strong_count(node) > 1 || node.content.is_dirty() {
                self.clock.push_back(ino);
            } else if let Some(NodeState::Loaded { node, .. }) = self.nodes.remove(&ino)
                && let Some(node) = Arc::into_inner(node)
            {
                excess -= 1;
                let (row, last, entries) = node.into_parts();
                self.rows.insert(ino, CachedRow { row, last });
                directories.extend(entries.map(|entries| *entries));
            }
        }
        directories
    }
}
