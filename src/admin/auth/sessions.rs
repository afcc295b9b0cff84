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

/// A session ends after this long without a request, …
pub const IDLE_MAX: Duration = Duration::from_secs(3600);
/// … and after this long in any case.
pub const AGE_MAX: Duration = Duration::from_secs(12 * 3600);
/// The time for which the one-time token that the process prints may be used.
const PRINTED_AGE_MAX: Duration = Duration::from_secs(3600);
/// Most sessions; a new one ends the one that was unused for the longest time.
const SESSIONS_MAX: usize = 1000;

/// The part of a session that a request needs.
#[derive(Clone, Debug)]
pub struct Session {
    pub caller: Caller,
    /// The value that a request with an effect has to bring in a header.
    pub csrf: String,
    begun: Instant,
    used: Instant,
}

impl Session {
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
    open: Mutex<HashMap<blake3::Hash, Session>>,
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
        let (id, now) = (Secret::random(), Instant::now());
        let csrf = Secret::random().reveal().to_owned();
        let session = Session { caller, csrf, begun: now, used: now };
        let mut open = self.open.lock();
        open.retain(|_, session| !session.is_over(now));
        if open.len() >= SESSIONS_MAX {
            let oldest = open.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id);
            oldest.map(|id| open.remove(&id));
        }
        open.insert(id.hash(), session.clone());
        Ok((id, session))
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
        let session = open.get_mut(&hash)?;
        if session.is_over(now) {
            open.remove(&hash);
            return None;
        }
        session.used = now;
        Some(session.clone())
    }

    pub fn end(&self, id: &str) {
        if let Some(hash) = secret::presented(id) {
            self.open.lock().remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn sessions_end() {
        let (sessions, tokens) = (Sessions::default(), TokenFile::open(None).unwrap());
        let old = |session: &mut Session, age: Duration| {
            session.begun = session.begun.checked_sub(age).unwrap();
        };
        let (id, _) = sessions.login(sessions.print().reveal(), &tokens).unwrap();
        sessions.open.lock().values_mut().for_each(|session| old(session, AGE_MAX));
        assert!(sessions.find(id.reveal()).is_none());
        assert!(sessions.open.lock().is_empty());
    }

    #[test]
    fn their_number_has_a_limit() {
        let (sessions, tokens) = (Sessions::default(), TokenFile::open(None).unwrap());
        let mut ids = Vec::new();
        for _ in 0..=SESSIONS_MAX {
            ids.push(sessions.login(sessions.print().reveal(), &tokens).unwrap().0);
        }
        assert_eq!(sessions.open.lock().len(), SESSIONS_MAX);
        assert!(sessions.find(ids[0].reveal()).is_none());
        assert!(sessions.find(ids[SESSIONS_MAX].reveal()).is_some());
    }
}
