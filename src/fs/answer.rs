//! The path of every call: through the gate, and only while this process owns the dataset (R25,
//! R26).
//!
//! ```text
//! gate shut ─▶ the reason     lease expired ─▶ Unavailable, nothing was done
//!     │                            │
//!   enter ───────────────────▶ the call ─┬─▶ lost meanwhile ─▶ the reason, whatever was done
//!                                        ├─▶ expired ─▶ kept back until the lease is reacquired,
//!                                        │              or the dataset lost
//!                                        └─▶ its outcome
//! ```
//! An outcome that is kept back is still true when the lease is reacquired: nobody else had the
//! dataset in between. It is not turned into "come again": the call was done, and a client that
//! comes again does so under another xid, which the ring does not know (R20).

use super::FsError;
use super::dataset::Fs;
use std::future::Future;

impl Fs {
    /// Carries out a call. An error is an answer too, such as NOENT for a missing file.
    pub(super) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<T, FsError>>,
    ) -> Result<T, FsError> {
        let _inside = self.gate.enter()?;
        if !self.lease.holds() {
            // The caller holds the call and retries it.
            self.lease.renew_soon();
            return Err(FsError::Unavailable(
                "this node's lease has expired and is being renewed".to_owned(),
            ));
        }
        let outcome = call.await;
        if self.lease.holds() && !self.gate.is_lost() {
            return outcome;
        }
        Box::pin(self.kept_back(outcome)).await
    }

    /// As [`Self::answer`], for a call that changes something.
    pub(super) async fn change<T>(
        &self,
        call: impl Future<Output = Result<T, FsError>>,
    ) -> Result<T, FsError> {
        // Not yet inside: closing does not wait for it.
        self.gate.freeze.passed().await;
        self.answer(call).await
    }

    async fn kept_back<T>(&self, outcome: Result<T, FsError>) -> Result<T, FsError> {
        self.lease.renew_soon();
        tokio::select! {
            biased;
            reason = self.committer.stopped() => Err(reason),
            reacquired = self.lease.reacquired() => match reacquired {
                true => self.gate.lost().map_or(outcome, Err),
                // Its export is lost before the client could be told so (R25).
                false => Err(FsError::Fenced),
            },
        }
    }

    /// Stops serving: another node owns the dataset.
    pub fn give_up(&self, reason: FsError) {
        self.gate.shut(reason.clone());
        self.committer.give_up(reason);
    }
}
