//! Freezing: for a moment no change begins, as with fsfreeze, so that the checkpoints of several
//! file systems show one point in time.
//!
//! A change is a call that others can observe: it passes [`Freeze::passed`] first of all, or
//! waits there. One that has passed goes on during a freeze, and may be in the checkpoint or not.
//! Reads, COMMIT and everything in the background go on.
//!
//! A freeze ends by itself after its time limit, by this process's own clock, and when the file
//! system stops serving. Each has a token of its own: whoever ends it by that token learns that it
//! was unbroken until then.

use super::FsError;
use crate::types::Incarnation;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The longest freeze: well below the time that a client waits for an answer.
pub const FREEZE_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
struct Frozen {
    token: Incarnation,
    since: Instant,
}

/// A freeze that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Thawed {
    pub lasted: Duration,
    /// The changes that had to wait.
    pub waited: u64,
}

/// Tokens of freezes that have ended, and are remembered.
const ENDED_MAX: usize = 64;

#[derive(Default)]
pub struct Freeze {
    frozen: watch::Sender<Option<Frozen>>,
    waited: AtomicU64,
    /// The tokens of the last freezes that have ended, the oldest first: a request that is read
    /// twice begins no freeze twice.
    ended: Mutex<VecDeque<Incarnation>>,
}

impl Freeze {
    /// Waits for the end of the freeze that is in force. Not for that of a later one, which begins
    /// after this call did: freezes in a row keep nobody waiting for ever.
    pub async fn passed(&self) {
        let Some(Frozen { token, .. }) = *self.frozen.borrow() else { return };
        self.waited.fetch_add(1, Ordering::Relaxed);
        let mut frozen = self.frozen.subscribe();
        // The sender lives as long as this does.
        let _ended = frozen.wait_for(|now| now.is_none_or(|frozen| frozen.token != token)).await;
    }

    /// Begins the freeze of that token; `false`: it is in force, and this is a repetition whose
    /// first answer was lost.
    ///
    /// # Errors
    /// [`FsError::Busy`] once it has ended, or while another freeze is in force: two one after the
    /// other without a gap would last longer than the limit.
    pub fn begin(&self, token: Incarnation) -> Result<bool, FsError> {
        let mut has_ended = false;
        let began = self.frozen.send_if_modified(|frozen| {
            has_ended = self.ended.lock().contains(&token);
            let free = frozen.is_none() && !has_ended;
            if free {
                self.waited.store(0, Ordering::Relaxed);
                *frozen = Some(Frozen { token, since: Instant::now() });
            }
            free
        });
        if began || self.is_frozen(token) {
            return Ok(began);
        }
        Err(FsError::Busy(match has_ended {
            true => "the freeze for this group snapshot has ended",
            false => "another group snapshot freezes it",
        }))
    }

    pub fn is_frozen(&self, token: Incarnation) -> bool {
        self.frozen.borrow().is_some_and(|frozen| frozen.token == token)
    }

    /// Ends the freeze of that token; `None`: it has ended before.
    pub fn end(&self, token: Incarnation) -> Option<Thawed> {
        let mut thawed = None;
        self.frozen.send_if_modified(|frozen| {
            let ours = frozen.filter(|frozen| frozen.token == token);
            // Also where it is not in force: the request that begins it may be late.
            self.remember(token);
            if let Some(Frozen { since, .. }) = ours {
                let waited = self.waited.load(Ordering::Relaxed);
                thawed = Some(Thawed { lasted: since.elapsed(), waited });
                *frozen = None;
            }
            ours.is_some()
        });
        thawed
    }

    /// Ends whatever freeze there is: the file system no longer serves.
    pub fn break_off(&self) {
        if let Some(frozen) = self.frozen.send_replace(None) {
            self.remember(frozen.token);
        }
    }

    fn remember(&self, token: Incarnation) {
        let mut ended = self.ended.lock();
        if ended.contains(&token) {
            return;
        }
        if ended.len() >= ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_change_waits_for_the_end_and_the_token_tells_whether_it_was_unbroken() {
        let freeze = Freeze::default();
        assert!(freeze.passed().now_or_never().is_some());
        let [token, next, after, lost] = [(); 4].map(|()| Incarnation::random());
        assert!(freeze.begin(token).unwrap());
        assert!(!freeze.begin(token).unwrap(), "a repetition");
        assert!(matches!(freeze.begin(next), Err(FsError::Busy(_))));
        let mut change = Box::pin(freeze.passed());
        assert!(change.as_mut().now_or_never().is_none() && freeze.is_frozen(token));
        assert!(freeze.end(Incarnation::random()).is_none(), "another freeze");
        assert_eq!(freeze.end(token).unwrap().waited, 1);
        change.await;
        assert!(freeze.end(token).is_none() && !freeze.is_frozen(token));
        assert!(matches!(freeze.begin(token), Err(FsError::Busy(_))), "its request is read again");

        assert!(freeze.begin(next).unwrap());
        assert!(freeze.end(token).is_none(), "an earlier token ends no later freeze");
        let mut first = Box::pin(freeze.passed());
        assert!(first.as_mut().now_or_never().is_none());
        assert_eq!(freeze.end(next).unwrap().waited, 1);
        assert!(freeze.begin(after).unwrap());
        first.await;
        assert!(freeze.end(after).is_some(), "a call from before it passed");
        assert!(freeze.begin(lost).unwrap());
        freeze.break_off();
        assert!(freeze.end(lost).is_none() && freeze.passed().now_or_never().is_some());
    }
}
