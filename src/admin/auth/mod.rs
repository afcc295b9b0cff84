//! Who may do what. Everything is denied that nothing grants.
//!
//! Nouns: a **caller** is whoever a request is from, named and told apart by how it was identified;
//! a **role** is what a grant allows, from viewer to admin, each with all of the one before; an
//! **action** needs a role; a **resource** is what the action is on. An [`Authorizer`] decides by
//! these three alone, so that another authority (that of a cluster) can stand behind the trait.
//!
//! ```text
//! request ─ identify (peer, token, certificate, session) ─▶ caller ─ allow ─▶ use case
//!        └─ 401                                                      └─ 403
//! ```
//!
//! Invariants: no secret is stored or logged, only its hash; a grant that was taken out of the file
//! ends the sessions that came from it with the next request; what cannot be read grants nothing.
//!
//! A caller without a right does not learn whether the resource exists.

pub mod audit;
mod limits;
mod places;
mod roles;
mod secret;
mod sessions;
pub mod tls;
mod tokens;

pub use limits::{Admission, Limits, RequestLimits, share_of_one};
pub use places::{NoPlace, Place, Places};
pub use roles::{FileAuthorizer, LocalUsers};
pub use secret::Secret;
pub use sessions::{AGE_MAX, LoginError, Session, Sessions};
pub use tokens::{Grant, TokenFile, TokenFileError, new_line};

use crate::types::{Class, Classify};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Whoever a request is from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// For people: the name of the token or certificate, or of the user.
    pub name: String,
    pub how: Identified,
}

/// How a caller was identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identified {
    /// By the kernel, on a unix socket.
    Peer { uid: u32 },
    /// By a token, whose hash this is.
    Token(blake3::Hash),
    /// By a certificate, whose SHA-256 fingerprint this is.
    Certificate([u8; 32]),
    /// By the one-time token that the process printed when it started.
    Printed,
}

/// The rights of a grant. Each role has the rights of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Lists names and facts.
    Viewer,
    /// Reads the contents of files.
    Reader,
    /// Takes snapshots, and restores from them.
    Restorer,
    /// Does everything.
    Admin,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Reader, Self::Restorer, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Reader => "reader",
            Self::Restorer => "restorer",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not a role; there are: {}", known()))
    }
}

/// The kind of work that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// See names and facts of pools, datasets, snapshots, files and tasks.
    List,
    /// Read what files hold.
    Read,
    /// Take a snapshot.
    Snapshot,
    /// Restore files in place.
    Restore,
    /// Create, change and delete datasets, delete snapshots, collect, scrub.
    Administer,
}

impl Action {
    /// The least role that may do it.
    pub fn role(self) -> Role {
        match self {
            Self::List => Role::Viewer,
            Self::Read => Role::Reader,
            Self::Snapshot | Self::Restore => Role::Restorer,
            Self::Administer => Role::Admin,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Read => "read files of",
            Self::Snapshot => "take snapshots of",
            Self::Restore => "restore files of",
            Self::Administer => "administer",
        }
    }
}

/// The object of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The process and its tasks.
    Server,
    Pool(String),
    Dataset {
        pool: String,
        dataset: String,
    },
}

impl Resource {
    pub fn pool(pool: &str) -> Self {
        Self::Pool(pool.to_owned())
    }

    pub fn dataset(pool: &str, dataset: &str) -> Self {
        Self::Dataset { pool: pool.to_owned(), dataset: dataset.to_owned() }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server => f.write_str("this server"),
            Self::Pool(pool) => write!(f, "pool {pool}"),
            Self::Dataset { pool, dataset } => write!(f, "dataset {pool}/{dataset}"),
        }
    }
}

/// The caller may not do this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "{caller} may not {} {resource}: that needs the role {} for it; ask an administrator",
        action.as_str(),
        action.role()
    )]
    Role { caller: String, action: Action, resource: Resource },
    /// Its grant has ended since it was identified.
    #[error("the access of {caller} has ended: log in again, or ask an administrator")]
    Ended { caller: String },
    /// The authority cannot be asked.
    #[error("cannot find out what {caller} may do: {why}")]
    Unknown { caller: String, why: String },
}

impl Classify for Denied {
    fn class(&self) -> Class {
        match self {
            Self::Role { .. } | Self::Ended { .. } => Class::Denied,
            Self::Unknown { .. } => Class::Unavailable,
        }
    }
}

/// Decides what callers may do.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// # Errors
    /// The caller may not do this, or nobody can tell.
    async fn allow(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
    ) -> Result<(), Denied>;
}
