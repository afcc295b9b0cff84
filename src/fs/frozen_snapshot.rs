//! Snapshots of several file systems at one point in time: each is frozen before the first
//! checkpoint, until after the last ([`super::freeze`]).

use super::FsError;
use super::dataset::Fs;
use super::db::CheckpointId;
use super::freeze::{FREEZE_MAX, Thawed};
use crate::types::{Epoch, Incarnation};
use std::time::Duration;

fn broken() -> FsError {
    FsError::Busy("the freeze has ended before all volumes of the group had their checkpoint")
}

impl Fs {
    /// The writer epoch of this opening.
    pub fn epoch(&self) -> Epoch {
        self.committer.epoch()
    }

    /// Lets no change begin until [`Self::thaw`] is called with the token, or for `limit`, of
    /// [`FREEZE_MAX`] at most. A change that begins once this has returned waits until then. A
    /// repetition finds it frozen.
    ///
    /// # Errors
    /// [`FsError::Busy`] while it is frozen under another token.
    pub async fn freeze(&self, token: Incarnation, limit: Duration) -> Result<(), FsError> {
        self.answer(async {
            if !self.gate.freeze.begin(token)? {
                return Ok(());
            }
            // Whoever shuts the gate ends the freezes that have begun by then.
            if let Some(reason) = self.gate.shut_for() {
                self.gate.freeze.end(token);
                return Err(reason);
            }
            let (gate, limit) = (self.gate.clone(), limit.min(FREEZE_MAX));
            tokio::spawn(async move {
                tokio::time::sleep(limit).await;
                if let Some(Thawed { lasted, waited }) = gate.freeze.end(token) {
                    tracing::warn!(
                        millis = lasted.as_millis(),
                        waited,
                        "a freeze for a group snapshot reached its time limit and was ended; the \
                         snapshot is discarded, and its caller retries"
                    );
                }
            });
            Ok(())
        })
        .await
    }

    /// As [`Self::snapshot`], while the freeze of the token is in force.
    ///
    /// # Errors
    /// [`FsError::Busy`] when it has ended.
    pub async fn snapshot_frozen(
        &self,
        name: &str,
        token: Incarnation,
    ) -> Result<CheckpointId, FsError> {
        if !self.gate.freeze.is_frozen(token) {
            return Err(broken());
        }
        self.snapshot(name).await
    }

    /// Ends a freeze.
    ///
    /// # Errors
    /// [`FsError::Busy`] when it has ended before, so that changes may have begun since it was
    /// requested.
    pub async fn thaw(&self, token: Incarnation) -> Result<Thawed, FsError> {
        self.answer(async { self.gate.freeze.end(token).ok_or_else(broken) }).await
    }
}
