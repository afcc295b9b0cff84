//! Sessions of browsers: a token is exchanged for a cookie that scripts of a page cannot read.
//!
//! ```text
//! POST login {token} ─▶ session: id (cookie), CSRF value (for scripts) ─▶ expired, or logged out
//! ```
//! A session has a caller, never rights of its own: what the caller may do is decided with each
//! request. Sessions are in memory: after a restart people log in again.

use super::{Caller, Identified, Secret, TokenFile, secret};
use crate::types::{Class, Classify};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A session ends after this long without a request, …
pub const IDLE_MAX: Duration = Duration::from_secs(3600);
/// … and after this long in any case.
pub const AGE_MAX: Duration = Duration::from_secs(12 * 3600);
/// The time for which the one-time token that the process prints may be used.
const PRINTED_AGE_MAX: Duration = Duration::from_secs(3600);
/// Most sessions; a new one ends the one that was unused for the longest time.
const SESSIONS_MAX: usize = 1000;
/// The same of one caller, who ends none of others.
const SESSIONS_EACH_MAX: usize = 100;

/// The part of a session that a request needs.
#[derive(Clone, Debug)]
pub struct Session {
    pub caller: Caller,
    /// The value that a request with an effect has to bring in a header.
    pub csrf: String,
    /// The hash of its id.
    id: blake3::Hash,
    begun: Instant,
    used: Instant,
    ended: CancellationToken,
}

/// A session that has not ended. Whoever waits for its end learns of it when this is dropped.
struct OpenSession {
    session: Session,
    _end: DropGuard,
}

impl Session {
    /// Waits until somebody logs out, or it has to make room for another one. Its expiry is found
    /// by the next request, and by [`Sessions::is_open`].
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.begun) > AGE_MAX || now.duration_since(self.used) > IDLE_MAX
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    #[error(
        "the token is not valid: it is wrong, has expired, or was taken out of the tokens file; \
         make one with `zerofs-csi token create`"
    )]
    Unknown,
    #[error(
        "the one-time token was used or has expired: restart the server for a new one, or make a \
         token with `zerofs-csi token create`"
    )]
    Used,
}

impl Classify for LoginError {
    fn class(&self) -> Class {
        match self {
            Self::Unknown | Self::Used => Class::Denied,
        }
    }
}

/// The token that is printed at the start, until it is used.
struct Printed {
    hash: blake3::Hash,
    since: Instant,
    is_used: bool,
}

/// The sessions of a process.
#[derive(Default)]
pub struct Sessions {
    /// By the hash of the id: whoever reads this memory cannot use it.
    open: Mutex<HashMap<blake3::Hash, OpenSession>>,
    printed: Mutex<Option<Printed>>,
}

impl Sessions {
    /// A token for whoever reads the output of this process, good for one login.
    pub fn print(&self) -> Secret {
        let token = Secret::random();
        let printed = Printed { hash: token.hash(), since: Instant::now(), is_used: false };
        *self.printed.lock() = Some(printed);
        token
    }

    /// Exchanges a token for a session. Returns its id, for the cookie, too.
    pub fn login(&self, token: &str, tokens: &TokenFile) -> Result<(Secret, Session), LoginError> {
        let caller = match self.take_printed(token)? {
            Some(caller) => caller,
            None => tokens.by_token(token).ok_or(LoginError::Unknown)?,
        };
        Ok(self.begin(caller))
    }

    fn begin(&self, caller: Caller) -> (Secret, Session) {
        let (id, now, ended) = (Secret::random(), Instant::now(), CancellationToken::new());
        let csrf = Secret::random().reveal().to_owned();
        let session = Session { caller, csrf, id: id.hash(), begun: now, used: now, ended };
        let mut open = self.open.lock();
        open.retain(|_, open| !open.session.is_over(now));
        make_room(&mut open, &session.caller);
        let end = session.ended.clone().drop_guard();
        open.insert(session.id, OpenSession { session: session.clone(), _end: end });
        (id, session)
    }

    fn take_printed(&self, token: &str) -> Result<Option<Caller>, LoginError> {
        let Some(hash) = secret::presented(token) else { return Ok(None) };
        let mut printed = self.printed.lock();
        let Some(printed) = printed.as_mut().filter(|printed| printed.hash == hash) else {
            return Ok(None);
        };
        if printed.is_used || printed.since.elapsed() > PRINTED_AGE_MAX {
            return Err(LoginError::Used);
        }
        printed.is_used = true;
        Ok(Some(Caller { name: "console".to_owned(), how: Identified::Printed }))
    }

