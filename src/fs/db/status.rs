//! The parts of SlateDB's status that others wait for.
//!
//! SlateDB wakes whoever follows its status at each WAL flush, to tell its number: tasks that have
//! nothing to do, on threads that have to be woken too, while a caller waits for that very flush.
//! So one task looks at it now and then, and wakes others only when tables change, or at the end.

use slatedb::{CloseReason, Db, DbStatus};
use std::time::Duration;
use tokio::sync::watch;

/// The longest delay of what is told. A flush that fails tells its caller at once.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Status {
    /// Tables in L0.
    pub l0: usize,
    /// The last write that a stored table holds.
    pub stored: u64,
    pub closed: Option<CloseReason>,
}

impl Status {
    fn of(status: &DbStatus) -> Self {
        Self {
            l0: status.current_manifest.l0().len(),
            stored: status.current_manifest.last_l0_seq(),
            closed: status.close_reason,
        }
    }
}

/// Follows the status until the database closes, or nobody waits for it.
pub(super) fn follow(db: &Db) -> watch::Receiver<Status> {
    let mut source = db.subscribe();
    let (told, status) = watch::channel(Status::of(&source.borrow_and_update()));
    tokio::spawn(async move {
        while told.borrow().closed.is_none() {
            let changed = async {
                let changed = source.changed().await;
                tokio::time::sleep(POLL_INTERVAL).await;
                changed
            };
            let is_open = tokio::select! {
                changed = changed => changed.is_ok(),
                () = told.closed() => false,
            };
            if !is_open {
                return;
            }
            let now = Status::of(&source.borrow_and_update());
            told.send_if_modified(|last| {
                let is_new = *last != now;
                *last = now;
                is_new
            });
        }
    });
    status
}
