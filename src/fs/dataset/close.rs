//! Ends an open file system: closed, abandoned, or handed over to the next process of its node.

use super::Fs;
use crate::fs::FsError;
use std::time::Duration;

/// Time limit for calls that wait for the store when a file system is closed.
const CALLS_LIMIT: Duration = Duration::from_secs(60);

impl Fs {
    /// Flushes and closes. Calls in flight finish or fail with [`FsError::Stale`]. May be retried
    /// after an error.
    pub async fn close(&self) -> Result<(), FsError> {
        self.gate.shut(FsError::Stale);
        if tokio::time::timeout(CALLS_LIMIT, self.gate.idle()).await.is_err() {
            return Err(FsError::Unavailable(
                "calls are still waiting for the object store".to_owned(),
            ));
        }
        let flushed = self.contents.flush_all().await;
        if let Err(error) = flushed {
            // A fenced or failed committer accepts nothing; then there is nothing left to save.
            if !matches!(error, FsError::Fenced | FsError::Stale) {
                return Err(error);
            }
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.committer.close().await
    }

    /// Answers new calls with "retry"; calls in progress go on. Used before [`Self::close`], when
    /// callers will find the dataset open again later.
    pub fn hold_calls(&self) {
        self.gate.shut(FsError::Unavailable("the volume is being closed".to_owned()));
    }

    /// Stops at once and writes nothing more, as the death of the process would, and releases the
    /// journal, if that can be done within `limit`.
    pub async fn abandon_within(&self, limit: Duration) {
        let committer = &self.committer;
        self.gate.shut(if committer.has_not_stopped() {
            FsError::Stale
        } else {
            committer.stopped().await
        });
        self.stop.cancel();
        if tokio::time::timeout(limit, self.committer.abandon()).await.is_err() {
            tracing::warn!(
                "something of a volume that has failed waits for the object store, and keeps its \
                 journal locked until that answers"
            );
        }
    }

    /// Flushes everything written so far to where the next opening finds it fastest, while this one
    /// goes on serving.
    pub async fn prepare_handover(&self) -> Result<(), FsError> {
        self.sync().await?;
        let _call = self.gate.enter()?;
        self.committer.prepare_handover().await
    }

    /// Detaches from the dataset for another process of this node, which goes on as after a crash
    /// of this one, with little to replay: the journal stays (R16). Calls that fail from here on
    /// must not be answered: their changes may have taken effect.
    pub async fn hand_over(&self, limit: Duration) -> Result<(), FsError> {
        self.gate.shut(FsError::Unavailable(
            "another process of this node goes on with the volume".to_owned(),
        ));
        let flushed = async {
            self.gate.idle().await;
            let ticket = self.contents.flush_all().await?;
            self.committer.durable(ticket).await
        };
        // Clients resend unstable data that is not in the store, and the journal has the rest (R17,
        // R18).
        match tokio::time::timeout(limit, flushed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::info!(
                    %error,
                    "not everything reached the store before the hand-over: the journal has it"
                );
            }
            Err(_) => tracing::info!(
                "not everything reached the store in time before the hand-over: the journal has it"
            ),
        }
        self.stop.cancel();
        self.tasks.close();
        self.committer.hand_over().await?;
        self.tasks.wait().await;
        Ok(())
    }

    /// Returns whether a failed [`Self::close`] can succeed on a retry; otherwise there is nothing
    /// left to close.
    pub async fn may_close_again(&self) -> bool {
        self.committer.is_flushed().await || self.committer.has_not_stopped()
    }
}