    /// The session of a cookie.
    pub fn find(&self, id: &str) -> Option<Session> {
        let (hash, now) = (secret::presented(id)?, Instant::now());
        let mut open = self.open.lock();
        let OpenSession { session, .. } = open.get_mut(&hash)?;
        if session.is_over(now) {
            open.remove(&hash);
            return None;
        }
        session.used = now;
        Some(session.clone())
    }

    /// Whether a session goes on. This is no use of it.
    pub fn is_open(&self, session: &Session) -> bool {
        let now = Instant::now();
        self.open.lock().get(&session.id).is_some_and(|open| !open.session.is_over(now))
    }

    pub fn end(&self, id: &str) {
        if let Some(hash) = secret::presented(id) {
            self.open.lock().remove(&hash);
        }
    }
}

/// Makes room for a session of a caller: of the caller's own where it has many, of anybody where
/// all have too many.
fn make_room(open: &mut HashMap<blake3::Hash, OpenSession>, caller: &Caller) {
    let is_own = |open: &OpenSession| open.session.caller == *caller;
    let has_many = open.values().filter(|open| is_own(open)).count() >= SESSIONS_EACH_MAX;
    if has_many || open.len() >= SESSIONS_MAX {
        let those = open.values().filter(|open| !has_many || is_own(open));
        let oldest = those.min_by_key(|open| open.session.used).map(|open| open.session.id);
        oldest.map(|id| open.remove(&id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32) -> Caller {
        Caller { name: format!("user {uid}"), how: Identified::Peer { uid } }
    }

    #[test]
    fn the_printed_token_is_good_for_one_login() {
        let (sessions, tokens) = (Sessions::default(), TokenFile::open(None).unwrap());
        let token = sessions.print();
        let (id, session) = sessions.login(token.reveal(), &tokens).unwrap();
        assert_eq!(session.caller.how, Identified::Printed);
        assert_eq!(sessions.find(id.reveal()).unwrap().csrf, session.csrf);
        assert_eq!(sessions.login(token.reveal(), &tokens).unwrap_err(), LoginError::Used);
        let foreign = Secret::random();
        assert_eq!(sessions.login(foreign.reveal(), &tokens).unwrap_err(), LoginError::Unknown);
        assert!(sessions.find(token.reveal()).is_none(), "a token is no session");
        sessions.end(id.reveal());
        assert!(sessions.find(id.reveal()).is_none());
    }

    #[tokio::test]
    async fn sessions_end() {
        let sessions = Sessions::default();
        let (id, session) = sessions.begin(caller(1));
        assert!(sessions.is_open(&session));
        for open in sessions.open.lock().values_mut() {
            open.session.begun = open.session.begun.checked_sub(AGE_MAX).unwrap();
        }
        assert!(!sessions.is_open(&session) && !session.ended.is_cancelled());
        assert!(sessions.find(id.reveal()).is_none());
        assert!(sessions.open.lock().is_empty());
        session.ended().await;
        // Whoever waits learns of the end by a log-out as well.
        let (id, session) = sessions.begin(caller(1));
        sessions.end(id.reveal());
        assert!(!sessions.is_open(&session));
        session.ended().await;
    }

    #[test]
    fn their_number_has_a_limit_and_that_of_each_caller() {
        let sessions = Sessions::default();
        let callers = u32::try_from(SESSIONS_MAX / SESSIONS_EACH_MAX).unwrap();
        let mut ids = Vec::new();
        for n in 0..callers {
            let begun = (0..SESSIONS_EACH_MAX).map(|_| sessions.begin(caller(n)));
            ids.extend(begun.map(|(id, _)| id));
        }
        let is_open = |id: &Secret| sessions.open.lock().contains_key(&id.hash());
        assert!(ids.iter().all(is_open) && ids.len() == SESSIONS_MAX);
        // One caller's further session ends its own oldest, a new caller's that of anybody.
        sessions.begin(caller(callers - 1));
        let own = SESSIONS_MAX - SESSIONS_EACH_MAX;
        assert!(!is_open(&ids[own]) && ids[..own].iter().all(is_open));
        sessions.begin(caller(callers));
        assert!(!is_open(&ids[0]) && ids[1..own].iter().all(is_open));
        assert_eq!(sessions.open.lock().len(), SESSIONS_MAX);
    }
}
