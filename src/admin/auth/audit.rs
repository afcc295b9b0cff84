//! The audit log: one event of the target `audit` for each read of contents, each archive, and each
//! restore, change or deletion: who, what, from where, outcome, bytes.
//!
//! An event is written when the work ends. Work whose caller leaves before that is `abandoned`.

use super::{Action, Caller, Identified};
use crate::types::Classify;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Work that is written to the log when it ends.
pub struct Audited {
    caller: Caller,
    from: Option<SocketAddr>,
    action: Action,
    what: &'static str,
    object: String,
    bytes: AtomicU64,
    outcome: Option<String>,
}

/// Begins work that has to be logged. `object`: names the dataset, the snapshot and the path.
pub fn begin(
    caller: &Caller,
    from: Option<SocketAddr>,
    action: Action,
    what: &'static str,
    object: String,
) -> Audited {
    let (caller, bytes) = (caller.clone(), AtomicU64::new(0));
    Audited { caller, from, action, what, object, bytes, outcome: None }
}

impl Audited {
    /// Counts bytes that were given to the caller, or restored.
    pub fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn done(mut self) {
        self.outcome = Some("done".to_owned());
    }

    pub fn failed<E: Classify + std::error::Error>(mut self, error: &E) {
        self.outcome = Some(format!("{:?}: {error}", error.class()));
    }

    /// Ends with the outcome of the work.
    pub fn end<T, E: Classify + std::error::Error>(self, outcome: &Result<T, E>) {
        match outcome {
            Ok(_) => self.done(),
            Err(error) => self.failed(error),
        }
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        let how = match self.caller.how {
            Identified::Peer { .. } => "unix socket",
            Identified::Token(_) => "token",
            Identified::Certificate(_) => "certificate",
            Identified::Printed => "one-time token",
        };
        tracing::info!(
            target: "audit",
            caller = self.caller.name,
            how,
            from = self.from.map(tracing::field::display),
            action = ?self.action,
            what = self.what,
            object = self.object,
            outcome = self.outcome.as_deref().unwrap_or("abandoned"),
            bytes = self.bytes.load(Ordering::Relaxed),
            "audit"
        );
    }
}
