//! The messages. They are JSON, so that another version ignores the fields that it does not know.

use super::HandoverError;
use crate::nfs::Trust;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The version of the protocol that this program uses, and the oldest that it still supports.
pub(super) const VERSION: u16 = 1;
pub(super) const VERSION_MIN: u16 = 1;

/// The largest message, in bytes: a Hello with as many pools as are ever configured, or the
/// description of [`FDS_MAX`] sockets.
pub(super) const BYTES_MAX: usize = 64 << 10;
/// Descriptors of one message.
pub(super) const FDS_MAX: usize = 64;
/// Sockets of one hand-over: 256 volumes with 16 connections each.
pub(super) const SOCKETS_MAX: usize = 8192;
/// Most characters of the other side's message that an error shows.
const SHOWN_MAX: usize = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandoverRole {
    Node,
    Serve,
}

/// The new process's description of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest and the newest version that it supports.
    pub versions: (u16, u16),
    /// The program's version, for people.
    pub program: String,
    pub role: HandoverRole,
    /// The node id under which it owns volumes, if that is not the state folder's.
    pub node: Option<String>,
    /// The ids of the pools that it has open.
    pub pools: Vec<String>,
}

impl Hello {
    pub fn new(role: HandoverRole, node: Option<String>, pools: Vec<String>) -> Self {
        Self {
            versions: (VERSION_MIN, VERSION),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            role,
            node,
            pools,
        }
    }

    /// The newest version that both support.
    pub(super) fn common(&self) -> Result<u16, String> {
        let (oldest, newest) = self.versions;
        let common = newest.min(VERSION);
        if common < VERSION_MIN || common < oldest {
            return Err(format!(
                "it supports hand-over versions {oldest} to {newest}, and this process (zerofs-csi \
                 {}) {VERSION_MIN} to {VERSION}: stop this process first, or upgrade by way of a \
                 version in between",
                env!("CARGO_PKG_VERSION")
            ));
        }
        Ok(common)
    }
}

/// The service of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// NFS of one staged volume.
    Volume,
    /// NFS of every dataset.
    Exports,
    /// Probes and metrics.
    Health,
    /// Kubelet's plugin registration: a unix socket.
    Registration,
}

/// A socket; its descriptor comes with the message, in the same place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    pub service: Service,
    /// The local address.
    pub at: SocketAddr,
    /// The path of a unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The rights of a connection; a listening socket has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Trust>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Message {
    Hello(Hello),
    Accepted {
        version: u16,
        program: String,
    },
    Refused {
        why: String,
    },
    Sockets(Vec<Item>),
    /// The state folder is unlocked.
    Released,
    /// The new process has locked it.
    Acquired,
    Serving,
}

impl Message {
    pub fn encode(&self) -> Result<Vec<u8>, HandoverError> {
        let bytes = serde_json::to_vec(self)
            .map_err(|error| HandoverError::Unintelligible(error.to_string()))?;
        if bytes.len() > BYTES_MAX {
            return Err(HandoverError::Unintelligible(format!(
                "a message of {} bytes",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, HandoverError> {
        serde_json::from_slice(bytes)
            .map_err(|error| HandoverError::Unintelligible(error.to_string()))
    }

    /// The error for a message that arrived instead of `wanted`.
    pub fn unexpected(self, wanted: &str) -> HandoverError {
        match self {
            Self::Refused { why } => HandoverError::Refused(why.chars().take(SHOWN_MAX).collect()),
            other => {
                let said = format!("{other:?}").chars().take(SHOWN_MAX).collect::<String>();
                HandoverError::Unintelligible(format!("{said} instead of {wanted}"))
            }
        }
    }
}
