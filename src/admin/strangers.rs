//! Connections on which nobody has been identified: their time has a limit, and their number from
//! one address, so that nobody without a token holds the places of others. Those on which somebody
//! has been have a limit for each caller.

use super::auth::{Caller, NoPlace, Place, Places};
use axum::http::Extensions;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The time in which a connection has to bring a request of a known caller.
pub const UNKNOWN_LIMIT: Duration = Duration::from_secs(20);
/// Connections from one address on which nobody is known. A further one ends the oldest of them, so
/// that whoever has a token gets in beside any number of others behind the same address.
const EACH_MAX: usize = 256;
/// The same of all addresses. A further one ends the oldest of the address that has the most.
const ALL_MAX: usize = 384;
/// Connections that one caller was the first to be identified on, …
const KNOWN_EACH_MAX: usize = 384;
/// … and all callers. A request on a further one is refused, and the connection remains a
/// stranger's.
const KNOWN_MAX: usize = 576;
/// Connections that are wanted at most: where fewer may be open, callers and strangers together
/// could keep others from being accepted at all.
pub const PLACES_MAX: usize = ALL_MAX + KNOWN_MAX;

/// The connections of one address, the oldest first. Without an address: of a unix socket.
type Waiting = HashMap<Option<IpAddr>, VecDeque<(u64, CancellationToken)>>;

pub struct Strangers {
    waiting: Mutex<Waiting>,
    last: AtomicU64,
    known: Places,
}

/// A connection. It counts among the strangers until its caller is identified, or it ends.
pub struct Connection {
    strangers: Arc<Strangers>,
    from: Option<IpAddr>,
    id: u64,
    ousted: CancellationToken,
    /// Its place among those of its caller.
    known: OnceLock<Place>,
}

impl Default for Strangers {
    fn default() -> Self {
        let known = Places::new("connections", KNOWN_MAX, KNOWN_EACH_MAX);
        Self { waiting: Mutex::default(), last: AtomicU64::default(), known }
    }
}

impl Strangers {
    /// Begins to count a connection.
    pub fn enter(self: &Arc<Self>, from: Option<IpAddr>) -> Arc<Connection> {
        let (id, ousted) = (self.last.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        let mut waiting = self.waiting.lock();
        let of = waiting.entry(from).or_default();
        of.push_back((id, ousted.clone()));
        let is_over = of.len() > EACH_MAX;
        let all: usize = waiting.values().map(VecDeque::len).sum();
        let from_whom = match is_over {
            true => Some(from),
            false if all > ALL_MAX => {
                waiting.iter().max_by_key(|(_, of)| of.len()).map(|(most, _)| *most)
            }
            false => None,
        };
        if let Some(of) = from_whom.and_then(|address| waiting.get_mut(&address))
            && let Some((_, oldest)) = of.pop_front()
        {
            oldest.cancel();
        }
        drop(waiting);
        Arc::new(Connection { strangers: self.clone(), from, id, ousted, known: OnceLock::new() })
    }

    fn leave(&self, from: Option<IpAddr>, id: u64) {
        let mut waiting = self.waiting.lock();
        if let Some(of) = waiting.get_mut(&from) {
            of.retain(|(waits, _)| *waits != id);
            if of.is_empty() {
                waiting.remove(&from);
            }
        }
    }
}

impl Connection {
    /// Somebody has been identified on it.
    ///
    /// # Errors
    /// The caller has too many connections.
    pub fn identified(&self, caller: &Caller) -> Result<(), NoPlace> {
        if self.is_known() {
            return Ok(());
        }
        let place = self.strangers.known.take(caller)?;
        if self.known.set(place).is_ok() {
            self.strangers.leave(self.from, self.id);
        }
        Ok(())
    }

    /// The same, of the connection of a request.
    pub fn identified_by(extensions: &Extensions, caller: &Caller) -> Result<(), NoPlace> {
        match extensions.get::<Arc<Self>>() {
            Some(connection) => connection.identified(caller),
            None => Ok(()),
        }
    }

    pub fn is_known(&self) -> bool {
        self.known.get().is_some()
    }

    /// Waits until a newer connection takes its place.
    pub async fn ousted(&self) {
        self.ousted.cancelled().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.is_known() {
            self.strangers.leave(self.from, self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth::Identified;
    use super::*;

    fn caller(uid: u32) -> Caller {
        Caller { name: format!("user {uid}"), how: Identified::Peer { uid } }
    }

    fn at(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn the_oldest_stranger_of_an_address_makes_room() {
        let strangers = Arc::new(Strangers::default());
        let other = strangers.enter(at(2));
        let known = strangers.enter(at(1));
        known.identified(&caller(1)).unwrap();
        let all: Vec<_> = (0..=EACH_MAX).map(|_| strangers.enter(at(1))).collect();
        let ousted = |of: &Connection| of.ousted.is_cancelled();
        assert!(ousted(&all[0]) && !all[1..].iter().any(|of| ousted(of)));
        assert!(!ousted(&known) && !ousted(&other));
        // Those that leave or become known make room as well.
        all[1].identified(&caller(1)).unwrap();
        let next = strangers.enter(at(1));
        assert!(!ousted(&all[2]));
        let after = strangers.enter(at(1));
        assert!(ousted(&all[2]) && !ousted(&next) && !ousted(&all[1]));
        drop((all, next, after, other, known));
        assert!(strangers.waiting.lock().is_empty() && strangers.known.are_free());
    }

    #[test]
    fn no_caller_has_all_connections() {
        let strangers = Arc::new(Strangers::default());
        let enter = |by: u32| {
            let connection = strangers.enter(at(1));
            let known = connection.identified(&caller(by));
            (connection, known)
        };
        let all: Vec<_> = (0..KNOWN_EACH_MAX).map(|_| enter(1)).collect();
        assert!(all.iter().all(|(_, known)| known.is_ok()));
        let (further, refused) = enter(1);
        assert!(!further.is_known());
        assert!(refused.unwrap_err().to_string().contains("384 connections"));
        // On one that is known already, anybody may ask.
        assert!(all[0].0.identified(&caller(2)).is_ok() && enter(2).1.is_ok());
        drop(all);
        assert!(further.identified(&caller(1)).is_ok());
    }
}
