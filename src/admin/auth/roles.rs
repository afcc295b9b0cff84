//! The authorizer of a machine: roles by the tokens file, and by the user of a local socket.

use super::{Action, Authorizer, Caller, Denied, Identified, Resource, Role, TokenFile};
use async_trait::async_trait;
use std::sync::Arc;

/// The users who come in by the unix socket with every right.
#[derive(Clone, Copy, Debug)]
pub struct LocalUsers {
    /// The user that the process runs as.
    own: u32,
}

impl LocalUsers {
    pub fn of_process() -> Self {
        Self { own: rustix::process::geteuid().as_raw() }
    }

    /// Identifies the peer of a unix socket. Root and the process's own user could do everything
    /// without it, too; others could not.
    pub fn identify(self, uid: u32) -> Option<Caller> {
        self.is_admin(uid)
            .then(|| Caller { name: format!("uid {uid}"), how: Identified::Peer { uid } })
    }

    fn is_admin(self, uid: u32) -> bool {
        uid == 0 || uid == self.own
    }
}

/// Decides by the tokens file.
pub struct FileAuthorizer {
    tokens: Arc<TokenFile>,
    users: LocalUsers,
}

/// The most that a caller may do.
enum Rights {
    All,
    Granted(super::Grant),
    None,
}

impl FileAuthorizer {
    pub fn new(tokens: Arc<TokenFile>, users: LocalUsers) -> Self {
        Self { tokens, users }
    }

    fn rights(&self, caller: &Caller) -> Rights {
        match caller.how {
            Identified::Printed => Rights::All,
            Identified::Peer { uid } if self.users.is_admin(uid) => Rights::All,
            Identified::Peer { .. } => Rights::None,
            Identified::Token(_) | Identified::Certificate(_) => {
                self.tokens.grant(caller).map_or(Rights::None, Rights::Granted)
            }
        }
    }

    /// The role that a caller has at the moment.
    pub fn role(&self, caller: &Caller) -> Option<Role> {
        match self.rights(caller) {
            Rights::All => Some(Role::Admin),
            Rights::Granted(grant) => Some(grant.role),
            Rights::None => None,
        }
    }
}

#[async_trait]
impl Authorizer for FileAuthorizer {
    async fn allow(
        &self,
        caller: &Caller,
        action: Action,
        resource: &Resource,
    ) -> Result<(), Denied> {
        let grant = match self.rights(caller) {
            Rights::All => return Ok(()),
            Rights::None => return Err(Denied::Ended { caller: caller.name.clone() }),
            Rights::Granted(grant) => grant,
        };
        let is_covered = match resource {
            Resource::Dataset { pool, dataset } => grant.covers(pool, dataset),
            // Names and facts of a pool are seen with a grant for any part of it; changes need all.
            Resource::Pool(pool) if action == Action::List => grant.touches(pool),
            Resource::Server if action == Action::List => true,
            Resource::Pool(_) | Resource::Server => grant.covers_all(),
        };
        if is_covered && grant.role >= action.role() {
            return Ok(());
        }
        let (caller, resource) = (caller.name.clone(), resource.clone());
        Err(Denied::Role { caller, action, resource })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;

    #[tokio::test]
    async fn a_role_has_the_rights_of_those_before_it_and_no_more() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("tokens.yaml");
        let secrets = Role::ALL.map(|role| (role, Secret::random()));
        let lines = secrets.iter().map(|(role, secret)| {
            let hash = secret.hash();
            format!(
                "  - {{ name: {role}, role: {role}, hash: 'blake3:{hash}', datasets: [main/a] }}\n"
            )
        });
        std::fs::write(&path, format!("tokens:\n{}", lines.collect::<String>())).unwrap();
        let tokens = Arc::new(TokenFile::open(Some(&path)).unwrap());
        let authorizer = FileAuthorizer::new(tokens.clone(), LocalUsers { own: 1000 });
        for (role, secret) in &secrets {
            let caller = tokens.by_token(secret.reveal()).unwrap();
            assert_eq!(authorizer.role(&caller), Some(*role));
            for action in
                [Action::List, Action::Read, Action::Snapshot, Action::Restore, Action::Administer]
            {
                let of =
                    async |resource| authorizer.allow(&caller, action, &resource).await.is_ok();
                assert_eq!(of(Resource::dataset("main", "a")).await, *role >= action.role());
                assert!(!of(Resource::dataset("main", "b")).await);
                assert_eq!(of(Resource::pool("main")).await, action == Action::List);
                assert!(!of(Resource::pool("other")).await);
            }
        }
    }

    #[tokio::test]
    async fn a_local_user_is_root_or_our_own() {
        let users = LocalUsers { own: 1000 };
        let authorizer = FileAuthorizer::new(Arc::new(TokenFile::open(None).unwrap()), users);
        assert!(users.identify(1001).is_none());
        for uid in [0, 1000] {
            let caller = users.identify(uid).unwrap();
            assert!(authorizer.allow(&caller, Action::Administer, &Resource::Server).await.is_ok());
        }
        let stranger = Caller { name: "uid 7".to_owned(), how: Identified::Peer { uid: 7 } };
        assert!(authorizer.allow(&stranger, Action::List, &Resource::Server).await.is_err());
    }
}
