//! The roles of a process: a controller plugin, a node plugin, or a server, which is both.

use super::handover::{HandoverRole, Hello};
use super::state_dir::StateDir;
use crate::nfs::Peers;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The role of a process.
pub(super) enum Role {
    Controller,
    Node(NodeRole),
    Serve(ServeRole),
}

pub(super) struct NodeRole {
    /// Name of the node in Kubernetes; without one, the name in the state folder.
    pub node_id: Option<String>,
    pub state_dir: PathBuf,
    /// In memory (a tmpfs): keeps the secrets of requests for the next start (R29).
    pub run_dir: Option<PathBuf>,
    /// `<kubeletDir>/plugins_registry`, and the CSI socket as kubelet sees it.
    pub registration: Option<(PathBuf, PathBuf)>,
    /// The peers that may connect to a staged volume's endpoint.
    pub peers: Peers,
}

pub(super) struct ServeRole {
    pub state_dir: PathBuf,
    pub nfs_listen: Option<SocketAddr>,
    /// The peers that may connect there.
    pub nfs_peers: Peers,
    /// The peers that may connect to a staged volume's endpoint.
    pub peers: Peers,
}

impl Role {
    pub fn state_dir(&self) -> Option<&Path> {
        match self {
            Self::Controller => None,
            Self::Node(node) => Some(&node.state_dir),
            Self::Serve(serve) => Some(&serve.state_dir),
        }
    }

    pub fn is_controller(&self) -> bool {
        matches!(self, Self::Controller | Self::Serve(_))
    }

    /// The peers that may connect to the endpoints of staged volumes.
    pub fn peers(&self) -> Peers {
        match self {
            Self::Controller => Peers::LoopbackReserved,
            Self::Node(node) => node.peers,
            Self::Serve(serve) => serve.peers,
        }
    }

    /// The name that owns the volumes of this process.
    pub fn owner(&self, state: Option<&StateDir>) -> anyhow::Result<String> {
        match (self, state) {
            (Self::Node(NodeRole { node_id: Some(id), .. }), _) => Ok(id.clone()),
            (_, Some(state)) => state.node_name(),
            (_, None) => Ok(format!("controller-{:08x}", rand::random::<u32>())),
        }
    }

    /// Returns this process's description of itself for another one.
    pub fn hello(&self, pools: Vec<String>) -> Hello {
        match self {
            Self::Node(node) => Hello::new(HandoverRole::Node, node.node_id.clone(), pools),
            Self::Controller | Self::Serve(_) => Hello::new(HandoverRole::Serve, None, pools),
        }
    }
}
