//! The messages. They are JSON, so that another version ignores the fields that it does not know.

use super::HandoverError;
use crate::nfs::Trust;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The version of the protocol that this program uses, and the oldest that it still supports.
/// Version 1 had other names for some messages, and was in no release; version 2 did not know
/// [`Service::Admin`].
pub(super) const VERSION: u16 = 3;
pub(super) const VERSION_MIN: u16 = 2;

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
    /// The administration interface.
    Admin,
}

impl Service {
    /// The first version of the protocol that knows it.
    pub(super) fn since(self) -> u16 {
        match self {
            Self::Volume | Self::Exports | Self::Health | Self::Registration => 2,
            Self::Admin => 3,
        }
    }
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
                let shown = format!("{other:?}").chars().take(SHOWN_MAX).collect::<String>();
                HandoverError::Unintelligible(format!("{shown} instead of {wanted}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfs::Trust;

    const SOCKETS: &str = concat!(
        r#"{"sockets":[{"service":"volume","at":"127.0.0.2:2049","connection":"squashed"},"#,
        r#"{"service":"exports","at":"127.0.0.2:2049"},"#,
        r#"{"service":"health","at":"127.0.0.2:2049"},"#,
        r#"{"service":"registration","at":"127.0.0.2:2049","path":"/r.sock"},"#,
        r#"{"service":"admin","at":"127.0.0.2:2049"}]}"#
    );

    /// A change of these bytes needs another version, since the other process may be older.
    #[test]
    fn the_bytes_of_messages_are_fixed() {
        assert_eq!((VERSION, VERSION_MIN), (3, 2));
        let hello = Hello {
            versions: (2, 3),
            program: "0.1.0".to_owned(),
            role: HandoverRole::Node,
            node: Some("n".to_owned()),
            pools: vec!["p".to_owned()],
        };
        let item = |service, path: Option<&str>, connection| Item {
            service,
            at: "127.0.0.2:2049".parse().unwrap(),
            path: path.map(PathBuf::from),
            connection,
        };
        let sockets = vec![
            item(Service::Volume, None, Some(Trust::Squashed)),
            item(Service::Exports, None, None),
            item(Service::Health, None, None),
            item(Service::Registration, Some("/r.sock"), None),
            item(Service::Admin, None, None),
        ];
        let messages = [
            (
                Message::Hello(hello),
                r#"{"hello":{"versions":[2,3],"program":"0.1.0","role":"node","node":"n","pools":["p"]}}"#,
            ),
            (
                Message::Accepted { version: 2, program: "0.1.0".to_owned() },
                r#"{"accepted":{"version":2,"program":"0.1.0"}}"#,
            ),
            (Message::Refused { why: "no".to_owned() }, r#"{"refused":{"why":"no"}}"#),
            (Message::Sockets(sockets), SOCKETS),
            (Message::Released, r#""released""#),
            (Message::Acquired, r#""acquired""#),
            (Message::Serving, r#""serving""#),
        ];
        for (message, text) in messages {
            assert_eq!(String::from_utf8(message.encode().unwrap()).unwrap(), text);
            assert_eq!(Message::decode(text.as_bytes()).unwrap(), message);
        }
    }

    #[test]
    fn an_older_process_is_refused() {
        let mut hello = Hello::new(HandoverRole::Serve, None, vec![]);
        assert_eq!(hello.common(), Ok(VERSION));
        hello.versions = (1, 1);
        assert!(hello.common().unwrap_err().contains("versions 1 to 1"));
        hello.versions = (1, 9);
        assert_eq!(hello.common(), Ok(VERSION));
    }
}
